package server_test

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/servertest"
)

// Clients without a certificate send malformed input to every port. This causes at most ten lines per minute and rule in
// the server's log, and as many entries in the audit log about refused evidence.
func TestMalformedInputIsCounted(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	nobody := w.Caller(t, nil)
	entries, before := len(w.Entries(t, 0)), w.Log.String()
	random := make([]byte, 512)
	_, _ = rand.Read(random)
	for range 20 {
		for _, port := range []string{w.GRPC, w.HTTP, w.Operations} {
			for _, text := range []string{
				string(random), "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + string(random), "GET /%zz HTTP/1.1\r\n\r\n",
				"GET /" + strings.Repeat("x", 300) + "\nlevel=ERROR HTTP/1.1\r\nHost: a\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + string(random),
				"POST /ocsp HTTP/1.1\r\nHost: a\r\nContent-Type: application/ocsp-request\r\nContent-Length: 512\r\n\r\n" + string(random),
			} {
				sendBytes(t, port, text)
			}
		}
		secured := servertest.Must(tls.Dial("tcp", w.GRPC, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}))(t)
		_, _ = secured.Write(random) // the server may have closed the connection
		_ = secured.Close()
		_, err := nobody.Enroll(t.Context(), &brevetv1.EnrollRequest{RequestId: random[:16], Evidence: servertest.TokenEvidence(random[:32]), Csr: random})
		if err == nil {
			t.Fatal("a malformed request is enrolled")
		}
		if _, err = nobody.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{}); err == nil {
			t.Fatal("a caller without a certificate lists identities")
		}
	}
	grown, lines := strings.TrimPrefix(w.Log.String(), before), map[string]int{}
	for line := range strings.Lines(grown) {
		_, rest, _ := strings.Cut(line, `"rule":"`)
		rule, _, _ := strings.Cut(rest, `"`)
		lines[rule]++
	}
	if len(lines) != 2 || lines["token.invalid"] != 10 || lines["access.unauthenticated"] != 10 {
		t.Errorf("the log has grown by %v lines:\n%s", lines, grown)
	}
	if n := len(w.Entries(t, 0)); n != entries+10 {
		t.Errorf("the audit log has %d new entries, want 10 about unknown tokens", n-entries)
	}
}

// sendBytes sends bytes to a port, and reads until the server closes the connection.
func sendBytes(t *testing.T, port, text string) {
	t.Helper()
	c := servertest.Must(net.Dial("tcp", port))(t)
	defer c.Close()
	_, _ = io.WriteString(c, text) // fails if the server closes the connection before it has read everything
	_ = c.(*net.TCPConn).CloseWrite()
	servertest.Must(0, c.SetReadDeadline(time.Now().Add(time.Minute)))(t)
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("port %s keeps a finished connection open, after %.40q", port, text)
	}
}

// A client that opens as many connections to the operations port as the server accepts from one address does not keep
// other addresses from connecting.
func TestOperationsPortIsShared(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	var held []net.Conn
	defer func() {
		for _, c := range held {
			_ = c.Close()
		}
	}()
	for range server.MaxProbes {
		c := servertest.Must(net.Dial("tcp", w.Operations))(t)
		held = append(held, c)
	}
	other := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).DialContext,
	}}
	resp := servertest.Must(other.Get("http://" + w.Operations + "/metrics"))(t)
	defer resp.Body.Close()
	text := servertest.Must(io.ReadAll(resp.Body))(t)
	if !bytes.Contains(text, []byte("\nbrevet_connections_refused_total{port=\"operations\"} 32\n")) {
		t.Errorf("of %d connections, fewer than half are refused:\n%s", len(held), text)
	}
}
