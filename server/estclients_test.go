package server_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/servertest"
)

// estDirectory writes the files that clients of EST need: roots.pem, and for a device factory.pem, factory.key and
// factory.p12, whose password is "password". It returns the directory.
func estDirectory(t *testing.T, w *servertest.World, device *tls.Certificate) string {
	t.Helper()
	dir := t.TempDir()
	writeBlock(t, filepath.Join(dir, "roots.pem"), "CERTIFICATE", w.Root.Raw)
	writeBlock(t, filepath.Join(dir, "factory.pem"), "CERTIFICATE", device.Certificate[0])
	writeBlock(t, filepath.Join(dir, "factory.key"), "PRIVATE KEY", servertest.Must(x509.MarshalPKCS8PrivateKey(device.PrivateKey))(t))
	runIn(t, dir, "openssl pkcs12 -export -in factory.pem -inkey factory.key -out factory.p12 -passout pass:password")
	return dir
}

func writeBlock(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// runIn runs a shell script in a directory, and returns what it prints.
func runIn(t *testing.T, dir, script string) string {
	t.Helper()
	out, err := tryIn(t, dir, script)
	if err != nil {
		t.Fatalf("%s: %v (run deploy/setup.sh --test)\n%s", script, err, out)
	}
	return out
}

func tryIn(t *testing.T, dir, script string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-eu", "-c", script)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestESTWithCurl runs the command lines of docs/est.md.
func TestESTWithCurl(t *testing.T) {
	t.Parallel()
	acme := newMaker(t)
	w := servertest.New(t, ground, servertest.Options{Policy: estPolicy(acme), EST: server.EST{MinTLS: tls.VersionTLS12}})
	dir := estDirectory(t, w, acme.device(t, "R17", servertest.Key(t)))
	token := tokenText(t, w, w.Register(t, "device", "meter/1"), false)
	if err := os.WriteFile(filepath.Join(dir, "device.token"), []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(w.HTTPS, ":")
	base := "https://localhost:" + port + "/.well-known/est/"
	const withToken = `printf 'user = "est:%s"' "$(cat device.token)" | curl --config - `
	arguments := "--silent --show-error --cacert roots.pem --header 'Content-Type: application/pkcs10' --data-binary @device.p10 --fail-with-body -o device.p7 "
	const newCSR = "openssl ecparam -name prime256v1 -genkey -noout -out device.key; " +
		"openssl req -new -key device.key -subj / -outform DER | openssl base64 -out device.p10; "
	const read = "; openssl base64 -d -A -in device.p7 | openssl pkcs7 -inform DER -print_certs -out device.pem; " +
		"openssl verify -CAfile roots.pem -untrusted cas.pem device.pem; openssl x509 -in device.pem -noout -subject -ext subjectAltName"
	runIn(t, dir, "curl --silent --show-error --fail --cacert roots.pem "+base+"cacerts | openssl base64 -d -A | openssl pkcs7 -inform DER -print_certs -out cas.pem")
	for _, c := range []struct{ name, script, want string }{
		{"a token", newCSR + withToken + arguments + base + "simpleenroll" + read, "/meter/1"},
		{"a renewal", "cp device.key old.key; cp device.pem old.pem; openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout new.key -subj / -outform DER 2>/dev/null" +
			" | openssl base64 -out device.p10; curl " + arguments + "--cert old.pem --key old.key " + base + "simplereenroll" + read, "/meter/1"},
		{"a factory certificate", newCSR + "curl " + arguments + "--cert factory.pem --key factory.key " + base + "simpleenroll" + read, "/router/R17"},
		{"TLS 1.2", newCSR + "curl " + arguments + "--tls-max 1.2 --cert factory.pem --key factory.key " + base + "simpleenroll" + read, "/router/R17"},
	} {
		if out := runIn(t, dir, c.script); !strings.Contains(out, "URI:spiffe://"+servertest.TrustDomain+c.want) || !strings.Contains(out, "device.pem: OK") {
			t.Errorf("%s: %s", c.name, out)
		}
	}
	out, err := tryIn(t, dir, newCSR+withToken+arguments+base+"simpleenroll")
	text, _ := os.ReadFile(filepath.Join(dir, "device.p7"))
	if err == nil || !strings.Contains(string(text), "[token.bound]") {
		t.Errorf("the token again: %v, %s%s", err, out, text)
	}
	out, err = tryIn(t, dir, "curl "+arguments+base+"simpleenroll")
	text, _ = os.ReadFile(filepath.Join(dir, "device.p7"))
	if err == nil || !strings.Contains(string(text), "send an enrollment token as the password") {
		t.Errorf("no token: %v, %s%s", err, out, text)
	}
}
