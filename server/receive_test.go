package server_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

// refusalsSince counts the entries of refusals that an identity met by a rule.
func refusalsSince(t *testing.T, w *servertest.World, before int, identity string, rule pki.Rule) (n int) {
	t.Helper()
	for _, e := range w.Entries(t, before) {
		if e.Action == translog.RequestRefused && e.Identity.String() == identity && e.Facts["rule"] == string(rule) {
			n++
		}
	}
	return n
}

// Octets that are no message of the call are refused like any other bad request: by the gate first, then by a rule.
func TestRubbishIsRefused(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	nobody, device := w.Caller(t, nil), w.Enrolled(t, "device", "device/1")
	before := len(w.Entries(t, 0))
	for name, r := range rpcs {
		for _, rubbish := range []string{"\xff", "\x0a\x05half", "\x0a\x02\xff\xfe"} { // neither field nor length nor, in most calls, text
			asDevice, asNobody, asOperator := denied, unknown, malformed
			if r.anybody || r.identities {
				asDevice = malformed
			}
			if r.anybody {
				asNobody = malformed
			}
			if strings.HasPrefix(rubbish, "\x0a\x02") && !strings.HasSuffix(name, "GetIdentity") {
				continue // octets to one call, an unknown field to another
			}
			for who, want := range map[*servertest.Caller]result{nobody: asNobody, device.Caller: asDevice, w.Operator.Caller: asOperator} {
				if err := send(t.Context(), who.Conn, name, []byte(rubbish)); err == nil {
					t.Errorf("%s takes %x", name, rubbish)
				} else {
					servertest.Refused(t, err, want.code, want.rule)
					discreet(t, err)
				}
			}
		}
	}
	if n := refusalsSince(t, w, before, w.Operator.ID, pki.RuleRequest); n != 10 {
		t.Errorf("the log has %d entries of an operator's rubbish, want ten: the rest is a count", n)
	}
	_, text := ask(t, w, "/metrics")
	series := fmt.Sprintf(`brevet_call_seconds_count{code="InvalidArgument",rpc=%q}`, brevetv1.EnrollmentService_Enroll_FullMethodName)
	if got := metric(t, text, series); got != 6 {
		t.Errorf("%s is %v, want 6", series, got)
	}
}

// gRPC answers a message over the bound before it has read it. That is counted and logged as well, and who may not call
// learns that instead.
func TestAMessageThatIsTooLarge(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	nobody, before := w.Caller(t, nil), len(w.Entries(t, 0))
	for _, size := range []int{257 << 10, 10 << 20} {
		for method, want := range map[string]result{
			"brevet.v1.EnrollmentService.Enroll": {codes.ResourceExhausted, ""}, "brevet.v1.LogService.ListEntries": unknown, "brevet.v1.CRLService.ImportCRL": unknown,
		} {
			err := send(t.Context(), nobody.Conn, method, make([]byte, size))
			servertest.Refused(t, err, want.code, want.rule)
		}
		for _, method := range []string{"brevet.v1.CRLService.ImportCRL", "brevet.v1.LogService.ListEntries"} {
			err := send(t.Context(), w.Operator.Conn, method, make([]byte, size))
			servertest.Refused(t, err, codes.ResourceExhausted, "")
			if !strings.Contains(err.Error(), "262144") {
				t.Errorf("the answer does not say what would pass: %v", err)
			}
		}
	}
	counted := func() float64 {
		_, text := ask(t, w, "/metrics")
		return metric(t, text, `brevet_refusals_total{rule="request.size"}`)
	}
	for deadline := time.Now().Add(30 * time.Second); counted() < 6 && time.Now().Before(deadline); { // after the answer
		time.Sleep(5 * time.Millisecond)
	}
	if got := counted(); got != 6 {
		t.Errorf("the metrics count %v messages that are too large, want 6", got)
	}
	if n := refusalsSince(t, w, before, w.Operator.ID, pki.RuleSize); n != 4 {
		t.Errorf("the log has %d entries of an operator's huge messages, want 4", n)
	}
	servertest.Must(w.Operator.GetHead(t.Context(), &brevetv1.GetHeadRequest{}))(t) // the connection is still good
}

// Callers that open a call and send nothing take no place from those who do.
func TestSilentCallersTakeNoPlace(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	silent := w.Caller(t, nil)
	for range 100 { // far more than there are places for one address, and for all
		_, err := silent.Conn.NewStream(t.Context(), &grpc.StreamDesc{}, brevetv1.EnrollmentService_Enroll_FullMethodName)
		if err != nil {
			t.Fatal(err)
		}
	}
	w.Enrolled(t, "device", "device/1")
}
