package server_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// mosquittoConfig is a format for the configuration in docs/relying-parties.md, with a directory and a port. Clients
// authenticate with certificates, and their user names are the subjects of these.
const mosquittoConfig = `user root
listener %[2]s 127.0.0.1
cafile %[1]s/root.pem
certfile %[1]s/broker.pem
keyfile %[1]s/broker.key
require_certificate true
use_subject_as_username true
acl_file %[1]s/acl
`

// TestMosquittoUsesSubjectsAsUsernames runs mosquitto with use_subject_as_username. User names are subjects in the form
// of RFC 4514, and only those in the ACL may publish.
func TestMosquittoUsesSubjectsAsUsernames(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{Profile: subjects})
	dir := t.TempDir()
	writePEM(t, filepath.Join(dir, "root.pem"), "CERTIFICATE", w.Root.Raw)
	broker := w.Enrolled(t, "device", "broker", func(r *brevetv1.CreateIdentityRequest) { r.Spec.Names = servertest.Names([]string{"localhost"}, nil) })
	writeHolder(t, w, broker, filepath.Join(dir, "broker"))
	acl := "user UID=site_7/pump-1\ntopic write plant/#\nuser CN=web/1\ntopic write plant/#\n"
	if err := os.WriteFile(filepath.Join(dir, "acl"), []byte(acl), 0o600); err != nil {
		t.Fatal(err)
	}
	port := startMosquitto(t, dir)
	for path, c := range map[string]struct {
		kind string
		may  bool
	}{"site_7/pump-1": {"device", true}, "web/1": {"workload", true}, "site_7/pump-2": {"device", false}, "web/2": {"workload", false}} {
		base := filepath.Join(t.TempDir(), "client")
		writeHolder(t, w, w.Enrolled(t, c.kind, path), base)
		out, err := exec.CommandContext(t.Context(), "mosquitto_pub", "-V", "5", "-q", "1", "-h", "localhost", "-p", port, "-t", "plant/1", "-m", "on",
			"--cafile", filepath.Join(dir, "root.pem"), "--cert", base+".pem", "--key", base+".key").CombinedOutput()
		if denied := bytes.Contains(out, []byte("Not authorized")); err != nil || denied == c.may {
			t.Errorf("%s %s: %v\n%s", c.kind, path, err, out)
		}
	}
}

// startMosquitto starts the broker in a directory, and returns its port.
func startMosquitto(t *testing.T, dir string) (port string) {
	t.Helper()
	free, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	port = address[strings.LastIndex(address, ":")+1:]
	config := filepath.Join(dir, "mosquitto.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, mosquittoConfig, dir, port), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context())) // the cleanup ends it and waits for the broker
	cmd := exec.CommandContext(ctx, "mosquitto", "-c", config)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatalf("mosquitto: %v: run deploy/setup.sh --test", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { cancel(); t.Logf("mosquitto ended: %v", <-ended) })
	for {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		if err == nil {
			_ = conn.Close()
			return port
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("mosquitto: %v\n%s", err, &said)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// writeHolder writes a holder's certificate chain to base.pem, and the key to base.key.
func writeHolder(t *testing.T, w *servertest.World, h *servertest.Holder, base string) {
	t.Helper()
	writePEM(t, base+".pem", "CERTIFICATE", h.Certificate.Raw, w.Issuing.Raw)
	writePEM(t, base+".key", "PRIVATE KEY", servertest.Must(x509.MarshalPKCS8PrivateKey(h.Key))(t))
}

func writePEM(t *testing.T, path, kind string, ders ...[]byte) {
	t.Helper()
	var text []byte
	for _, der := range ders {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}
