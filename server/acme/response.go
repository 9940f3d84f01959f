package acme

import (
	"context"
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/brevet-pki/brevet/server/frontdoor"
)

// newHeader returns the headers of every response.
func (d *Door) newHeader() http.Header {
	h := http.Header{}
	h.Set("Cache-Control", "no-store")
	h.Set("Link", link(d.url(pathDirectory), "index"))
	return h
}

// link returns the value of a Link header (RFC 8288).
func link(url, relation string) string { return "<" + url + `>;rel="` + relation + `"` }

// object returns a response with a JSON object.
func (d *Door) object(status int, body any) (frontdoor.Response, error) {
	encoded, err := json.Marshal(body)
	if err != nil {
		return frontdoor.Response{}, err
	}
	h := d.newHeader()
	h.Set("Content-Type", "application/json")
	return frontdoor.Response{Status: status, Header: h, Body: encoded}, nil
}

// withNonce adds a nonce for the next request (RFC 8555 §6.5).
func (d *Door) withNonce(ctx context.Context, r frontdoor.Response) (frontdoor.Response, error) {
	next, err := d.nonces.next(ctx, d.config.Clock())
	if err != nil {
		return frontdoor.Response{}, err
	}
	r.Header.Set("Replay-Nonce", next)
	return r, nil
}

// setRetryAfter sets the delay in whole seconds, at least one.
func setRetryAfter(h http.Header, d time.Duration) {
	h.Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(d.Seconds())))))
}

// stamp formats a time as RFC 8555 requires it (RFC 3339). The zero time is an empty text.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
