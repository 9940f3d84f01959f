package responder_test

import (
	"bufio"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"io"
	"math/big"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
)

// A testCert is a certificate whose status relying parties check.
type testCert struct {
	certificate *x509.Certificate
	key         crypto.Signer
	ref         pki.CertRef
	file        string
}

// An interopServer is a testServer whose certificates contain the URLs of the responder and the CRLs. It has files for
// the programs that check these certificates.
type interopServer struct {
	*testServer
	rootFile                     string
	crlURL                       string
	good, revoked, held, unknown testCert
	crl, rootCRL                 []byte
	crlFile, rootCRLFile         string // paths of CRLs in PEM
	crlDER                       string
}

func newInteropServer(t *testing.T) *interopServer {
	t.Helper()
	s := &interopServer{testServer: newTestServer(t, "p256")}
	s.rootFile = revtest.PEMFile(t, s.root.Certificate)
	s.crlURL = s.url + "/crl/" + s.ca.ID().Short() + ".crl"
	s.good, s.revoked, s.held, s.unknown = s.certify(t, nil), s.certify(t, nil), s.certify(t, nil), s.certify(t, nil)
	for _, c := range []testCert{s.good, s.revoked, s.held} {
		s.Apply(s.book.Issue(c.ref, c.certificate.NotAfter))
	}
	s.revoke(t, s.revoked.ref, pki.KeyCompromise)
	if _, err := s.authority.Apply(t.Context(), revocation.Change{
		Action: revocation.Hold, Certificate: s.held.ref, Actor: pki.ActorCommand("test"), At: s.clock.now().Add(-time.Hour),
	}); err != nil {
		t.Fatal(err)
	}
	s.publish(t)
	s.rootCRL = signCRL(t, s.root, 1, nil, nil)
	s.crlFile, s.rootCRLFile, s.crlDER = crlFile(t, s.crl), crlFile(t, s.rootCRL), revtest.File(t, "crl.der", s.crl)
	return s
}

// certify issues a server certificate. The responder does not know the certificate until the test adds it to the book.
func (s *interopServer) certify(t *testing.T, edit func(*x509.Certificate)) testCert {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: revtest.Serial(t).Int(), Subject: pkix.Name{CommonName: "device"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		OCSPServer:  []string{s.url + "/ocsp"}, CRLDistributionPoints: []string{s.crlURL},
	}
	if edit != nil {
		edit(template)
	}
	key := revtest.Key(t, "p256")
	der, err := x509.CreateCertificate(rand.Reader, template, s.ca.Certificate, key.Public(), s.ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return testCert{c, key, s.ca.Ref(t, c), revtest.PEMFile(t, c)}
}

// publish lets the authority sign a CRL, and fetches the CRL.
func (s *interopServer) publish(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.updater.Run(ctx) }()
	for s.get(t, strings.TrimPrefix(s.crlURL, s.url)).Code != 200 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	s.crl = fetch(t, s.crlURL)
}

// signCRL signs a CRL with the given entries and extensions.
func signCRL(t *testing.T, ca revtest.CA, number int64, revoked []*big.Int, extensions []pkix.Extension) []byte {
	t.Helper()
	template := &x509.RevocationList{
		Number: big.NewInt(number), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(24 * time.Hour), ExtraExtensions: extensions,
	}
	for _, serial := range revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: serial, RevocationTime: time.Now().Add(-time.Hour), ReasonCode: int(pki.KeyCompromise),
		})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, ca.Certificate, ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// crlFile writes CRLs to a PEM file, and returns its path.
func crlFile(t *testing.T, ders ...[]byte) string {
	t.Helper()
	var text []byte
	for _, der := range ders {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...)
	}
	return revtest.File(t, "crl.pem", text)
}

var (
	oidPoint    = asn1.ObjectIdentifier{2, 5, 29, 28}
	oidDelta    = asn1.ObjectIdentifier{2, 5, 29, 27}
	oidFreshest = asn1.ObjectIdentifier{2, 5, 29, 46}
)

// issuingPoint returns the critical issuingDistributionPoint of a CRL (RFC 5280 §5.2.5). The CRL is for the
// certificates that contain its URL.
func issuingPoint(t *testing.T, url string) pkix.Extension {
	return pkix.Extension{Id: oidPoint, Critical: true, Value: der(t, func(b *cryptobyte.Builder) { addPoint(b, url) })}
}

// freshestCRL returns the extension with the URL of a delta CRL (RFC 5280 §4.2.1.15, §5.2.6).
func freshestCRL(t *testing.T, url string) pkix.Extension {
	return pkix.Extension{Id: oidFreshest, Value: der(t, func(b *cryptobyte.Builder) {
		b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) { addPoint(b, url) })
	})}
}

// deltaOf returns the deltaCRLIndicator of a delta CRL whose base has the given number (RFC 5280 §5.2.4).
func deltaOf(t *testing.T, base int64) pkix.Extension {
	return pkix.Extension{Id: oidDelta, Critical: true, Value: der(t, func(b *cryptobyte.Builder) { b.AddASN1Int64(base) })}
}

func addPoint(b *cryptobyte.Builder, url string) {
	context := func(n uint8) cryptobyte_asn1.Tag { return cryptobyte_asn1.Tag(n).ContextSpecific() }
	b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(context(0).Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(context(0).Constructed(), func(b *cryptobyte.Builder) {
				b.AddASN1(context(6), func(b *cryptobyte.Builder) { b.AddBytes([]byte(url)) })
			})
		})
	})
}

func der(t *testing.T, add func(*cryptobyte.Builder)) []byte {
	t.Helper()
	var b cryptobyte.Builder
	add(&b)
	data, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A javaProcess is a Java program that checks certificates. It runs for a whole test, because it takes a second to
// start.
type javaProcess struct {
	in  io.Writer
	out *bufio.Scanner
}

func startJava(t *testing.T) *javaProcess {
	t.Helper()
	return runJava(t, "testdata/Judge.java")
}

// runJava starts a Java program that writes one line for each line that it reads.
func runJava(t *testing.T, program string) *javaProcess {
	t.Helper()
	const jars = "/usr/share/java/bcprov.jar:/usr/share/java/bcutil.jar:/usr/share/java/bcpkix.jar"
	// Cleanup ends the process after the test's context has ended.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
	cmd := exec.CommandContext(ctx, "java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "--class-path", jars, program)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	output := &strings.Builder{}
	cmd.Stderr = output
	if err := cmd.Start(); err != nil {
		t.Fatalf("java: %v: run deploy/setup.sh --test", err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("java: %v\n%s", err, output)
		}
		cancel()
	})
	return &javaProcess{in, bufio.NewScanner(out)}
}

// want sends a line of words to the program, and checks that its reply begins with want.
func (j *javaProcess) want(t *testing.T, want string, question ...string) {
	t.Helper()
	if _, err := io.WriteString(j.in, strings.Join(question, "\t")+"\n"); err != nil {
		t.Fatal(err)
	}
	if !j.out.Scan() {
		t.Fatalf("java gives no reply to %v: %v", question, j.out.Err())
	}
	if got := j.out.Text(); !strings.HasPrefix(got, want) {
		t.Errorf("%v: java replies %q, want %q", question, got, want)
	}
}
