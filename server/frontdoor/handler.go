package frontdoor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/admission"
)

// The server logs so many failures of a handler at once, and then one in each interval. The metrics count all of them.
const failuresEach, failureInterval = 10, 6 * time.Second

// handler serves the requests of one route.
type handler struct {
	server *Server
	door   Door
	route  Route
	name   string // in metrics and in the log
}

// ServeHTTP implements http.Handler.
func (h handler) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	begun, ctx := time.Now(), q.Context()
	p := peerIn(ctx)
	r := &Request{Request: q, Chain: p.chain, Old: p.isOld(), From: p.from()}
	var response Response
	var err error
	defer func() {
		if panicked := recover(); panicked != nil {
			h.server.config.Meter.Failure(nil)
			h.server.failures[h.name].Do(func() {
				h.server.config.Log.ErrorContext(ctx, "an HTTPS request panicked", "handler", h.name, "panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
			})
			err = errPanicked
			response = h.door.Fail(r, err)
		}
		status := write(w, q, response)
		h.server.config.Meter.Request(ctx, h.name, status, time.Since(begun), err)
	}()
	if response, err = h.respond(w, r, p); err != nil {
		h.noteFailure(ctx, err)
		response = h.door.Fail(r, err)
	}
}

// errPanicked is the error of a request whose handler panicked.
var errPanicked = errors.New("the handler panicked")

// respond checks a request in the order in which it arrives, and calls the handler of its route. Nothing reads the store
// before the client has sent the whole request.
func (h handler) respond(w http.ResponseWriter, r *Request, p peer) (response Response, err error) {
	s, ctx, op := h.server, r.Context(), h.route.Operation
	var refused error
	r.Caller, refused = s.config.Authorizer.Authenticate(op, p.client)
	if p.malformed != nil {
		refused = p.malformed
	}
	if v := h.door.MinVersion; refused == nil && (r.TLS == nil || r.TLS.Version < v) {
		refused = pki.Refuse(pki.RuleTLSVersion, "connect with TLS "+versionName(v)+", or have the minimum lowered in the server's configuration",
			"the connection has an older version of TLS than %s accepts", h.door.Name)
	}
	defer func() { err = s.config.Refusals.Record(ctx, r.Caller.Actor(), r.Caller.ID, err) }()
	if err := s.config.Admission.Admit(op, h.sourceOf(r, p), refused); err != nil {
		return response, err
	}
	if r.Content, err = s.read(w, r, p, h.route.MaxBody); err != nil {
		return response, err
	}
	if r.Caller, err = s.config.Authorizer.Authorize(ctx, op, p.client); err != nil {
		return response, err
	}
	leave, err := s.config.Admission.Enter(ctx, op, h.sourceOf(r, p), r.Caller.NotAfter)
	if err != nil {
		return response, err
	}
	defer leave()
	return h.route.Handle(ctx, r)
}

// sourceOf returns the source that a request counts for. A request with a certificate that is no longer good counts for
// the client's address, so that it does not use up the rate of the identity's good certificate.
func (handler) sourceOf(r *Request, p peer) admission.Source {
	if c := r.Caller; !c.ID.IsZero() && !c.Past {
		return admission.Identity(c.ID, c.Key)
	}
	return p.source()
}

// read reads the body. So many bodies at most are being read at a time that they fit into memory.
func (s *Server) read(w http.ResponseWriter, r *Request, p peer, limit int64) ([]byte, error) {
	tooLarge := pki.Refuse(pki.RuleSize, "send less", "the body has more than %d bytes", limit)
	if r.ContentLength == 0 {
		return nil, nil
	}
	if r.ContentLength > limit {
		return nil, tooLarge
	}
	if err := s.unread.Acquire(p.source()); err != nil {
		return nil, err
	}
	defer s.unread.Release(p.source())
	content, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
		return nil, tooLarge
	}
	if err != nil {
		return nil, pki.Refuse(pki.RuleRequest, "send the whole request without a pause", "the body did not arrive")
	}
	return content, nil
}

// noteFailure counts and logs an error for which the server itself is responsible.
func (h handler) noteFailure(ctx context.Context, err error) {
	if _, refused := pki.AsRefusal(err); refused || ctx.Err() != nil {
		return // the client is responsible, or has disconnected
	}
	h.server.config.Meter.Failure(err)
	h.server.failures[h.name].Do(func() {
		h.server.config.Log.ErrorContext(ctx, "an HTTPS request failed", "handler", h.name, "error", err)
	})
}

// maxBuffered is the maximum size of a body that is sent together with its headers.
const maxBuffered = 3 << 10

// write writes a response with its length, so that it is not sent in chunks, and returns its status.
func write(w http.ResponseWriter, q *http.Request, r Response) int {
	status := r.Status
	if status == 0 {
		status = http.StatusOK
	}
	header := w.Header()
	maps.Copy(header, r.Header)
	if status != http.StatusNoContent {
		header.Set("Content-Length", strconv.Itoa(len(r.Body)))
	}
	w.WriteHeader(status)
	if len(r.Body) > maxBuffered { // otherwise net/http would cut the body at the end of its buffer, see tlsConfig
		_ = http.NewResponseController(w).Flush()
	}
	if q.Method != http.MethodHead && status != http.StatusNoContent {
		_, _ = w.Write(r.Body) // fails only if the client has disconnected
	}
	return status
}
