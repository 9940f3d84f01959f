package responder_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/revocation/internal/revtest"
)

// partitions contains partitioned CRLs and certificates. Each CRL is for one part of a CA's certificates, according to
// a critical extension. The delta CRL lists the certificates that were revoked after such a CRL. For the extensions see
// RFC 5280 §5.2.4 to §5.2.6.
type partitions struct {
	good, revoked, since, other testCert // since is revoked only in the delta; other is in another partition
	base, delta, foreign        []byte
}

func newPartitions(t *testing.T, s *interopServer) partitions {
	t.Helper()
	const url, deltaURL, otherURL = "http://127.0.0.1:9/crl/p1.crl", "http://127.0.0.1:9/crl/p1-delta.crl", "http://127.0.0.1:9/crl/p2.crl"
	in := func(url string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.CRLDistributionPoints = []string{url}
			c.ExtraExtensions = append(c.ExtraExtensions, freshestCRL(t, deltaURL))
		}
	}
	p := partitions{good: s.certify(t, in(url)), revoked: s.certify(t, in(url)), since: s.certify(t, in(url)), other: s.certify(t, in(otherURL))}
	before := []*big.Int{p.revoked.certificate.SerialNumber}
	p.base = signCRL(t, s.ca, 10, before, []pkix.Extension{issuingPoint(t, url), freshestCRL(t, deltaURL)})
	p.delta = signCRL(t, s.ca, 11, []*big.Int{p.since.certificate.SerialNumber}, []pkix.Extension{issuingPoint(t, url), deltaOf(t, 10)})
	p.foreign = signCRL(t, s.ca, 12, nil, []pkix.Extension{issuingPoint(t, otherURL)})
	return p
}

func TestOpenSSLReadsPartitionedCRLs(t *testing.T) {
	s := newInteropServer(t)
	p := newPartitions(t, s)
	const fine, isRevoked, noCRL, otherScope = ": OK", "error 23 ", "error 3 ", "error 44 "
	for _, c := range []struct {
		name string
		of   testCert
		args []string
		crls [][]byte
		want string
	}{
		{"a point by name needs no -extended_crl", p.good, nil, [][]byte{p.base}, fine},
		{"nor does one where it is revoked", p.revoked, nil, [][]byte{p.base}, isRevoked},
		{"nor another partition", p.other, nil, [][]byte{p.base}, otherScope},
		{"good", p.good, []string{"-extended_crl"}, [][]byte{p.base}, fine},
		{"revoked", p.revoked, []string{"-extended_crl"}, [][]byte{p.base}, isRevoked},
		{"of another partition", p.other, []string{"-extended_crl"}, [][]byte{p.base}, otherScope},
		{"of another partition, with its CRL", p.other, []string{"-extended_crl"}, [][]byte{p.base, p.foreign}, fine},
		{"no CRL at all", p.good, []string{"-extended_crl"}, nil, noCRL},
		{"without -use_deltas, a delta is not looked at", p.since, []string{"-extended_crl"}, [][]byte{p.base, p.delta}, fine},
		{"revoked since", p.since, []string{"-extended_crl", "-use_deltas"}, [][]byte{p.base, p.delta}, isRevoked},
		{"good still", p.good, []string{"-extended_crl", "-use_deltas"}, [][]byte{p.base, p.delta}, fine},
		{"revoked before", p.revoked, []string{"-extended_crl", "-use_deltas"}, [][]byte{p.base, p.delta}, isRevoked},
		{"a delta alone is no CRL", p.good, []string{"-extended_crl", "-use_deltas"}, [][]byte{p.delta}, noCRL},
	} {
		file := crlFile(t, append(c.crls, s.rootCRL)...)
		args := append([]string{"verify", "-crl_check_all", "-CAfile", s.rootFile, "-untrusted", s.caFile, "-CRLfile", file}, c.args...)
		out, _ := revtest.Tool(t, "openssl", append(args, c.of.file)...)
		if !strings.Contains(out, c.want) || c.want != fine && strings.Contains(out, fine) {
			t.Errorf("%s: openssl %v: want %q:\n%s", c.name, c.args, c.want, out)
		}
	}
}

// TestGnuTLSIgnoresPartitions documents that GnuTLS ignores critical extensions of CRLs. GnuTLS treats every CRL of a
// CA as the complete list. It therefore accepts a certificate that is revoked on another CRL.
func TestGnuTLSIgnoresPartitions(t *testing.T) {
	s := newInteropServer(t)
	p := newPartitions(t, s)
	for name, c := range map[string]struct {
		crl     []byte
		revoked testCert
		passed  []testCert
	}{
		"whole":     {s.crl, s.revoked, []testCert{s.good}},
		"partition": {p.base, p.revoked, []testCert{p.good, p.other}},
		"delta":     {p.delta, p.since, []testCert{p.good, p.revoked}},
	} {
		file := crlFile(t, c.crl)
		out, code := revtest.Tool(t, "certtool", "--verify-crl", "--infile", file, "--load-ca-certificate", s.caFile)
		if code != 0 || !strings.Contains(out, "Verification output: Verified.") {
			t.Errorf("%s: certtool --verify-crl exits %d:\n%s", name, code, out)
		}
		verify := func(of testCert) (string, int) {
			chain := revtest.PEMFile(t, of.certificate, s.ca.Certificate)
			return revtest.Tool(t, "certtool", "--verify", "--infile", chain, "--load-ca-certificate", s.rootFile, "--load-crl", file)
		}
		if out, code := verify(c.revoked); code != 1 || !strings.Contains(out, "The certificate chain is revoked.") {
			t.Errorf("%s: certtool --verify of a certificate on the CRL exits %d:\n%s", name, code, out)
		}
		for _, of := range c.passed {
			if out, code := verify(of); code != 0 || !strings.Contains(out, "Chain verification output: Verified.") {
				t.Errorf("%s: certtool --verify of a certificate not on the CRL exits %d:\n%s", name, code, out)
			}
		}
	}
}

// checkJavaPartitions checks partitioned CRLs with Java, for TestJavaReadsResponsesAndCRLs, which starts Java.
func checkJavaPartitions(t *testing.T, s *interopServer, j *javaProcess) {
	t.Helper()
	p := newPartitions(t, s)
	base, delta, foreign := crlFile(t, p.base), crlFile(t, p.delta), crlFile(t, p.foreign)
	const refused, bcRefused = "refused UNDETERMINED_REVOCATION_STATUS", "refused UNSPECIFIED No "
	for _, c := range []struct {
		provider string
		of       testCert
		crls     []string
		want     string
	}{
		{"SUN", p.good, []string{base}, "good"},
		{"SUN", p.revoked, []string{base}, "revoked KEY_COMPROMISE"},
		{"SUN", p.other, []string{base}, refused},
		{"SUN", p.other, []string{base, foreign}, "good"},
		{"SUN", p.since, []string{base, delta}, "good"}, // SUN ignores delta CRLs
		{"SUN", p.good, []string{delta}, refused},
		{"BC", p.good, []string{base}, "good"},
		{"BC", p.revoked, []string{base}, "refused UNSPECIFIED Certificate revocation after"},
		{"BC", p.other, []string{base}, bcRefused},
		{"BC", p.other, []string{base, foreign}, "good"},
		{"BC", p.since, []string{base, delta}, "good"},
		{"BC", p.good, []string{delta}, bcRefused},
		{"BC with deltas", p.since, []string{base, delta}, "refused UNSPECIFIED Certificate revocation after"},
		{"BC with deltas", p.good, []string{base, delta}, "good"},
	} {
		j.want(t, c.want, append([]string{"crls", c.provider, c.of.file, s.caFile, s.rootFile, s.rootCRLFile}, c.crls...)...)
	}
}
