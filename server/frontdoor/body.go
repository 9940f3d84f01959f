package frontdoor

import (
	"io"
	"net/http"
	"strings"
	"time"
)

// maxDrained is how much of a body is read although the response does not depend on it, in bytes.
const maxDrained = 256 << 10

// Drained returns a handler for h that reads what h left of a body. If a connection ends while the client still sends,
// the client gets a reset, and may lose the response. net/http reads the rest only if it keeps the connection.
func Drained(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		q, drain := observe(w, q)
		defer drain()
		h.ServeHTTP(w, q)
	})
}

// observe returns a request to serve instead of q, and a function to call when it is served, which reads the rest of the
// body. If the client waits for the status 100 before it sends the body (RFC 9110 §10.1.1), and the body was not read,
// the client may never send it. net/http would wait for the body until its read timeout, and keep the connection. drain
// ends that wait at once. If there is no body, net/http reads ahead meanwhile, and an error of that would end the context
// of all later requests.
func observe(w http.ResponseWriter, q *http.Request) (served *http.Request, drain func()) {
	if q.ContentLength == 0 {
		return q, func() {}
	}
	if !strings.EqualFold(q.Header.Get("Expect"), "100-continue") {
		return q, func() { _, _ = io.Copy(io.Discard, http.MaxBytesReader(w, q.Body, maxDrained)) } // fails if the client does
	}
	body := &observedBody{ReadCloser: q.Body}
	served = q.WithContext(q.Context()) // a copy: net/http recognizes its own body in q
	served.Body = body
	return served, func() {
		if !body.isRead {
			_ = http.NewResponseController(w).SetReadDeadline(time.Now()) // if it fails, the read timeout ends the wait
		}
	}
}

// observedBody is a body that records whether it was read. Until then, net/http has not sent the status 100.
type observedBody struct {
	io.ReadCloser
	isRead bool
}

// Read implements io.Reader.
func (b *observedBody) Read(p []byte) (int, error) {
	b.isRead = true
	return b.ReadCloser.Read(p)
}
