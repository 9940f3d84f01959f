//go:build judges

package acme_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/servertest"
)

// reaction is what a client does after a refusal that it can overcome.
type reaction string

const (
	repeats reaction = "repeats the request at once"
	waits   reaction = "repeats the request after the time in Retry-After"
	hurries reaction = "repeats the request before the time in Retry-After"
	pauses  reaction = "starts again after a pause of its own"
	givesUp reaction = "gives up, and succeeds when it is run again"
)

// exchange is a request that passed a watch, and its response.
type exchange struct {
	began, ended time.Time
	method, path string
	status       int
	problem      string // the last part of the type of the problem
	retryAfter   time.Duration
	arranged     bool // the watch made the server refuse it
}

func (e exchange) String() string {
	return fmt.Sprintf("%s %s %s %d %s %s", e.began.Format("05.000"), e.method, e.path, e.status, e.problem, e.retryAfter)
}

// watch is a proxy in front of a server that records what a client requests. It makes the server refuse single requests:
// the responses that a client gets are the server's own. It serves one request at a time.
type watch struct {
	t        *testing.T
	url      string
	listener net.Listener
	backend  string // address of the server's port
	world    *servertest.World
	store    *servertest.Faulty // the store of world
	client   *http.Client

	mu        sync.Mutex
	exchanges []exchange
	spoil     bool // the next nonce
	// refusals make the server refuse the next POST to a path with the name at its end.
	refusals map[string]func() (restore func())
}

// newWatch returns a watch that has a port, and serves once it has a server.
func newWatch(t *testing.T) *watch {
	t.Helper()
	l := servertest.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	return &watch{
		t: t, listener: l, url: fmt.Sprintf("https://localhost:%d", portOf(t, l.Addr())), store: &servertest.Faulty{},
		refusals: map[string]func() (restore func()){},
	}
}

// serve puts the watch in front of a server, whose certificate it uses.
func (w *watch) serve(world *servertest.World) {
	w.t.Helper()
	w.world, w.backend = world, world.HTTPS
	own := world.OwnPair(w.t, "server")
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{ServerName: "localhost", RootCAs: own.RootPool(), MinVersion: tls.VersionTLS13},
	}
	w.client = &http.Client{Transport: transport}
	s := &http.Server{
		Handler:      w,
		TLSConfig:    &tls.Config{Certificates: []tls.Certificate{*own.TLS()}, MinVersion: tls.VersionTLS13},
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, // HTTP/1.1, as the server has it
	}
	go func() { _ = s.ServeTLS(w.listener, "", "") }()
	w.t.Cleanup(func() {
		_ = s.Close()
		transport.CloseIdleConnections()
		if w.t.Failed() {
			w.t.Logf("the requests:\n%s", w.text())
		}
	})
}

func (w *watch) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var lines []string
	for _, e := range w.exchanges {
		lines = append(lines, e.String())
	}
	return strings.Join(lines, "\n")
}

// ServeHTTP implements http.Handler.
func (w *watch) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := exchange{began: time.Now(), method: r.Method, path: r.URL.Path}
	restore := func() {}
	name := path.Base(r.URL.Path)
	if arrange := w.refusals[name]; arrange != nil && r.Method == http.MethodPost {
		delete(w.refusals, name)
		e.arranged, restore = true, arrange()
	}
	resp, body, err := w.forward(r)
	restore()
	if err != nil {
		w.t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
		rw.WriteHeader(http.StatusBadGateway)
		return
	}
	if nonce := resp.Header.Get("Replay-Nonce"); nonce != "" && w.spoil {
		w.spoil = false
		resp.Header.Set("Replay-Nonce", "AAAA"+nonce[4:])
	}
	e.record(resp, body)
	w.exchanges = append(w.exchanges, e)
	if isRenewalInfo(e) { // the server's time is hours
		resp.Header.Set("Retry-After", "1")
	}
	for field, values := range resp.Header {
		rw.Header()[field] = values
	}
	rw.WriteHeader(resp.StatusCode)
	_, _ = rw.Write(body)
}

// forward sends a request to the server.
func (w *watch) forward(r *http.Request) (*http.Response, []byte, error) {
	content, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, nil, err
	}
	on, err := http.NewRequest(r.Method, "https://"+w.backend+r.URL.RequestURI(), bytes.NewReader(content))
	if err != nil {
		return nil, nil, err
	}
	on.Header = r.Header.Clone()
	resp, err := w.client.Do(on)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return resp, body, err
}

func (e *exchange) record(resp *http.Response, body []byte) {
	e.ended, e.status = time.Now(), resp.StatusCode
	seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	e.retryAfter = time.Duration(seconds) * time.Second
	if resp.StatusCode >= http.StatusBadRequest {
		var p struct{ Type string }
		_ = json.Unmarshal(body, &p)
		e.problem = p.Type[strings.LastIndex(p.Type, ":")+1:]
	}
}

// exhaust lowers the server's rate limit, and uses up what an address may request. restore lifts the limit again.
func (w *watch) exhaust() (restore func()) {
	limits := server.DefaultLimits()
	limits.Address = admission.Rate{PerSecond: 0.5, Burst: 1}
	if err := w.world.Server.SetLimits(limits); err != nil {
		w.t.Error(err)
	}
	resp, err := w.client.Get("https://" + w.backend + "/acme/directory")
	if err != nil {
		w.t.Error(err)
	} else {
		_ = resp.Body.Close()
	}
	return func() {
		limits.Address = admission.Rate{PerSecond: 1e6, Burst: 1e6}
		if err := w.world.Server.SetLimits(limits); err != nil {
			w.t.Error(err)
		}
	}
}

// spoilNonce replaces the nonce in the next response that has one, so that the server refuses it.
func (w *watch) spoilNonce() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spoil = true
}

// shedOrder makes the server shed the next newOrder.
func (w *watch) shedOrder() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refusals["new-order"] = w.exhaust
}

// failFinalize makes the server's store fail at the next finalize.
func (w *watch) failFinalize() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refusals["finalize"] = func() (restore func()) {
		w.store.FailWrites(1)
		return func() {}
	}
}

// early is how much earlier than Retry-After a repeated request may arrive, because clocks and timers differ.
const early = 50 * time.Millisecond

// reactionTo returns what the client did after the only request to which a refusal applies, and how long after it. ended
// means that the client runs no longer.
func (w *watch) reactionTo(refused func(e exchange) bool, ended bool) (r reaction, pause time.Duration, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := -1
	for i, e := range w.exchanges {
		if !refused(e) {
			continue
		}
		if at >= 0 {
			return "", 0, fmt.Errorf("several requests were refused: %s and %s", w.exchanges[at], e)
		}
		at = i
	}
	if at < 0 {
		return "", 0, fmt.Errorf("no request was refused")
	}
	e := w.exchanges[at]
	for i, next := range w.exchanges[at+1:] {
		switch pause = next.began.Sub(e.ended); {
		case next.method != e.method || next.path != e.path:
			continue
		case e.retryAfter == 0:
			return repeats, pause, nil
		case i > 1 || pause > 10*e.retryAfter: // a client that needs a nonce has one request before
			return pauses, pause, nil
		case pause < e.retryAfter-early:
			return hurries, pause, nil
		default:
			return waits, pause, nil
		}
	}
	if !ended {
		return "", 0, fmt.Errorf("the client has not repeated %s yet", e)
	}
	return givesUp, 0, nil
}

func isBadNonce(e exchange) bool { return e.problem == "badNonce" }

func isShed(e exchange) bool {
	return e.arranged && e.status == http.StatusTooManyRequests && e.retryAfter > 0
}

func isFailure(e exchange) bool {
	return e.arranged && e.status == http.StatusServiceUnavailable && e.retryAfter > 0
}

// count counts the exchanges that have a property.
func (w *watch) count(has func(e exchange) bool) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.exchanges {
		if has(e) {
			n++
		}
	}
	return n
}

func isRenewalInfo(e exchange) bool {
	return e.method == http.MethodGet && strings.Contains(e.path, "/renewal")
}
