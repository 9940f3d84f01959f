package responder_test

import (
	"crypto"
	"strings"
	"testing"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"
	xocsp "golang.org/x/crypto/ocsp"

	"github.com/brevet-pki/brevet/revocation/internal/revtest"
)

func TestJavaReadsResponsesAndCRLs(t *testing.T) {
	s := newInteropServer(t)
	j := startJava(t)
	url := s.url + "/ocsp"
	for _, nonce := range []string{"plain", "nonce"} {
		s.methods.want(t, "no client", "")
		for want, c := range map[string]testCert{
			"good": s.good, "revoked KEY_COMPROMISE": s.revoked, "revoked CERTIFICATE_HOLD": s.held, "refused UNDETERMINED_REVOCATION_STATUS": s.unknown,
		} {
			j.want(t, want, "ocsp", c.file, s.caFile, s.rootFile, url, nonce)
		}
		s.methods.want(t, "Java "+nonce, "GET")
		for _, hash := range []string{"SHA-1", "SHA-256"} {
			for want, c := range map[string]testCert{"good": s.good, "revoked 1": s.revoked, "revoked 6": s.held, "unknown": s.unknown} {
				j.want(t, want, "bc-ocsp", c.file, s.caFile, url, hash, nonce)
			}
		}
		s.methods.want(t, "the program with Bouncy Castle", "POST")
	}
	for want, c := range map[string]testCert{"good": s.good, "revoked KEY_COMPROMISE": s.revoked, "revoked CERTIFICATE_HOLD": s.held} {
		j.want(t, want, "points", c.file, s.caFile, s.rootFile)
		j.want(t, want, "crls", "SUN", c.file, s.caFile, s.rootFile, s.crlFile)
	}
	j.want(t, "good", "bc-crl", s.crlDER, s.caFile, s.good.file)
	j.want(t, "revoked 1", "bc-crl", s.crlDER, s.caFile, s.revoked.file)
	j.want(t, "revoked 6", "bc-crl", s.crlDER, s.caFile, s.held.file)
	j.want(t, "good", "crls", "BC", s.good.file, s.caFile, s.rootFile, s.crlFile, s.rootCRLFile)
	j.want(t, "refused UNSPECIFIED Certificate revocation after", "crls", "BC", s.revoked.file, s.caFile, s.rootFile, s.crlFile, s.rootCRLFile)
	checkJavaPartitions(t, s, j)
}

// nssDatabase creates an NSS database with the CA certificates.
func nssDatabase(t *testing.T, s *interopServer) string {
	t.Helper()
	db := "sql:" + t.TempDir()
	revtest.MustTool(t, "certutil", "-N", "-d", db, "--empty-password")
	revtest.MustTool(t, "certutil", "-A", "-d", db, "-n", "root", "-t", "CT,,", "-i", s.rootFile)
	revtest.MustTool(t, "certutil", "-A", "-d", db, "-n", "issuing", "-t", ",,", "-i", s.caFile)
	return db
}

// TestNSSReadsResponsesAndCRLs checks certificates with NSS, which uses the URLs in them. NSS treats unknown as
// revoked.
func TestNSSReadsResponsesAndCRLs(t *testing.T) {
	s := newInteropServer(t)
	p := newPartitions(t, s)
	db := nssDatabase(t, s)
	const good, isRevoked, noInformation = "Chain is good!", "Peer's Certificate has been revoked.", "Chain is bad!"
	want := func(db, method string, of testCert, want string) {
		t.Helper()
		args := []string{"-d", db, "-pp", "-u", "1", "-g", "leaf", "-h", "requireFreshInfo", "-m", method, "-s", "failIfNoInfo", "-a", of.file}
		if out, _ := revtest.Tool(t, "vfychain", args...); !strings.Contains(out, want) {
			t.Errorf("vfychain -m %s: want %q:\n%s", method, want, out)
		}
	}
	for _, c := range []struct {
		of   testCert
		want string
	}{{s.good, good}, {s.revoked, isRevoked}, {s.held, isRevoked}, {s.unknown, isRevoked}} {
		want(db, "ocsp", c.of, c.want)
	}
	s.methods.want(t, "NSS", "GET POST") // NSS retries by POST after a response that it does not accept
	revtest.MustTool(t, "crlutil", "-I", "-d", db, "-i", s.crlDER)
	want(db, "crl", s.good, good)
	want(db, "crl", s.revoked, isRevoked)
	want(db, "crl", s.held, isRevoked)

	// NSS supports no critical extension of CRLs, and refuses a CRL that has one.
	db = nssDatabase(t, s)
	for name, der := range map[string][]byte{"partition": p.base, "delta": p.delta} {
		if out, code := revtest.Tool(t, "crlutil", "-I", "-d", db, "-i", revtest.File(t, "x.crl", der)); code == 0 || !strings.Contains(out, "SEC_ERROR_CRL_UNKNOWN_CRITICAL_EXTENSION") {
			t.Errorf("crlutil accepts a %s, or refuses it for another reason: exit %d\n%s", name, code, out)
		}
	}
	want(db, "crl", p.good, noInformation)
}

// TestZlintFindsNothing applies zlint's rules for RFCs to every kind of response and CRL.
func TestZlintFindsNothing(t *testing.T) {
	s := newInteropServer(t)
	p := newPartitions(t, s)
	registry, err := lint.GlobalRegistry().Filter(lint.FilterOptions{IncludeSources: lint.SourceList{lint.RFC5280, lint.RFC6960}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []testCert{s.good, s.revoked, s.held, s.unknown} {
		for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
			answer, err := xocsp.ParseResponse(s.post(t, request(t, c.certificate, s.ca.Certificate, hash)), s.ca.Certificate)
			if err != nil {
				t.Fatal(err)
			}
			wantLintClean(t, "answer", zlint.LintOcspResponseEx(answer, registry))
		}
	}
	for name, der := range map[string][]byte{"CRL": s.crl, "partition": p.base, "delta": p.delta} {
		wantLintClean(t, name, lintCRL(t, der, registry))
	}
}

// wantLintClean reports each finding of zlint as an error. It also reports an error if zlint applied no rule.
func wantLintClean(t *testing.T, name string, set *zlint.ResultSet) {
	t.Helper()
	passed := 0
	for rule, r := range set.Results {
		switch {
		case r.Status >= lint.Notice:
			t.Errorf("zlint of the %s: %s %s %s", name, rule, r.Status, r.Details)
		case r.Status == lint.Pass:
			passed++
		}
	}
	if passed == 0 {
		t.Errorf("no rule of zlint applies to the %s", name)
	}
}

func lintCRL(t *testing.T, der []byte, registry lint.Registry) *zlint.ResultSet {
	t.Helper()
	crl, err := zx509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	return zlint.LintRevocationListEx(crl, registry)
}
