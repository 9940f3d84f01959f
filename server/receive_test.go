package server_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strconv"
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

// refusalsSince counts the log entries about refusals of an identity by a rule.
func refusalsSince(t *testing.T, w *servertest.World, before int, identity string, rule pki.Rule) (n int) {
	t.Helper()
	for _, e := range w.Entries(t, before) {
		if e.Action == translog.RequestRefused && e.Identity.String() == identity && e.Facts()["rule"] == string(rule) {
			n++
		}
	}
	return n
}

// A message that does not decode is refused like any other bad request: first by the access table, then by a rule.
func TestMalformedMessagesAreRefused(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	nobody, device := w.Caller(t, nil), w.Enrolled(t, "device", "device/1")
	before := len(w.Entries(t, 0))
	for name, r := range rpcs {
		for _, rubbish := range []string{"\xff", "\x0a\x05half", "\x0a\x02\xff\xfe"} { // an invalid tag, length and, in most messages, text
			asDevice, asNobody, asOperator := denied, unknown, malformed
			if r.anybody || r.identities {
				asDevice = malformed
			}
			if r.anybody {
				asNobody = malformed
			}
			if strings.HasPrefix(rubbish, "\x0a\x02") && !strings.HasSuffix(name, "GetIdentity") {
				continue // valid for this message: bytes, or an unknown field
			}
			for who, want := range map[*servertest.Caller]result{nobody: asNobody, device.Caller: asDevice, w.Operator.Caller: asOperator} {
				if err := send(t.Context(), who.Conn, name, []byte(rubbish)); err == nil {
					t.Errorf("%s accepts %x", name, rubbish)
				} else {
					servertest.Refused(t, err, want.code, want.rule)
					discreet(t, err)
				}
			}
		}
	}
	if n := refusalsSince(t, w, before, w.Operator.ID, pki.RuleRequest); n != 10 {
		t.Errorf("the log has %d entries about an operator's malformed messages, want ten and a count of the rest", n)
	}
	_, text := ask(t, w, "/metrics")
	series := fmt.Sprintf(`brevet_rpc_duration_seconds_count{code="InvalidArgument",rpc=%q}`, brevetv1.EnrollmentService_Enroll_FullMethodName)
	if got := metric(t, text, series); got != 6 {
		t.Errorf("%s is %v, want 6", series, got)
	}
}

// A message above the limit is refused by a rule, or by gRPC above the size that gRPC reads. A caller that may not call
// is refused for that reason.
func TestMessageTooLarge(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	nobody, before := w.Caller(t, nil), len(w.Entries(t, 0))
	const enroll, list, importCRL = "brevet.v1.EnrollmentService.Enroll", "brevet.v1.LogService.ListEntries", "brevet.v1.CRLService.ImportCRL"
	for size, want := range map[int]result{
		256<<10 + 1: {codes.InvalidArgument, pki.RuleSize}, 1 << 20: {codes.InvalidArgument, pki.RuleSize},
		1<<20 + 1: {codes.ResourceExhausted, ""}, 10 << 20: {codes.ResourceExhausted, ""},
	} {
		for method, want := range map[string]result{enroll: want, list: unknown, importCRL: unknown} {
			servertest.Refused(t, send(t.Context(), nobody.Conn, method, make([]byte, size)), want.code, want.rule)
		}
		for _, method := range []string{importCRL, list} {
			err := send(t.Context(), w.Operator.Conn, method, make([]byte, size))
			servertest.Refused(t, err, want.code, want.rule)
			if want.rule != "" && !strings.Contains(err.Error(), "262144") {
				t.Errorf("the error does not say what would pass: %v", err)
			}
		}
	}
	counted := func() float64 {
		_, text := ask(t, w, "/metrics")
		return metric(t, text, `brevet_refusals_total{rule="request.size"}`)
	}
	for deadline := time.Now().Add(30 * time.Second); counted() < 6 && time.Now().Before(deadline); { // counted after the response
		time.Sleep(5 * time.Millisecond)
	}
	if got := counted(); got != 6 {
		t.Errorf("the metrics count %v messages above the limit, want 6", got)
	}
	if n := refusalsSince(t, w, before, w.Operator.ID, pki.RuleSize); n != 4 {
		t.Errorf("the log has %d entries about an operator's large messages, want 4", n)
	}
	servertest.Must(w.Operator.GetHead(t.Context(), &brevetv1.GetHeadRequest{}))(t) // the connection still works
}

// zipped returns a compressed message of zeros.
func zipped(t *testing.T, size int) string {
	t.Helper()
	var b bytes.Buffer
	b.WriteString("\x01\x00\x00\x00\x00")
	z := gzip.NewWriter(&b)
	servertest.Must(z.Write(make([]byte, size)))(t)
	servertest.Must(0, z.Close())(t)
	binary.BigEndian.PutUint32(b.Bytes()[1:], uint32(b.Len()-5))
	return b.String()
}

// If a call does not consist of one message, gRPC refuses it or the error names a rule, and the connection stays open.
func TestCallsWithoutOneMessage(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	roots := x509.NewCertPool()
	roots.AddCert(w.Root)
	client := http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost"}}}
	t.Cleanup(client.CloseIdleConnections)
	for name, c := range map[string]struct {
		body, encoding string
		want           result
	}{
		"empty":                           {"", "", result{codes.Internal, ""}},
		"two messages":                    {"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "", result{codes.Internal, ""}},
		"half a header":                   {"\x00\x00", "", result{codes.Internal, ""}},
		"header only":                     {"\x00\x00\x00\x00\x01", "", result{codes.Internal, ""}},
		"half a message":                  {"\x00\x00\x00\x00\x02\x0a", "", result{codes.Internal, ""}},
		"a message and half a header":     {"\x00\x00\x00\x00\x00\x00", "", result{codes.Internal, ""}},
		"compressed without an algorithm": {"\x01\x00\x00\x00\x00", "", result{codes.Internal, ""}},
		"unknown flag":                    {"\xff\x00\x00\x00\x00", "", result{codes.Internal, ""}},
		"maximum length":                  {"\x00\xff\xff\xff\xff", "", result{codes.ResourceExhausted, ""}},
		"does not decode":                 {"\x00\x00\x00\x00\x01\xff", "", malformed},
		"one byte too long":               {"\x00\x00\x04\x00\x01" + strings.Repeat("\x00", 256<<10+1), "", result{codes.InvalidArgument, pki.RuleSize}},
		"unknown compression":             {"\x01\x00\x00\x00\x00", "lzma", result{codes.Unimplemented, ""}},
		"compressed, too long":            {zipped(t, 256<<10+1), "gzip", result{codes.InvalidArgument, pki.RuleSize}},
		"compressed, much too long":       {zipped(t, 16<<20), "gzip", result{codes.ResourceExhausted, ""}},
	} {
		t.Run(name, func(t *testing.T) {
			r := servertest.Must(http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+w.GRPC+brevetv1.EnrollmentService_Enroll_FullMethodName, strings.NewReader(c.body)))(t)
			r.Header.Set("Content-Type", "application/grpc")
			r.Header.Set("Te", "trailers")
			if c.encoding != "" {
				r.Header.Set("Grpc-Encoding", c.encoding)
			}
			resp := servertest.Must(client.Do(r))(t)
			defer func() { _ = resp.Body.Close() }()
			servertest.Must(io.Copy(io.Discard, resp.Body))(t)
			said := func(key string) string { return resp.Trailer.Get(key) + resp.Header.Get(key) } // one of them is empty
			code := servertest.Must(strconv.Atoi(said("Grpc-Status")))(t)
			st := spb.Status{Code: int32(code), Message: said("Grpc-Message")}
			if details := said("Grpc-Status-Details-Bin"); details != "" {
				if err := proto.Unmarshal(servertest.Must(base64.RawStdEncoding.DecodeString(details))(t), &st); err != nil {
					t.Fatal(err)
				}
			}
			err := status.ErrorProto(&st)
			servertest.Refused(t, err, c.want.code, c.want.rule)
			discreet(t, err)
		})
	}
	_, text := ask(t, w, "/metrics")
	series := fmt.Sprintf(`brevet_rpc_duration_seconds_count{code="Internal",rpc=%q}`, brevetv1.EnrollmentService_Enroll_FullMethodName)
	// If gRPC refuses a call, it sends the status before the handler returns, and the call is counted after that.
	for begun := time.Now(); metric(t, text, series) < 8 && time.Since(begun) < 10*time.Second; _, text = ask(t, w, "/metrics") {
		time.Sleep(10 * time.Millisecond)
	}
	if got := metric(t, text, series); got != 8 {
		t.Errorf("%s is %v, want 8, including the calls that gRPC refuses", series, got)
	}
	if got := metric(t, text, "brevet_rpc_internal_errors_total"); got != 0 {
		t.Errorf("%v calls are counted as internal errors", got)
	}
}

// Callers that open a call and send nothing take no slots from others, and their calls end by a timeout. Calls that
// have sent their message have no such timeout.
func TestSilentCallers(t *testing.T) {
	t.Parallel()
	s := &stuck{let: make(chan struct{})}
	w := servertest.New(t, ground, servertest.Options{Wrap: s.wrap})
	slow := w.Enrolled(t, "device", "device/slow")
	s.id = slow.ID
	renewed := make(chan error, 1)
	go func() {
		_, err := slow.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
		renewed <- err
	}()
	awaitQueue(t, w, "renewals", 1, 0)
	silent := w.Caller(t, nil)
	var opened []grpc.ClientStream
	for _, method := range []string{brevetv1.EnrollmentService_Enroll_FullMethodName, "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"} {
		for range 40 { // together with those of the others, many more than the slots of one address
			stream := servertest.Must(silent.Conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, method))(t)
			opened = append(opened, stream)
		}
	}
	w.Enrolled(t, "device", "device/1")
	for _, stream := range opened {
		servertest.Refused(t, stream.RecvMsg(&brevetv1.EnrollResponse{}), codes.DeadlineExceeded, "")
	}
	close(s.let)
	if err := <-renewed; err != nil {
		t.Errorf("a call that has sent its message ends together with the silent ones: %v", err)
	}
}

// Callers that may not call are refused when their headers arrive, with the same error whether or not the call has a
// deadline.
func TestRefusalsNeedNoMessage(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	device, revokedDevice := w.Enrolled(t, "device", "device/1"), w.Enrolled(t, "device", "device/2")
	w.Revoke(t, revokedDevice.Certificate, "keyCompromise")
	soon, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	for _, ctx := range []context.Context{t.Context(), soon} {
		for _, c := range []struct {
			caller *servertest.Caller
			method string
			want   result
		}{
			{w.Caller(t, nil), brevetv1.IdentityService_CreateIdentity_FullMethodName, unknown},
			{w.Caller(t, nil), brevetv1.LogService_ListEntries_FullMethodName, unknown},
			{w.Caller(t, nil), "/brevet.v1.IdentityService/DeleteIdentity", result{codes.Unimplemented, pki.RuleMethod}},
			{device.Caller, brevetv1.IdentityService_CreateIdentity_FullMethodName, denied},
			{device.Caller, brevetv1.CertificateService_IssueCertificates_FullMethodName, denied},
			{revokedDevice.Caller, brevetv1.EnrollmentService_Renew_FullMethodName, revoked},
		} {
			stream := servertest.Must(c.caller.Conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, c.method))(t)
			servertest.Refused(t, stream.RecvMsg(&brevetv1.EnrollResponse{}), c.want.code, c.want.rule)
		}
	}
}
