package est

import (
	"net/http"
	"path"
	"strconv"
	"strings"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/frontdoor"
)

// fail encodes an error as a text that a person can read, with the rule. While the server has too much work, or cannot
// use its HSM or store, an enrollment gets the status 202 and Retry-After: the client repeats the request then (RFC 7030
// §4.2.3). Other refusals keep their status, even if a repeat may succeed later.
func fail(r *frontdoor.Request, err error) frontdoor.Response {
	header := http.Header{"Content-Type": {"text/plain; charset=utf-8"}, "Cache-Control": {"no-store"}}
	status := frontdoor.StatusOf(err)
	seconds, ok := frontdoor.RetryAfter(err)
	if isShed(err) {
		if !ok {
			seconds, ok = shedDelay, true
		}
		if r.Method == http.MethodPost {
			status = http.StatusAccepted
		}
	}
	if ok {
		header.Set("Retry-After", strconv.Itoa(seconds))
	}
	if status == http.StatusUnauthorized {
		if path.Base(r.URL.Path) == simpleEnroll {
			header.Set("WWW-Authenticate", `Basic realm="enrollment token as password", charset="UTF-8"`)
		} else {
			status = http.StatusForbidden // only a certificate authenticates the client here, and no scheme of HTTP (RFC 9110 §11.6.1)
		}
	}
	if _, _, sent := r.BasicAuth(); status == http.StatusUnauthorized && !sent && len(r.Chain) == 0 && !acceptsText(r) {
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

// acceptsText reports whether the client says that it accepts a text (RFC 9110 §12.5.1), as tools for people do.
func acceptsText(r *frontdoor.Request) bool {
	accept := strings.Join(r.Header.Values("Accept"), ",")
	return strings.Contains(accept, "text/") || strings.Contains(accept, "*/*")
}

// shedDelay is the delay in seconds after an error that has no time for a retry.
const shedDelay = 10

// isShed reports whether the server has not decided about a request: it has too much work, or a part of it cannot be used
// now.
func isShed(err error) bool {
	if refusal, ok := pki.AsRefusal(err); ok {
		return refusal.Rule == pki.RuleOverloaded || refusal.Rule == pki.RuleRateLimited
	}
	return pki.IsTemporary(err)
}
