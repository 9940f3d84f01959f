package server_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

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

// A message over the bound is refused unread, counted and logged, and who may not call learns that instead.
func TestAMessageThatIsTooLarge(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	nobody, before := w.Caller(t, nil), len(w.Entries(t, 0))
	for _, size := range []int{257 << 10, 10 << 20} {
		for method, want := range map[string]result{
			"brevet.v1.EnrollmentService.Enroll": {codes.ResourceExhausted, pki.RuleSize}, "brevet.v1.LogService.ListEntries": unknown, "brevet.v1.CRLService.ImportCRL": unknown,
		} {
			err := send(t.Context(), nobody.Conn, method, make([]byte, size))
			servertest.Refused(t, err, want.code, want.rule)
		}
		for _, method := range []string{"brevet.v1.CRLService.ImportCRL", "brevet.v1.LogService.ListEntries"} {
			err := send(t.Context(), w.Operator.Conn, method, make([]byte, size))
			servertest.Refused(t, err, codes.ResourceExhausted, pki.RuleSize)
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

// Whatever octets are in the place of a call's one message, the answer names a rule.
func TestCallsWithoutOneMessage(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	roots := x509.NewCertPool()
	roots.AddCert(w.Root)
	client := http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost"}}}
	t.Cleanup(client.CloseIdleConnections)
	for name, c := range map[string]struct {
		octets string
		rule   pki.Rule
		says   string
	}{
		"nothing":                     {"", pki.RuleRequest, "has not one message"},
		"two messages":                {"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", pki.RuleRequest, "has not one message"},
		"half a header":               {"\x00\x00", pki.RuleRequest, "ends within a message"},
		"a header alone":              {"\x00\x00\x00\x00\x01", pki.RuleRequest, "ends within a message"},
		"half a message":              {"\x00\x00\x00\x00\x02\x0a", pki.RuleRequest, "ends within a message"},
		"a message and half a header": {"\x00\x00\x00\x00\x00\x00", pki.RuleRequest, "has not one message"},
		"a compressed message":        {"\x01\x00\x00\x00\x00", pki.RuleRequest, "is compressed"},
		"an unknown flag":             {"\xff\x00\x00\x00\x00", pki.RuleRequest, "is compressed"},
		"the longest length":          {"\x00\xff\xff\xff\xff", pki.RuleSize, "4294967295 octets, and 262144 are the most"},
		"one octet too long":          {"\x00\x00\x04\x00\x01", pki.RuleSize, "262145 octets"},
	} {
		t.Run(name, func(t *testing.T) {
			r := servertest.Must(http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+w.GRPC+brevetv1.EnrollmentService_Enroll_FullMethodName, strings.NewReader(c.octets)))(t)
			r.Header.Set("Content-Type", "application/grpc")
			r.Header.Set("Te", "trailers")
			resp := servertest.Must(client.Do(r))(t)
			defer func() { _ = resp.Body.Close() }()
			servertest.Must(io.Copy(io.Discard, resp.Body))(t)
			details := resp.Trailer.Get("Grpc-Status-Details-Bin") + resp.Header.Get("Grpc-Status-Details-Bin") // where nothing else is said
			var st spb.Status
			if err := proto.Unmarshal(servertest.Must(base64.RawStdEncoding.DecodeString(details))(t), &st); err != nil {
				t.Fatal(err)
			}
			code := codes.InvalidArgument
			if c.rule == pki.RuleSize {
				code = codes.ResourceExhausted
			}
			err := status.ErrorProto(&st)
			servertest.Refused(t, err, code, c.rule)
			discreet(t, err)
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
		})
	}
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
