package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
)

// stubHSM is an HSM whose self-test returns lost.
type stubHSM struct{ lost error }

func (h *stubHSM) Prove(context.Context) error { return h.lost }
func (h *stubHSM) Calls() (now, most int)      { return 2, 3 }
func (h *stubHSM) Failures() int               { return 4 }

// disk is a Disk with a given amount of free space, or with an error.
type disk struct {
	free int64
	err  error
}

func (d *disk) Sizes() map[string]int64 { return map[string]int64{"store": 5} }
func (d *disk) Free() (int64, error)    { return d.free, d.err }

// temporaryError is a temporary error.
type temporaryError struct{ error }

func (temporaryError) Temporary() bool { return true }
func (e temporaryError) Unwrap() error { return e.error }

// lostError is a failure of a store without a connection to its database.
type lostError struct{ temporaryError }

func (lostError) IsPassing() bool { return true }

// fullError is a failure of a store that lasts although the lease is renewed.
type fullError struct{ temporaryError }

func (fullError) IsPassing() bool { return false }

// failingJournal fails every transaction with err. The lease is always renewed, and renewing is called meanwhile.
type failingJournal struct {
	ca.Journal
	err      error
	renewing func()
}

func (j *failingJournal) Write(context.Context, ca.Epoch, []ca.BatchCommit, []ca.Intent) ([]ca.Results, error) {
	return nil, j.err
}

func (j *failingJournal) Renew(context.Context, ca.Epoch) (bool, error) {
	if j.renewing != nil {
		j.renewing()
	}
	return false, nil
}

// bulkStore returns the open bulk revocations, or an error.
type bulkStore struct {
	bulk []revocation.BulkRevocation
	err  error
}

func (o *bulkStore) OpenBulk(context.Context) ([]revocation.BulkRevocation, error) {
	return o.bulk, o.err
}

// bench is a Recorder with an HSM, a disk, and a clock that only the test advances.
type bench struct {
	*Recorder
	hsm  *stubHSM
	disk *disk
	now  time.Time
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{hsm: &stubHSM{}, disk: &disk{free: 2 * minFree}, now: time.Unix(1<<31, 0)}
	id := pki.IssuerID{}
	r, err := NewRecorder(t.Context(), Config{
		HSMs: []IssuingHSM{{HSM: b.hsm, Name: "test", Issuers: []pki.IssuerID{id}}}, Issuer: id,
		Clock: func() time.Time { return b.now }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	b.Recorder = r
	return b
}

// get returns the status code and the body of a response of the operations port.
func (b *bench) get(h *Health, path string) (int, string) {
	w := httptest.NewRecorder()
	b.Operations(h).ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

func TestReadinessNamesEveryReason(t *testing.T) {
	b := newBench(t)
	h := NewHealth(func(context.Context) error { return nil }, b.Signing(), b.Writable(b.disk))
	want := func(when string, reasons ...string) {
		t.Helper()
		code, body := b.get(h, "/readyz")
		if (code == http.StatusOK) != (len(reasons) == 0) || len(reasons) > 0 && strings.Count(body, `\n`) != len(reasons)-1 {
			t.Errorf("after %s, /readyz returns %d %s", when, code, body)
		}
		for _, reason := range reasons {
			if !strings.Contains(body, reason) {
				t.Errorf("after %s, the reason %q is missing: %s", when, reason, body)
			}
		}
		if code, body := b.get(h, "/livez"); code != http.StatusOK {
			t.Errorf("after %s, /livez returns %d %s", when, code, body)
		}
	}
	want("the start")
	b.Failure(errors.New("for good"))
	b.Failure(nil) // the RPC panicked
	want("permanent failures")
	b.Failure(temporaryError{errors.New("not now")})
	want("a temporary failure", "the store failed")
	b.now = b.now.Add(StoreDoubt)
	want("another minute")
	b.hsm.lost = errors.New("lost")
	b.ProveHSMs(t.Context())
	b.Failure(temporaryError{errors.New("not now")}) // attributed to the HSM
	want("the loss of the HSM", "the last signature of the HSM failed")
	b.disk.free = minFree - 1
	want("the disk is full too", "the last signature of the HSM failed", "the disk is full")
	b.disk.err, b.hsm.lost = errors.New("gone"), nil
	b.Begin(t.Context(), ca.StepSign, pki.IssuerID{})(nil)
	want("the HSM signed and the disk failed", "the store cannot be written")
}

// TestReadyWhenTheConnectionIsBack renews the lease after failures, some of which have passed then.
func TestReadyWhenTheConnectionIsBack(t *testing.T) {
	lost := fmt.Errorf("record a token: %w", lostError{temporaryError{errors.New("no connection")}})
	fenced := fmt.Errorf("nothing was delivered: %w", temporaryError{ca.ErrFenced})
	for what, err := range map[string]error{"a lost connection": lost, "an epoch that was fenced": fenced} {
		b, j := newBench(t), &failingJournal{err: err}
		h := NewHealth(func(context.Context) error { return nil }, b.Writable(b.disk))
		fail := func() {
			b.Failure(err)
			_, _ = b.Journal(j).Write(t.Context(), 1, nil, nil)
		}
		want := func(when string, status int) {
			t.Helper()
			if _, err := b.Journal(j).Renew(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			if code, body := b.get(h, "/readyz"); code != status {
				t.Errorf("after %s, %s and a renewed lease, /readyz returns %d %s", what, when, code, body)
			}
		}
		fail()
		want("nothing else", http.StatusOK)
		fail()
		b.Failure(temporaryError{context.Canceled})
		want("a caller that did not wait", http.StatusOK)
		j.renewing = fail
		if _, err := b.Journal(j).Renew(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		code, body := b.get(h, "/readyz")
		if isLost := errors.Is(err, lost); (code == http.StatusServiceUnavailable) != isLost {
			t.Errorf("after %s during a renewal, /readyz returns %d %s", what, code, body)
		}
		j.renewing = nil
		want("another renewal", http.StatusOK)
		b.Failure(fmt.Errorf("read: %w", fullError{temporaryError{errors.New("no space")}}))
		fail() // which does not mean that there is space
		want("a full disk", http.StatusServiceUnavailable)
		err, j.err = lost, nil
		_, _ = b.Journal(j).Write(t.Context(), 1, nil, nil)
		b.Failure(err)
		want("a transaction", http.StatusOK)
		j.err = errors.New("the store is damaged")
		_, _ = b.Journal(j).Write(t.Context(), 1, nil, nil)
		want("a transaction that fails for good", http.StatusServiceUnavailable)
	}
}

func TestGaugesCountWhatCannotBeRead(t *testing.T) {
	b, open := newBench(t), &bulkStore{bulk: []revocation.BulkRevocation{{Total: 5, Applied: 2}, {Total: 0, Applied: 1}}}
	b.Register(NewGauges(b.OfHSMs(), OfConnections(7), OfBulkRevocations(open), OfDisk(b.disk)))
	h := NewHealth(func(context.Context) error { return nil })
	want := func(present bool, lines ...string) {
		t.Helper()
		_, text := b.get(h, "/metrics")
		for _, line := range lines {
			if strings.Contains(text, "\n"+line+"\n") != present {
				t.Errorf("metrics contain %q: %v, want %v", line, !present, present)
			}
		}
	}
	want(true, `brevet_hsm_up{hsm="test"} 1`, `brevet_hsm_consecutive_failures{hsm="test"} 4`, "brevet_connections_limit 7",
		"brevet_bulk_revocations_open 2", `brevet_bulk_revocation_certificates{state="pending"} 3`,
		`brevet_bulk_revocation_certificates{state="applied"} 3`, `brevet_file_bytes{file="store"} 5`, "brevet_scrape_errors 0")
	open.err, b.disk.err = errors.New("not now"), errors.New("gone")
	want(true, "brevet_scrape_errors 1", "brevet_disk_free_bytes 0")
	want(false, "brevet_bulk_revocations_open 2")
}

func TestCallsAreCounted(t *testing.T) {
	b := newBench(t)
	b.Call(t.Context(), "/a/B", codes.OK, time.Second, nil)
	b.Call(t.Context(), "/a/B", codes.PermissionDenied, time.Second, pki.Refuse(pki.RuleAccess, "fix", "detail"))
	b.Handshake(errors.New("bad certificate"))
	_, text := b.get(NewHealth(func(context.Context) error { return nil }), "/metrics")
	for _, line := range []string{
		`brevet_rpc_duration_seconds_count{code="OK",rpc="/a/B"} 1`, `brevet_rpc_duration_seconds_count{code="PermissionDenied",rpc="/a/B"} 1`,
		`brevet_refusals_total{rule="access.denied"} 1`, `brevet_tls_handshakes_total{result="failed"} 1`,
		`brevet_tls_handshakes_total{result="ok"} 0`,
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("%q is not in the metrics", line)
		}
	}
}
