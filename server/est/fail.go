package est

import (
	"net/http"
	"path"
	"strconv"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/frontdoor"
)

// fail encodes an error as a text that a person can read, with the rule. While the server has too much work, or cannot
// use its HSM or store, an enrollment gets the status 202 and Retry-After: the client repeats the request then (RFC 7030
// §4.2.3).
func fail(r *frontdoor.Request, err error) frontdoor.Response {
	header := http.Header{"Content-Type": {"text/plain; charset=utf-8"}, "Cache-Control": {"no-store"}}
	status := frontdoor.StatusOf(err)
	if seconds, ok := retryAfter(err); ok {
		header.Set("Retry-After", strconv.Itoa(seconds))
		if r.Method == http.MethodPost {
			status = http.StatusAccepted
		}
	}
	if status == http.StatusUnauthorized {
		if path.Base(r.URL.Path) == simpleEnroll {
			header.Set("WWW-Authenticate", `Basic realm="enrollment token as password", charset="UTF-8"`)
		} else {
			status = http.StatusForbidden // only a certificate authenticates the client here, and no scheme of HTTP (RFC 9110 §11.6.1)
		}
	}
	if _, _, sent := r.BasicAuth(); status == http.StatusUnauthorized && !sent && len(r.Chain) == 0 {
		// Clients that wait for this response before they send the token, such as Bouncy Castle 1.72, accept no body.
		return frontdoor.Response{Status: status, Header: header}
	}
	text := "The server failed. Its log has the reason.\n"
	if refusal, ok := pki.AsRefusal(err); ok {
		text = refusal.Error() + "\n"
	} else if pki.IsTemporary(err) {
		text = "The server cannot do this now. Repeat the request after the time in Retry-After.\n"
	}
	return frontdoor.Response{Status: status, Header: header, Body: []byte(text)}
}

// temporaryDelay is the delay for an error that is temporary, but has no time for a retry.
const temporaryDelay = 10

// retryAfter returns how many seconds the client should wait before it repeats the request. It returns false if a repeat
// is of no use.
func retryAfter(err error) (seconds int, ok bool) {
	if seconds, ok := frontdoor.RetryAfter(err); ok {
		return seconds, true
	}
	return temporaryDelay, pki.IsTemporary(err)
}
