package crl_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"
)

// onlyUsers returns the issuing distribution point of a CRL that lists only end-entity certificates.
func onlyUsers() []pkix.Extension {
	return []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 3, 0x81, 1, 0xff}}}
}

func TestCRLsVerifyWithOtherTools(t *testing.T) {
	for _, kind := range []string{"p256", "p384", "rsa", "ed25519"} {
		t.Run(kind, func(t *testing.T) {
			root := revtest.NewRoot(t, "Offline Root", "p256")
			s := &scene{root: root, ca: root.Intermediate(t, "Issuing CA", kind), book: revtest.NewBook(), outlet: &revtest.Outlet{}, log: &revtest.LogBook{}, dir: t.TempDir()}
			s.start(t, revtest.Never)
			if err := s.PublishNow(t.Context()); err != nil {
				t.Fatal(err)
			}
			judge(t, s) // CRL without entries
			good, _ := s.issue(t)
			revoked, ref := s.issue(t)
			s.revoke(t, ref, pki.KeyCompromise)
			_, plain := s.issue(t)
			s.revoke(t, plain, pki.Unspecified)
			_, held := s.issue(t)
			if _, err := s.authority.Apply(t.Context(), revocation.Change{Action: revocation.Hold, Certificate: held}); err != nil {
				t.Fatal(err)
			}
			if err := s.PublishNow(t.Context()); err != nil {
				t.Fatal(err)
			}
			info := judge(t, s)
			for text, want := range map[string]int{"Key Compromise": 1, "Certificate Hold": 1, "Serial Number:": 3, "CRL Reason Code": 2} {
				if got := strings.Count(info, text); got != want {
					t.Errorf("openssl crl prints %q %d times, want %d:\n%s", text, got, want, info)
				}
			}
			check(t, s, good, 0, "")
			check(t, s, revoked, 2, "error 23 at 0 depth lookup: certificate revoked")
		})
	}
}

// judge checks the newest CRL with OpenSSL, GnuTLS and zlint. It returns OpenSSL's output.
func judge(t *testing.T, s *scene) string {
	t.Helper()
	der := s.newest(t).Raw
	file, caFile := revtest.File(t, "crl.der", der), revtest.PEMFile(t, s.ca.Certificate)
	text := revtest.MustTool(t, "openssl", "crl", "-inform", "DER", "-in", file, "-CAfile", caFile, "-noout", "-text")
	if !strings.Contains(text, "verify OK") || strings.Contains(text, "Issuing Distribution Point") ||
		!strings.Contains(text, "X509v3 Authority Key Identifier") || !strings.Contains(text, "X509v3 CRL Number") {
		t.Errorf("openssl crl does not verify the CRL:\n%s", text)
	}
	revtest.MustTool(t, "certtool", "--crl-info", "--inder", "--infile", file)
	verified := revtest.MustTool(t, "certtool", "--verify-crl", "--infile", pemFile(t, der), "--load-ca-certificate", caFile)
	if !strings.Contains(verified, "Verified") || strings.Contains(verified, "Not verified") {
		t.Errorf("certtool does not verify the CRL:\n%s", verified)
	}
	lintCRL(t, der)
	return text
}

// lintCRL checks a CRL with zlint's rules for RFC 5280.
func lintCRL(t *testing.T, der []byte) {
	t.Helper()
	list, err := zx509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := lint.GlobalRegistry().Filter(lint.FilterOptions{IncludeSources: lint.SourceList{lint.RFC5280}})
	if err != nil {
		t.Fatal(err)
	}
	passed := 0
	for name, result := range zlint.LintRevocationListEx(list, rules).Results {
		switch result.Status {
		case lint.Pass:
			passed++
		case lint.NA, lint.NE:
		default:
			t.Errorf("zlint %s: %v %s", name, result.Status, result.Details)
		}
	}
	if passed == 0 {
		t.Error("zlint has checked nothing")
	}
}

func crlPEM(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}) }

func pemFile(t *testing.T, crl []byte) string {
	t.Helper()
	return revtest.File(t, "crl.pem", crlPEM(crl))
}

// check verifies a certificate with OpenSSL, against the newest CRL. OpenSSL must exit with the code. It must print the
// reason, unless that is empty.
func check(t *testing.T, s *scene, leaf *x509.Certificate, wantCode int, reason string) {
	t.Helper()
	out, code := revtest.Tool(t, "openssl", "verify", "-crl_check", "-CAfile", revtest.PEMFile(t, s.root.Certificate),
		"-untrusted", revtest.PEMFile(t, s.ca.Certificate), "-CRLfile", pemFile(t, s.newest(t).Raw), revtest.PEMFile(t, leaf))
	reasons := 0
	if reason != "" {
		reasons = 1
	}
	if code != wantCode || !strings.Contains(out, reason) || strings.Count(out, "depth lookup") != reasons {
		t.Errorf("openssl verify -crl_check exits %d, want %d and %q alone:\n%s", code, wantCode, reason, out)
	}
}
