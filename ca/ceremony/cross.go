package ceremony

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// CrossSpec describes a cross-certificate.
type CrossSpec struct {
	// Lifetime is the time from Now to notAfter, in whole seconds. It must end by the notAfter of both roots. Zero
	// means as long as both roots are valid.
	Lifetime time.Duration
	// TrustDomain, Constrain and PermittedDNS limit what relying parties accept through the cross-certificate, as in
	// [SignSpec].
	TrustDomain  string
	Constrain    bool
	PermittedDNS []string
	// CRLURL is the URL of the CRL of the root that signs, and IssuerURL that of its certificate, as in [SignSpec].
	CRLURL, IssuerURL string
	Now               time.Time
}

// minCrossPathLength is the minimum path length of a root that signs a cross-certificate: two CA certificates follow
// it, the cross-certificate and that of an issuing CA (RFC 5280 section 4.2.1.9).
const minCrossPathLength = 2

// CrossSign returns the DER of a cross-certificate: a certificate that a root signs for the subject and the key of
// another root (RFC 5280 section 3.2). Relying parties that trust only the first root accept with it what the CAs under
// the other root issue. The other root has signed itself, which proves possession of its key.
func CrossSign(root *x509.Certificate, signer crypto.Signer, other *x509.Certificate, spec CrossSpec) ([]byte, error) {
	if err := checkParent(root, signer, x509.KeyUsageCertSign, spec.Now); err != nil {
		return nil, err
	}
	if err := checkOtherRoot(root, other, spec.Now); err != nil {
		return nil, err
	}
	pathLength, err := crossPathLength(root, other)
	if err != nil {
		return nil, err
	}
	sign := SignSpec{
		Lifetime: spec.Lifetime, PathLength: pathLength, TrustDomain: spec.TrustDomain, Constrain: spec.Constrain,
		PermittedDNS: spec.PermittedDNS, CRLURL: spec.CRLURL, IssuerURL: spec.IssuerURL, Now: spec.Now,
	}
	if err := sign.checkNames(); err != nil {
		return nil, err
	}
	end := root.NotAfter
	if other.NotAfter.Before(end) {
		end = other.NotAfter
	}
	if sign.Lifetime == 0 {
		sign.Lifetime = end.Sub(spec.Now.UTC().Truncate(time.Second))
	}
	template, err := sign.template(end)
	if err != nil {
		return nil, err
	}
	template.RawSubject, template.SubjectKeyId = other.RawSubject, other.SubjectKeyId
	return certify(template, root, other.PublicKey, signer)
}

// checkOtherRoot refuses a certificate that is not that of another root.
func checkOtherRoot(root, other *x509.Certificate, now time.Time) error {
	name := nameText(other.RawSubject)
	refuse := func(detail string, args ...any) error {
		return pki.Refuse(pki.RuleCertificate, "give the self-signed certificate of the other root, from brevet ceremony root",
			detail, args...)
	}
	switch {
	case !other.BasicConstraintsValid || !other.IsCA || other.KeyUsage&x509.KeyUsageCertSign == 0:
		return refuse("%q is not a CA certificate with the key usage for signing certificates", name)
	case !bytes.Equal(other.RawSubject, other.RawIssuer) || other.CheckSignatureFrom(other) != nil:
		return refuse("%q did not sign itself", name)
	case len(other.SubjectKeyId) == 0:
		return refuse("%q has no subject key identifier", name)
	case sameKey(root.PublicKey, other.PublicKey):
		return pki.Refuse(pki.RuleKeyReserved, "give the certificate of the other root",
			"%q has the key of the root that signs", name)
	case sameName(root.RawSubject, other.RawSubject):
		return pki.Refuse(pki.RuleSubject, "make the other root with another subject: each generation needs its own",
			"%q is also the subject of the root that signs", name)
	case now.Before(other.NotBefore) || now.After(other.NotAfter):
		return refuse("%q is valid from %s to %s, not at %s", name, other.NotBefore.UTC().Format(time.RFC3339),
			other.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	_, err := signatureAlgorithm(other.PublicKey)
	return err
}

// crossPathLength returns the path length of a cross-certificate: that of the other root, or less if the root that
// signs allows less. It returns -1 if neither root limits it.
func crossPathLength(root, other *x509.Certificate) (int, error) {
	length := other.MaxPathLen
	if length == 0 {
		return 0, pki.Refuse(pki.RuleCertificate, "use a root with a path length of 1 or more",
			"%q has path length 0, so that it has no issuing CAs", nameText(other.RawSubject))
	}
	if root.MaxPathLen < 0 {
		return length, nil
	}
	if root.MaxPathLen < minCrossPathLength {
		return 0, pki.Refuse(pki.RuleParent, fmt.Sprintf("use a root with a path length of %d or more", minCrossPathLength),
			"the root %q has path length %d: verifiers would refuse the issuing CAs under a root that it certifies",
			nameText(root.RawSubject), root.MaxPathLen)
	}
	if length < 0 || length >= root.MaxPathLen {
		length = root.MaxPathLen - 1
	}
	return length, nil
}
