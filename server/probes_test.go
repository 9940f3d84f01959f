package server_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/server/telemetry"
)

func TestProbes(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.Wrap})
	if code, body := getOperations(t, w, "/livez"); code != http.StatusOK {
		t.Errorf("/livez: %d %s", code, body)
	}
	if code, body := getOperations(t, w, "/readyz"); code != http.StatusOK {
		t.Errorf("/readyz: %d %s", code, body)
	}
	// An RPC in flight delays the stop of the server. Meanwhile the server is alive and not ready.
	arrived, release := store.Hold()
	go func() { _, _ = w.Operator.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{}) }()
	<-arrived
	stopped := make(chan struct{})
	go func() { w.StopServer(t); close(stopped) }()
	for {
		code, body := getOperations(t, w, "/readyz")
		if code == http.StatusServiceUnavailable && strings.Contains(body, "not serving") {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if code, body := getOperations(t, w, "/livez"); code != http.StatusOK {
		t.Errorf("/livez while stopping: %d %s", code, body)
	}
	release()
	<-stopped
	w.Serve(t, servertest.Options{Wrap: store.Wrap}) // for the final checks
}

// brokenToken is an HSM whose self-test fails while broken is true.
type brokenToken struct{ broken atomic.Bool }

func (b *brokenToken) Prove(context.Context) error {
	if b.broken.Load() {
		return errors.New(servertest.Internals)
	}
	return nil
}

func (b *brokenToken) Calls() (now, most int) { return 2, 3 }
func (b *brokenToken) Failures() int          { return 4 }

// checkNotReady checks that the server is not ready for exactly one reason. If the reason is empty, the server must be
// ready.
func checkNotReady(t *testing.T, w *servertest.World, reason string) {
	t.Helper()
	code, body := getOperations(t, w, "/readyz")
	_, text := getOperations(t, w, "/metrics")
	ready := metric(t, text, "brevet_ready")
	switch {
	case reason == "" && (code != http.StatusOK || ready != 1):
		t.Errorf("the server is not ready: %s, brevet_ready is %v", body, ready)
	case reason != "" && (code != http.StatusServiceUnavailable || ready != 0 || !strings.Contains(body, reason) || strings.Contains(body, `\n`)):
		t.Errorf("/readyz: %d %s, brevet_ready is %v, want the only reason %s", code, body, ready, reason)
	}
	if strings.Contains(body, servertest.Internals) {
		t.Errorf("the probe reveals internal details: %s", body)
	}
	if code, body := getOperations(t, w, "/livez"); code != http.StatusOK {
		t.Errorf("/livez fails although a restart would not help: %d %s", code, body)
	}
}

func TestTokenIsLostAndFound(t *testing.T) {
	t.Parallel()
	token := &brokenToken{}
	w := servertest.New(t, ground, servertest.Options{Token: token})
	_, text := getOperations(t, w, "/metrics")
	for series, want := range map[string]float64{`brevet_hsm_sessions_in_use{hsm="test"}`: 2, `brevet_hsm_sessions_limit{hsm="test"}`: 3, `brevet_hsm_consecutive_failures{hsm="test"}`: 4} {
		if got := metric(t, text, series); got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
	token.broken.Store(true)
	w.Server.Telemetry().ProveHSMs(t.Context())
	w.Server.Telemetry().ProveHSMs(t.Context())
	checkNotReady(t, w, "the last signature of the HSM failed")
	if n := strings.Count(w.Log.String(), "the HSM does not sign"); n != 1 {
		t.Errorf("one loss is logged %d times", n)
	}
	// A server that is not ready gets no requests, so the self-test must find that the HSM works again.
	token.broken.Store(false)
	w.Server.Telemetry().ProveHSMs(t.Context())
	checkNotReady(t, w, "")
	// A signature of a certificate also shows that the HSM works again.
	token.broken.Store(true)
	w.Server.Telemetry().ProveHSMs(t.Context())
	w.Enrolled(t, "device", "device/1")
	checkNotReady(t, w, "")
	// A failed signature of a certificate also shows that the HSM is lost.
	w.Server.Telemetry().Begin(t.Context(), ca.StepSign, pki.IssuerOf(w.Issuing))(errors.New("the token is lost"))
	checkNotReady(t, w, "the last signature of the HSM failed")
	token.broken.Store(false)
	w.Server.Telemetry().ProveHSMs(t.Context())
	if lost, found := strings.Count(w.Log.String(), "the HSM does not sign"), strings.Count(w.Log.String(), "the HSM signs again"); lost != 3 || found != 3 {
		t.Errorf("three losses are logged %d times, and three recoveries %d times", lost, found)
	}
}

// The loss of an HSM that does not have the current issuing CA's key is in the log and the metrics, but the server
// stays ready.
func TestFurtherHSMsAreWatched(t *testing.T) {
	t.Parallel()
	old := &brokenToken{}
	w := servertest.New(t, ground, servertest.Options{FurtherHSMs: []telemetry.IssuingHSM{{HSM: old, Name: "old"}}})
	up := func(current, further float64) {
		t.Helper()
		_, text := getOperations(t, w, "/metrics")
		for series, want := range map[string]float64{`brevet_hsm_up{hsm="test"}`: current, `brevet_hsm_up{hsm="old"}`: further} {
			if got := metric(t, text, series); got != want {
				t.Errorf("%s is %v, want %v", series, got, want)
			}
		}
	}
	up(1, 1)
	old.broken.Store(true)
	w.Server.Telemetry().ProveHSMs(t.Context())
	up(1, 0)
	checkNotReady(t, w, "")
	if log := w.Log.String(); !strings.Contains(log, "the HSM does not sign") || !strings.Contains(log, `"hsm":"old"`) {
		t.Errorf("the log does not name the lost token: %s", log)
	}
	old.broken.Store(false)
	w.Server.Telemetry().ProveHSMs(t.Context())
	up(1, 1)
}

func TestStoreFailsTransactions(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.Wrap})
	req := servertest.Enrollment(t, w.Token(t, w.Register(t, "device", "device/1"), false), servertest.Key(t))
	store.FailWrites(1)
	_, err := w.Caller(t, nil).Enroll(t.Context(), req)
	checkUnavailable(t, err)
	checkNotReady(t, w, "the store failed a call")
	// A server that is not ready gets no requests, so it must become ready again after some time without a success.
	w.Clock.Advance(telemetry.StoreDoubt)
	for code := 0; code != http.StatusOK; time.Sleep(5 * time.Millisecond) {
		code, _ = getOperations(t, w, "/readyz") // not ready until the responder has synchronized at the new time
	}
	store.FailWrites(1)
	_, err = w.Caller(t, nil).Enroll(t.Context(), req)
	checkUnavailable(t, err)
	servertest.Must(w.Caller(t, nil).Enroll(t.Context(), req))(t)
	checkNotReady(t, w, "")
	_, text := getOperations(t, w, "/metrics")
	if failed := metric(t, text, `brevet_journal_writes_total{result="failed"}`); failed != 2 {
		t.Errorf("%v transactions failed, want 2", failed)
	}
	if failed := metric(t, text, "brevet_rpc_internal_errors_total"); failed != 2 {
		t.Errorf("%v calls failed, want 2", failed)
	}
}

func TestDiskIsReadOnly(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	checkNotReady(t, w, "")
	w.Disk.Fill(true)
	checkNotReady(t, w, "the disk is full")
	w.Disk.Protect(true)
	checkNotReady(t, w, "cannot be written")
	if _, text := getOperations(t, w, "/metrics"); metric(t, text, "brevet_disk_free_bytes") != 0 {
		t.Error("brevet_disk_free_bytes is not 0 on a read-only disk")
	}
	w.Disk.Fill(false)
	w.Disk.Protect(false)
	checkNotReady(t, w, "")
}

func TestStoreIsFenced(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	req := servertest.Enrollment(t, w.Token(t, w.Register(t, "device", "device/1"), false), servertest.Key(t))
	if _, _, err := w.Stores.CA.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Caller(t, nil).Enroll(t.Context(), req); err == nil {
		t.Error("a fenced process issues certificates")
	}
	for _, probe := range []string{"/livez", "/readyz"} {
		if code, body := getOperations(t, w, probe); code != http.StatusServiceUnavailable || !strings.Contains(body, "another process") {
			t.Errorf("%s: %d %s", probe, code, body)
		}
	}
	if _, text := getOperations(t, w, "/metrics"); metric(t, text, "brevet_fenced") != 1 {
		t.Error("brevet_fenced is not 1")
	}
	w.Restart(t, servertest.Options{})
	servertest.Must(w.Caller(t, nil).Enroll(t.Context(), req))(t)
}

// The log has a limited number of messages about failed RPCs, and the metrics count all failures.
func TestFailureMessagesAreLimited(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.Wrap})
	req := servertest.Enrollment(t, w.Token(t, w.Register(t, "device", "device/1"), false), servertest.Key(t))
	nobody, begun := w.Caller(t, nil), time.Now()
	const failures = 40
	for range failures {
		store.FailWrites(1)
		_, err := nobody.Enroll(t.Context(), req)
		checkUnavailable(t, err)
	}
	if said, most := strings.Count(w.Log.String(), "an RPC failed"), 11+int(time.Since(begun)/(6*time.Second)); said < 10 || said > most {
		t.Errorf("%d failures are logged %d times, want 10 to %d", failures, said, most)
	}
	_, text := getOperations(t, w, "/metrics")
	if got := metric(t, text, "brevet_rpc_internal_errors_total"); got != failures {
		t.Errorf("the metrics count %v failures, want %d", got, failures)
	}
	servertest.Must(nobody.Enroll(t.Context(), req))(t)
}
