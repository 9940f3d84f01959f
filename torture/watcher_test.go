package torture

import (
	"context"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// A watcher is a device of its own, whose certificate is revoked at one server. It measures when the others know it.
type watcher struct {
	w        *instance
	identity string
	enrolled bool
	skewed   atomic.Bool // whether the clock of a server is wrong

	mu   sync.Mutex
	lags []time.Duration // since begin: between a confirmed revocation and the first response of another server that says so
}

func newWatcher(t *testing.T, rt *replicaTest) *watcher {
	t.Helper()
	id, err := rt.clients.register(t.Context(), "watched/1")
	must(t, err)
	return &watcher{w: rt.instance, identity: id}
}

// begin starts a measurement.
func (v *watcher) begin() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.lags = nil
	v.skewed.Store(false)
}

// report describes the measurement.
func (v *watcher) report() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.lags) == 0 {
		return "not measured"
	}
	slices.Sort(v.lags)
	return fmt.Sprintf("%d revocations, median %d ms, at most %d ms", len(v.lags), v.lags[len(v.lags)/2].Milliseconds(), v.lags[len(v.lags)-1].Milliseconds())
}

// step enrolls with one request at two servers at the same time, has an operator revoke the certificate, and checks when
// each server says revoked. A renewal with it must be refused by all servers.
func (v *watcher) step(ctx context.Context) {
	c := v.enroll(ctx)
	if c == nil {
		return
	}
	p, err := v.w.clients.retryAt(ctx, v.w.operator, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := brevetv1.NewRevocationServiceClient(conn).RevokeCertificate(ctx, &brevetv1.RevokeCertificateRequest{Serial: serialBytes(c.serial()), Reason: servertest.Reason("superseded")})
		return err
	})
	if err != nil {
		v.failed(ctx, "revoke a watched certificate", err)
		return
	}
	confirmed := time.Now()
	v.w.observed.recordRevoked(c.serial())
	var busy sync.WaitGroup
	for _, q := range v.w.clients.running() {
		busy.Go(func() {
			if q == p {
				v.check(q, c, confirmed, 0)
			} else {
				v.check(q, c, confirmed, maxStaleness)
			}
			err := v.w.clients.callTo(ctx, q, c, func(ctx context.Context, conn *grpc.ClientConn) error {
				_, err := newRenewal(c, newKey()).send(ctx, conn)
				return err
			})
			if err == nil {
				v.w.observed.faultf("certificate %s was revoked by %s, and renewed by %s %s later", abbreviate(c.serial()), p.server, q.server, time.Since(confirmed))
			}
		})
	}
	busy.Wait()
}

// enroll returns a new credential, or nil if there is none. The identity is not changed by any other client.
func (v *watcher) enroll(ctx context.Context) *credential {
	token, err := v.w.clients.createToken(ctx, v.identity, v.enrolled)
	if err != nil {
		v.failed(ctx, "create a token", err)
		return nil
	}
	r := newRequest(token, newKey())
	got := make([]*credential, 2)
	var busy sync.WaitGroup
	servers := slices.Clone(v.w.clients.running())
	mathrand.Shuffle(len(servers), func(i, j int) { servers[i], servers[j] = servers[j], servers[i] })
	for i := range got {
		busy.Go(func() {
			var der []byte
			send := func(ctx context.Context, conn *grpc.ClientConn) (err error) {
				der, err = r.send(ctx, conn)
				return err
			}
			var err error
			if i < len(servers) {
				err = v.w.clients.callTo(ctx, servers[i], nil, send)
			}
			if i >= len(servers) || isTransient(err) { // it may have died
				err = v.w.clients.retry(ctx, nil, send)
			}
			if err != nil {
				v.failed(ctx, "enroll with one request at two servers", err)
				return
			}
			c, err := parseCertificate(der)
			if err != nil {
				v.failed(ctx, "enroll with one request at two servers", err)
				return
			}
			v.w.observed.recordIssued(r, c)
			got[i] = &credential{c, r.key}
		})
	}
	busy.Wait()
	if got[0] == nil {
		return got[1]
	}
	v.enrolled = true
	return got[0]
}

// failed records an error. Only a server whose clock is wrong refuses what a watcher requests.
func (v *watcher) failed(ctx context.Context, what string, err error) {
	switch {
	case ctx.Err() != nil:
	case v.skewed.Load():
		v.w.recordUnexpected(what, err)
	default:
		v.w.observed.faultf("%s: %v", what, err)
	}
}

// giveUpAfter is how long a watcher waits for a server that does not respond to OCSP queries.
const giveUpAfter = 2 * maxStaleness

// check queries a server about a certificate until it says revoked. If it says good later than allowed, it records a fault.
func (v *watcher) check(q *process, c *credential, confirmed time.Time, allowed time.Duration) {
	for {
		asked := time.Now()
		state, err := v.w.ocsp(q, c.certificate)
		switch {
		case err == nil && state == revoked:
			if allowed > 0 {
				v.mu.Lock()
				v.lags = append(v.lags, time.Since(confirmed))
				v.mu.Unlock()
			}
			return
		case err == nil && asked.Sub(confirmed) >= allowed:
			v.w.observed.faultf("certificate %s is in state %d by OCSP of %s %s after its revocation was confirmed", abbreviate(c.serial()), state, q.server, asked.Sub(confirmed))
			return
		case err != nil && asked.Sub(confirmed) > giveUpAfter:
			return
		}
		select {
		case <-q.ended:
			return
		case <-time.After(2 * time.Millisecond):
		}
	}
}
