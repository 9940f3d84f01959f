//go:build judges

package server_test

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/servertest"
)

// estWorld starts a server for other clients of EST, and returns a directory with a device's files and device.token.
func estWorld(t *testing.T) (w *servertest.World, dir, port string) {
	t.Helper()
	acme := newMaker(t)
	w = servertest.New(t, ground, servertest.Options{Policy: estPolicy(acme), EST: server.EST{MinTLS: tls.VersionTLS12}})
	dir = estDirectory(t, w, acme.device(t, "R17", servertest.Key(t)))
	token := tokenText(t, w, w.Register(t, "device", "meter/1"), false)
	if err := os.WriteFile(filepath.Join(dir, "device.token"), []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	_, port, _ = strings.Cut(w.HTTPS, ":")
	return w, dir, port
}

// TestESTWithStrongSwan checks the row for strongSwan in docs/est.md.
func TestESTWithStrongSwan(t *testing.T) {
	t.Parallel()
	_, dir, port := estWorld(t)
	url := "https://localhost:" + port
	const newCSR = "pki --gen --type ecdsa --size 256 --outform pem > device.key; pki --req --type ecdsa --in device.key --dn 'UID=meter/1' --outform der > device.req; "
	const read = "; openssl x509 -in device.pem -noout -ext subjectAltName"
	out := runIn(t, dir, "pki --estca --url "+url+" --cacert roots.pem --caout cas 2>&1; ls cas*")
	if strings.Count(out, "cas") < 2 {
		t.Errorf("pki --estca: %s", out)
	}
	for _, c := range []struct{ name, script, want string }{
		{"a token", newCSR + "pki --est --url " + url +
			` --in device.req --cacert roots.pem --userpass "est:$(cat device.token)" --outform pem > device.pem` + read, "/meter/1"},
		{"a renewal", "cp device.pem old.pem; cp device.key old.key; " + newCSR + "pki --est --url " + url +
			" --in device.req --cacert roots.pem --cert old.pem --key old.key --outform pem > device.pem" + read, "/meter/1"},
	} {
		if out, err := tryIn(t, dir, c.script); err != nil || !strings.Contains(out, "URI:spiffe://"+servertest.TrustDomain+c.want) {
			t.Errorf("%s: %v, %s", c.name, err, out)
		}
	}
	// It sends every request with a certificate to simplereenroll, where a factory certificate proves nothing.
	out, err := tryIn(t, dir, newCSR+"pki --est --url "+url+" --in device.req --cacert roots.pem --cert factory.pem --key factory.key")
	if err == nil || !strings.Contains(out, "HTTP 403") {
		t.Errorf("a factory certificate: %v, %s", err, out)
	}
}

// TestESTWithBouncyCastle checks the row for Bouncy Castle in docs/est.md.
func TestESTWithBouncyCastle(t *testing.T) {
	t.Parallel()
	w, dir, port := estWorld(t)
	linked := tokenText(t, w, w.Register(t, "device", "meter/2"), false)
	if err := os.WriteFile(filepath.Join(dir, "linked.token"), []byte(linked), 0o600); err != nil {
		t.Fatal(err)
	}
	source := servertest.Must(filepath.Abs("est/testdata/Est.java"))(t)
	java := "java -cp /usr/share/java/bcprov.jar:/usr/share/java/bcutil.jar:/usr/share/java/bcpkix.jar:/usr/share/java/bctls.jar " + source + " localhost:" + port + " "
	for _, c := range []struct{ name, arguments, want string }{
		{"the CAs", "meters roots.pem cacerts", "CA CN=Fleet Root G1\nCA CN=Fleet Issuing G1"},
		{"attributes", "meters roots.pem csrattrs", "has attributes: true"},
		{"a token", "meters roots.pem token device.token device.p12", "/meter/1"},
		{"a factory certificate", "routers roots.pem certificate factory.p12 device.p12", "/router/R17"},
		{"a renewal", "routers roots.pem renew device.p12 renewed.p12", "/router/R17"},
		{"a linked CSR", "linked roots.pem linked linked.token linked.p12", "/meter/2"},
	} {
		if out, err := tryIn(t, dir, java+c.arguments); err != nil || !strings.Contains(out, c.want) {
			t.Errorf("%s: %v, %s", c.name, err, out)
		}
	}
}
