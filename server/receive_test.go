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

// refusalsSince counts the log entries about refusals of an identity by a rule, from those with an index above before.
func refusalsSince(t *testing.T, w *servertest.World, before int, identity string, rule pki.Rule) (n int) {
	t.Helper()
	for _, e := range w.Entries(t, before) {
		if e.Action == translog.RequestRefused && e.Identity.String() == identity && e.Facts()["rule"] == string(rule) {
			n++
		}
	}
	return n
}

// If a message does not decode, the server first checks whether the caller may call the RPC. Then it refuses the
// message with the rule request.malformed.
func TestMalformedMessagesAreRefused(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	nobody, device := w.Caller(t, nil), w.Enrolled(t, "device", "device/1")
	before := len(w.Entries(t, 0))
	for name, r := range rpcs {
		// An invalid tag, an invalid length, and a text that is not UTF-8.
		for _, malformedMessage := range []string{"\xff", "\x0a\x05half", "\x0a\x02\xff\xfe"} {
			asDevice, asNobody, asOperator := denied, unknown, malformed
			if r.anybody || r.identities {
				asDevice = malformed
			}
			if r.anybody {
				asNobody = malformed
			}
			if strings.HasPrefix(malformedMessage, "\x0a\x02") && !strings.HasSuffix(name, "GetIdentity") {
				continue // in most messages, field 1 is no text, so that the message would decode
			}
			for who, want := range map[*servertest.Caller]result{nobody: asNobody, device.Caller: asDevice, w.Operator.Caller: asOperator} {
				if err := send(t.Context(), who.Conn, name, []byte(malformedMessage)); err == nil {
					t.Errorf("%s accepts %x", name, malformedMessage)
				} else {
					servertest.Refused(t, err, want.code, want.rule)
					checkNoInternals(t, err)
				}
			}
		}
	}
	if n := refusalsSince(t, w, before, w.Operator.ID, pki.RuleRequest); n != 10 {
		t.Errorf("the log has %d entries about an operator's malformed messages, want ten and a count of the rest", n)
	}
	_, text := getOperations(t, w, "/metrics")
	series := fmt.Sprintf(`brevet_rpc_duration_seconds_count{code="InvalidArgument",rpc=%q}`, brevetv1.EnrollmentService_Enroll_FullMethodName)
	if got := metric(t, text, series); got != 6 {
		t.Errorf("%s is %v, want 6", series, got)
	}
}

// The server refuses a message above 256 KiB with the rule request.size, and gRPC itself refuses a message above 1 MiB.
// If the caller may not call the RPC, the server refuses it for that reason instead.
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
		_, text := getOperations(t, w, "/metrics")
		return metric(t, text, `brevet_refusals_total{rule="request.size"}`)
	}
	// The server counts an RPC after the client has got its response.
	for deadline := time.Now().Add(30 * time.Second); counted() < 6 && time.Now().Before(deadline); {
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

// zipped returns a gRPC message of zeros, compressed with gzip. size is its length before compression.
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

// The request of a unary RPC does not consist of exactly one valid message. The RPC ends with an error, and the
// connection stays open.
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
			// gRPC sends the status in the trailer, or in the header if there is no response message.
			field := func(key string) string { return resp.Trailer.Get(key) + resp.Header.Get(key) }
			code := servertest.Must(strconv.Atoi(field("Grpc-Status")))(t)
			st := spb.Status{Code: int32(code), Message: field("Grpc-Message")}
			if details := field("Grpc-Status-Details-Bin"); details != "" {
				if err := proto.Unmarshal(servertest.Must(base64.RawStdEncoding.DecodeString(details))(t), &st); err != nil {
					t.Fatal(err)
				}
			}
			err := status.ErrorProto(&st)
			servertest.Refused(t, err, c.want.code, c.want.rule)
			checkNoInternals(t, err)
		})
	}
	_, text := getOperations(t, w, "/metrics")
	series := fmt.Sprintf(`brevet_rpc_duration_seconds_count{code="Internal",rpc=%q}`, brevetv1.EnrollmentService_Enroll_FullMethodName)
	// If gRPC itself refuses an RPC, it sends the status before the handler returns. The server counts the RPC after
	// that.
	for begun := time.Now(); metric(t, text, series) < 8 && time.Since(begun) < 10*time.Second; _, text = getOperations(t, w, "/metrics") {
		time.Sleep(10 * time.Millisecond)
	}
	if got := metric(t, text, series); got != 8 {
		t.Errorf("%s is %v, want 8, including the calls that gRPC refuses", series, got)
	}
	if got := metric(t, text, "brevet_rpc_internal_errors_total"); got != 0 {
		t.Errorf("%v calls are counted as internal errors", got)
	}
}

// Callers start RPCs and send no message. These RPCs take no slots from others, and end after a timeout. An RPC whose
// message has arrived has no such timeout.
func TestSilentCallers(t *testing.T) {
	t.Parallel()
	s := &stuck{release: make(chan struct{})}
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
		for range 40 { // 120 RPCs in all, many more than the slots of one address
			stream := servertest.Must(silent.Conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, method))(t)
			opened = append(opened, stream)
		}
	}
	w.Enrolled(t, "device", "device/1")
	for _, stream := range opened {
		servertest.Refused(t, stream.RecvMsg(&brevetv1.EnrollResponse{}), codes.DeadlineExceeded, "")
	}
	close(s.release)
	if err := <-renewed; err != nil {
		t.Errorf("a call that has sent its message ends together with the silent ones: %v", err)
	}
}

// If a caller may not call an RPC, the server refuses it when the headers have arrived, without a message. The error is
// the same whether or not the RPC has a deadline.
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
