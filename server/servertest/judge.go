package servertest

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/brevet-pki/brevet/ca/lint"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// ocspBatch is the number of certificates in one OCSP request from OpenSSL.
const ocspBatch = 8

// maxAhead is how far the world's clock may be ahead of the machine's time. If it is further ahead, GnuTLS, which uses
// the machine's time, regards the world's certificates as not yet valid.
const maxAhead = 10 * time.Second

// judge checks everything that the issuing CA of the world has issued with zlint, OpenSSL and GnuTLS: each certificate on record, each
// CRL, and the OCSP response about each unexpired certificate.
func (w *World) judge(t testing.TB) {
	t.Helper()
	c := w.newInspection(t)
	for _, check := range []func(testing.TB){c.lint, c.verify, c.crls, c.openSSLStatuses, c.gnuTLSChains, c.gnuTLSStatuses} {
		check(t)
	}
}

// Judge checks with the tools what the issuing CA of the world has issued, as at the end of a test.
func (w *World) Judge(t testing.TB) {
	t.Helper()
	w.judge(t)
}

// inspection holds the files that the tools check.
type inspection struct {
	*World
	dir                string
	root, issuing, crl string // PEM files; crl contains both CRLs
	issuingCRL         []byte
	delivered          []certificateFile // the delivered certificates, with the unexpired ones first
	current            int               // number of unexpired certificates in delivered
	undelivered        []ra.Certificate
}

// certificateFile is a certificate in a PEM file.
type certificateFile struct {
	ra.Certificate
	file string
}

func (w *World) newInspection(t testing.TB) *inspection {
	t.Helper()
	c := &inspection{World: w, dir: t.TempDir()}
	c.root, c.issuing = c.pem(t, "root", w.Root.Raw), c.pem(t, "issuing", w.Issuing.Raw)
	var expired []certificateFile
	now := w.Clock.Now()
	for i, cert := range w.Inventory(t) {
		if cert.Ref.Issuer != pki.IssuerOf(w.Issuing) {
			continue // of the CA of another server
		}
		if !cert.Delivered {
			c.undelivered = append(c.undelivered, cert)
			continue
		}
		e := certificateFile{cert, c.pem(t, strconv.Itoa(i), cert.DER)}
		if now.Before(cert.NotAfter) {
			c.delivered = append(c.delivered, e)
		} else {
			expired = append(expired, e)
		}
	}
	c.current = len(c.delivered)
	c.delivered = append(c.delivered, expired...)
	c.issuingCRL = c.awaitCRL(t)
	c.crl = filepath.Join(c.dir, "crls.pem")
	lists := append(crlPEM(c.issuingCRL), crlPEM(w.RootCRL)...)
	check(t, os.WriteFile(c.crl, lists, 0o600))
	return c
}

func crlPEM(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}) }

func (c *inspection) pem(t testing.TB, name string, ders ...[]byte) string {
	t.Helper()
	path := filepath.Join(c.dir, name+".pem")
	var text []byte
	for _, der := range ders {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	check(t, os.WriteFile(path, text, 0o600))
	return path
}

// awaitCRL waits until the issuing CA's CRL contains every unexpired certificate that is revoked or on hold, and
// returns the CRL. The CRL may also contain certificates that were never delivered, and expired ones, but awaitCRL does
// not wait for their entries. An entry stays for one CRL beyond the certificate's expiry (RFC 5280 section 3.3).
func (c *inspection) awaitCRL(t testing.TB) []byte {
	t.Helper()
	want, may := map[string]bool{}, map[string]bool{}
	for _, e := range c.delivered[:c.current] {
		if e.Status.State != pki.Good {
			want[e.Ref.Serial.Int().String()] = true
		}
	}
	for _, u := range c.undelivered {
		may[u.Ref.Serial.Int().String()] = true
	}
	for _, e := range c.delivered[c.current:] {
		if e.Status.State != pki.Good {
			may[e.Ref.Serial.Int().String()] = true
		}
	}
	for range 1000 {
		der := c.fetch(t, "/crl/"+pki.IssuerOf(c.Issuing).Short()+".crl")
		if der == nil {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		listed, others := 0, 0
		for _, e := range Must(x509.ParseRevocationList(der))(t).RevokedCertificateEntries {
			switch serial := e.SerialNumber.String(); {
			case want[serial]:
				listed++
			case !may[serial]:
				others++
			}
		}
		if listed == len(want) && others == 0 {
			return der
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("no CRL of the %d revoked certificates, and no others, is published", len(want))
	return nil
}

// awaitUndelivered waits until the responder knows the certificates that were never delivered. The responder gets their
// statuses from the log, some time after the records.
func (c *inspection) awaitUndelivered(t testing.TB) {
	t.Helper()
	for _, u := range c.undelivered {
		for c.OCSP(t, &x509.Certificate{SerialNumber: u.Ref.Serial.Int()}).Status != ocsp.Revoked {
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// awaitDelivered waits until the responder knows the certificates that another server has issued, which takes up to a second.
func (c *inspection) awaitDelivered(t testing.TB) {
	t.Helper()
	if c.shared == nil {
		return
	}
	for _, e := range c.delivered[:c.current] {
		for c.OCSP(t, &x509.Certificate{SerialNumber: e.Ref.Serial.Int()}).Status == ocsp.Unknown {
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// fetch returns the body of a response on the HTTP port, or nil if the path does not exist yet.
func (c *inspection) fetch(t testing.TB, path string) []byte {
	t.Helper()
	resp := Must(c.http.Get("http://" + c.HTTP + path))(t)
	defer resp.Body.Close()
	body := Must(io.ReadAll(resp.Body))(t)
	switch resp.StatusCode {
	case http.StatusOK:
		return body
	case http.StatusNotFound:
	default:
		t.Errorf("GET %s: %s", path, resp.Status)
	}
	return nil
}

// lint checks certificates and CRLs with zlint.
func (c *inspection) lint(t testing.TB) {
	t.Helper()
	for _, der := range append([][]byte{c.Root.Raw, c.Issuing.Raw}, ders(c.delivered)...) {
		if err := lint.Certificate(der); err != nil {
			t.Errorf("certificate %s: %v", Serial(parse(t, der)), err)
		}
	}
	for _, der := range [][]byte{c.RootCRL, c.issuingCRL} {
		if err := lint.CRL(der); err != nil {
			t.Errorf("CRL: %v", err)
		}
	}
}

func ders(certs []certificateFile) [][]byte {
	all := make([][]byte, len(certs))
	for i, e := range certs {
		all[i] = e.DER
	}
	return all
}

func files(certs []certificateFile) []string {
	all := make([]string, len(certs))
	for i, e := range certs {
		all[i] = e.file
	}
	return all
}

// verify verifies the delivered certificates with OpenSSL: all of them without a check of their validity period, and
// the unexpired ones again with the CRLs.
func (c *inspection) verify(t testing.TB) {
	t.Helper()
	common := []string{"verify", "-x509_strict", "-CAfile", c.root, "-untrusted", c.issuing}
	out, code := c.run(t, "openssl", append(append(common, "-no_check_time"), files(c.delivered)...)...)
	if code != 0 || strings.Count(out, ": OK") != len(c.delivered) {
		t.Errorf("openssl verify -x509_strict exits %d:\n%s", code, out)
	}
	at := strconv.FormatInt(c.Clock.Now().Unix(), 10)
	out, _ = c.run(t, "openssl", append(append(common, "-crl_check_all", "-attime", at, "-CRLfile", c.crl), files(c.delivered[:c.current])...)...)
	revoked := 0
	for _, e := range c.delivered[:c.current] {
		if fine := strings.Contains(out, e.file+": OK"); fine != (e.Status.State == pki.Good) {
			t.Errorf("openssl verify -crl_check_all of %s, whose status is %s, prints OK: %v\n%s", e.file, e.Status.State, fine, out)
		}
		if e.Status.State != pki.Good {
			revoked++
		}
	}
	if strings.Count(out, "depth lookup") != revoked || strings.Count(out, "error 23 at 0 depth lookup: certificate revoked") != revoked {
		t.Errorf("openssl verify -crl_check_all does not report exactly %d certificates as revoked:\n%s", revoked, out)
	}
}

// crls checks the CRLs with OpenSSL and GnuTLS.
func (c *inspection) crls(t testing.TB) {
	t.Helper()
	for name, l := range map[string]struct {
		der    []byte
		issuer string
	}{"root": {c.RootCRL, c.root}, "issuing": {c.issuingCRL, c.issuing}} {
		file := filepath.Join(c.dir, name+".crl.pem")
		check(t, os.WriteFile(file, crlPEM(l.der), 0o600))
		if out, code := c.run(t, "openssl", "crl", "-in", file, "-CAfile", l.issuer, "-noout"); code != 0 || !strings.Contains(out, "verify OK") {
			t.Errorf("openssl crl of the %s CRL exits %d:\n%s", name, code, out)
		}
		if out, code := c.run(t, "certtool", "--crl-info", "--infile", file); code != 0 {
			t.Errorf("certtool --crl-info of the %s CRL exits %d:\n%s", name, code, out)
		}
		if c.tooFarAhead() {
			continue
		}
		out, code := c.run(t, "certtool", "--verify-crl", "--infile", file, "--load-ca-certificate", l.issuer)
		if code != 0 || !strings.Contains(out, "Verified") || strings.Contains(out, "Not verified") {
			t.Errorf("certtool --verify-crl of the %s CRL exits %d:\n%s", name, code, out)
		}
	}
}

// tooFarAhead reports whether the world's clock is more than maxAhead ahead of the machine's time.
func (c *inspection) tooFarAhead() bool { return time.Until(c.Clock.Now()) > maxAhead }

// openSSLStatuses requests the OCSP status of each unexpired or undelivered certificate with OpenSSL.
func (c *inspection) openSSLStatuses(t testing.TB) {
	t.Helper()
	type query struct {
		args []string // options of OpenSSL that select the certificate
		name string   // name of the certificate in OpenSSL's output
		want pki.Status
	}
	var queries []query
	for _, e := range c.delivered[:c.current] {
		queries = append(queries, query{[]string{"-cert", e.file}, e.file, e.Status})
	}
	for _, u := range c.undelivered {
		serial := "0x" + u.Ref.Serial.String()
		queries = append(queries, query{[]string{"-serial", serial}, serial, u.Status})
	}
	if len(c.delivered) > 0 {
		c.ocspDER(t, parse(t, c.delivered[0].DER)) // waits until the responder is synchronized
	}
	c.awaitDelivered(t)
	c.awaitUndelivered(t)
	for len(queries) > 0 {
		batch := queries[:min(ocspBatch, len(queries))]
		queries = queries[len(batch):]
		args := []string{"ocsp", "-url", "http://" + c.HTTP + "/ocsp", "-issuer", c.issuing, "-CAfile", c.root, "-verify_other", c.issuing,
			"-validity_period", "1000000000"}
		for _, q := range batch {
			args = append(args, q.args...)
		}
		out, code := c.run(t, "openssl", args...)
		if code != 0 || !strings.Contains(out, "Response verify OK") {
			t.Errorf("openssl ocsp exits %d:\n%s", code, out)
		}
		for _, q := range batch {
			want := q.name + ": good\n"
			if q.want.State != pki.Good {
				want = q.name + ": revoked\n"
			}
			if !strings.Contains(out, want) {
				t.Errorf("openssl ocsp does not print %q:\n%s", want, out)
			}
		}
	}
}

// gnuTLSChains parses every certificate with certtool. It also verifies the chain of unexpired ones, unless the world's
// clock is too far ahead.
func (c *inspection) gnuTLSChains(t testing.TB) {
	t.Helper()
	if len(c.delivered) == 0 {
		return
	}
	all := c.pem(t, "all", ders(c.delivered)...)
	out, code := c.run(t, "certtool", "--certificate-info", "--infile", all)
	if code != 0 || strings.Count(out, "X.509 Certificate Information:") != len(c.delivered) {
		t.Errorf("certtool -i exits %d:\n%s", code, out)
	}
	if c.tooFarAhead() {
		return
	}
	for i, e := range c.delivered[:c.current] {
		chain := c.pem(t, fmt.Sprintf("chain%d", i), e.DER, c.Issuing.Raw, c.Root.Raw)
		if out, code := c.run(t, "certtool", "--verify-chain", "--infile", chain); code != 0 || !strings.Contains(out, "Chain verification output: Verified. The certificate is trusted.") {
			t.Errorf("certtool --verify-chain exits %d:\n%s", code, out)
		}
	}
}

// gnuTLSStatuses requests the OCSP status of the newest certificate in each state with ocsptool.
func (c *inspection) gnuTLSStatuses(t testing.TB) {
	t.Helper()
	if c.tooFarAhead() {
		return
	}
	seen := map[pki.State]bool{}
	for _, e := range c.delivered[:c.current] {
		if seen[e.Status.State] {
			continue
		}
		seen[e.Status.State] = true
		want := "Certificate Status: revoked"
		if e.Status.State == pki.Good {
			want = "Certificate Status: good"
		}
		out, _ := c.run(t, "ocsptool", "--ask=http://"+c.HTTP+"/ocsp", "--load-cert", e.file, "--load-issuer", c.issuing, "--load-trust", c.issuing)
		if !strings.Contains(out, want) || e.Status.State == pki.Good && !strings.Contains(out, "Verifying OCSP Response: Success") {
			t.Errorf("ocsptool does not print %q:\n%s", want, out)
		}
	}
}

// run runs a tool, and returns its output and exit code. In the output, standard error follows standard output: if both
// were one stream, lines of one could be in the middle of lines of the other.
func (c *inspection) run(t testing.TB, name string, args ...string) (string, int) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Errorf("%s is not installed: run deploy/setup.sh --test", name)
		return "", -1
	}
	cmd := exec.Command(path, args...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Errorf("%s: %v", name, err)
		return "", -1
	}
	return out.String() + stderr.String(), cmd.ProcessState.ExitCode()
}
