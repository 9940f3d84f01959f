package x5c_test

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// now is the time of the tests. OpenSSL makes the certificates with validity periods around it.
var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// factory makes certificates with OpenSSL, as a manufacturer does. The files of each certificate have its name.
type factory struct{ dir string }

// spec describes a certificate. The zero value is a device with a P-256 key, and valid at now.
type spec struct {
	subject    string
	key        string   // an argument of genpkey; empty for P-256
	extensions []string // lines of an OpenSSL configuration file
	start, end string   // YYYYMMDDHHMMSSZ
	digest     string
}

const (
	caExtensions = "basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign,cRLSign"
	forever      = "99991231235959Z" // RFC 5280 §4.1.2.5
	hardware     = "subjectAltName=critical,otherName:1.3.6.1.5.5.7.8.4;SEQ:hardware\n[hardware]\ntype=OID:1.3.6.1.4.1.99999.7\n"
)

// newFactory returns a factory with the root "root" and the issuing CA "issuing" below it.
func newFactory(t testing.TB) *factory {
	t.Helper()
	f := &factory{t.TempDir()}
	f.issue(t, "root", "root", spec{subject: "/O=Acme/CN=Acme Root", key: "P-384", extensions: []string{caExtensions}, end: forever})
	f.issue(t, "issuing", "root", spec{subject: "/O=Acme/CN=Acme Cameras", extensions: []string{caExtensions}, end: forever})
	return f
}

func (f *factory) path(name string) string { return filepath.Join(f.dir, name) }

func (f *factory) write(t testing.TB, name, content string) string {
	t.Helper()
	if err := os.WriteFile(f.path(name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return f.path(name)
}

func (f *factory) read(t testing.TB, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(f.path(name))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// try runs openssl, and returns its output.
func try(t testing.TB, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatalf("%v: run deploy/setup.sh --test", err)
	}
	out, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput()
	return string(out), err
}

func run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := try(t, args...)
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// issue makes a key and a certificate. A certificate that is its own parent is self-signed.
func (f *factory) issue(t testing.TB, name, parent string, s spec) *x509.Certificate {
	t.Helper()
	generate := []string{"genpkey", "-out", f.path(name + ".key"), "-algorithm"}
	switch bits, isRSA := strings.CutPrefix(s.key, "RSA-"); {
	case isRSA:
		generate = append(generate, "RSA", "-pkeyopt", "rsa_keygen_bits:"+bits)
	case s.key == "Ed25519":
		generate = append(generate, "ED25519")
	default:
		generate = append(generate, "EC", "-pkeyopt", "ec_paramgen_curve:"+or(s.key, "P-256"))
	}
	run(t, generate...)
	run(t, "req", "-new", "-key", f.path(name+".key"), "-subj", or(s.subject, "/O=Acme/CN="+name), "-out", f.path(name+".csr"))
	f.write(t, name+".ext", "[extensions]\n"+strings.Join(append(s.extensions, ""), "\n"))
	f.sign(t, name, parent, s)
	return f.certificate(t, name)
}

// renew makes another certificate for the key and the name of a CA.
func (f *factory) renew(t testing.TB, name, earlier, parent string) {
	t.Helper()
	f.write(t, name+".key", string(f.read(t, earlier+".key")))
	f.write(t, name+".csr", string(f.read(t, earlier+".csr")))
	f.write(t, name+".ext", string(f.read(t, earlier+".ext")))
	f.sign(t, name, parent, spec{})
}

// sign makes a certificate from a CSR.
func (f *factory) sign(t testing.TB, name, parent string, s spec) {
	t.Helper()
	args := []string{
		"ca", "-batch", "-notext", "-config", f.config(t, parent), "-keyfile", f.path(parent + ".key"), "-in", f.path(name + ".csr"), "-out", f.path(name + ".pem"),
		"-startdate", or(s.start, "20260101000000Z"), "-enddate", or(s.end, "20270101000000Z"), "-extfile", f.path(name + ".ext"), "-extensions", "extensions", "-preserveDN",
	}
	if s.digest != "" {
		args = append(args, "-md", s.digest)
	}
	if name == parent {
		args = append(args, "-selfsign")
	} else {
		args = append(args, "-cert", f.path(parent+".pem"))
	}
	run(t, args...)
}

// config writes the configuration of a CA for openssl ca.
func (f *factory) config(t testing.TB, name string) string {
	t.Helper()
	if _, err := os.Stat(f.path(name + ".index")); err != nil {
		f.write(t, name+".index", "")
		f.write(t, name+".crlnumber", "01\n")
	}
	return f.write(t, name+".conf", fmt.Sprintf(`[ca]
default_ca = this
[this]
database = %[1]s.index
crlnumber = %[1]s.crlnumber
new_certs_dir = %[2]s
rand_serial = yes
unique_subject = no
default_md = sha256
policy = any
[any]
organizationName = optional
serialNumber = optional
commonName = optional
`, f.path(name), f.dir))
}

func (f *factory) certificate(t testing.TB, name string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(f.read(t, name+".pem"))
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (f *factory) key(t testing.TB, name string) crypto.Signer {
	t.Helper()
	block, _ := pem.Decode(f.read(t, name+".key"))
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(crypto.Signer)
}

// revoke adds a certificate to the CRL of its issuer.
func (f *factory) revoke(t testing.TB, name, parent string) {
	t.Helper()
	run(t, "ca", "-config", f.config(t, parent), "-cert", f.path(parent+".pem"), "-keyfile", f.path(parent+".key"), "-revoke", f.path(name+".pem"))
}

// crl returns a CRL in PEM that is valid from start to end. Arguments for openssl ca may follow.
func (f *factory) crl(t testing.TB, parent string, start, end time.Time, args ...string) []byte {
	t.Helper()
	const layout = "20060102150405Z"
	run(t, append([]string{
		"ca", "-gencrl", "-config", f.config(t, parent), "-cert", f.path(parent + ".pem"), "-keyfile", f.path(parent + ".key"), "-out", f.path(parent + ".crl"),
		"-crl_lastupdate", start.Format(layout), "-crl_nextupdate", end.Format(layout),
	}, args...)...)
	return f.read(t, parent+".crl")
}

// verifies reports whether OpenSSL accepts the chain at a time and for a purpose, such as sslclient.
func (f *factory) verifies(t testing.TB, root string, at time.Time, purpose string, chain ...string) bool {
	t.Helper()
	var untrusted string
	for _, name := range chain[1:] {
		untrusted += string(f.read(t, name+".pem"))
	}
	path := f.write(t, "untrusted.pem", untrusted)
	args := []string{"verify", "-CAfile", f.path(root + ".pem"), "-purpose", purpose, "-attime", strconv.FormatInt(at.Unix(), 10)}
	if untrusted != "" {
		args = append(args, "-untrusted", path)
	}
	out, err := try(t, append(args, f.path(chain[0]+".pem"))...)
	t.Logf("openssl verify %s: %s", strings.Join(chain, " "), out)
	return err == nil
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}
