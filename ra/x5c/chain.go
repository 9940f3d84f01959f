package x5c

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/nonce"
)

// Limits of evidence. They are checked before any signature is verified, so they bound the work for a caller that
// proves nothing.
const (
	maxCertificates = 8
	maxCertificate  = 8 << 10 // bytes
	maxSignature    = 512     // bytes of a signature: RSA-4096
	minRSA, maxRSA  = 2048, 4096

	maxEvidence = maxCertificates*(maxCertificate+4) + nonce.MaxSealed + 4 + maxSignature + 4
)

const hintEvidence = "send the device's certificate first, then its issuer and so on: " +
	"8 certificates in DER at most, each of 8 KiB at most"

// read parses the evidence and checks the sizes of its parts.
func read(b []byte) (pki.X5CEvidence, error) {
	refuse := func(detail string, args ...any) (pki.X5CEvidence, error) {
		return pki.X5CEvidence{}, pki.Refuse(pki.RuleEvidenceSize, hintEvidence, detail, args...)
	}
	if len(b) > maxEvidence {
		return refuse("the evidence has %d bytes, and may have %d", len(b), maxEvidence)
	}
	e, err := pki.ParseX5CEvidence(b)
	if err != nil {
		return pki.X5CEvidence{}, refuseIncomplete()
	}
	if err := checkSizes(e.Certificates); err != nil {
		return pki.X5CEvidence{}, err
	}
	if len(e.Signature) > maxSignature {
		return refuse("the signature has %d bytes, and may have %d", len(e.Signature), maxSignature)
	}
	return e, nil
}

// readTLS parses evidence whose connection proves it, and checks the sizes of its parts.
func readTLS(b []byte) (pki.X5CTLSEvidence, error) {
	if len(b) > maxEvidence {
		return pki.X5CTLSEvidence{}, pki.Refuse(pki.RuleEvidenceSize, hintEvidence,
			"the evidence has %d bytes, and may have %d", len(b), maxEvidence)
	}
	e, err := pki.ParseX5CTLSEvidence(b)
	if err != nil {
		return pki.X5CTLSEvidence{}, refuseIncomplete()
	}
	return e, checkSizes(e.Certificates)
}

func refuseIncomplete() error {
	return refuseMalformed("the evidence has no certificate, or is incomplete")
}

// checkSizes refuses no certificate, too many, and one that is too large.
func checkSizes(certificates [][]byte) error {
	n := len(certificates)
	switch {
	case n == 0:
		return refuseIncomplete()
	case n > maxCertificates:
		return pki.Refuse(pki.RuleEvidenceSize, hintEvidence, "the evidence has %d certificates, and may have %d", n, maxCertificates)
	}
	for i, der := range certificates {
		if len(der) > maxCertificate {
			return pki.Refuse(pki.RuleEvidenceSize, hintEvidence, "certificate %d has %d bytes, and may have %d", i+1, len(der), maxCertificate)
		}
	}
	return nil
}

// parse parses the certificates and checks their order. No two may have the same subject, so that there is only one way
// to build a chain of them.
func parse(ders [][]byte) ([]*x509.Certificate, error) {
	chain := make([]*x509.Certificate, len(ders))
	for i, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil { // the error may contain names
			return nil, refuseMalformed("certificate %d does not parse (openssl x509 -text)", i+1)
		}
		if i > 0 && !bytes.Equal(chain[i-1].RawIssuer, c.RawSubject) {
			return nil, refuseMalformed("certificate %d is not of the issuer of certificate %d", i+1, i)
		}
		same := func(other *x509.Certificate) bool { return bytes.Equal(other.RawSubject, c.RawSubject) }
		if slices.ContainsFunc(chain[:i], same) {
			return nil, refuseMalformed("certificate %d has the subject of another", i+1)
		}
		chain[i] = c
	}
	return chain, nil
}

// verify returns the source that vouches for the device, and the chain from the device to its root.
func (all sources) verify(presented []*x509.Certificate, at time.Time) (*source, []*x509.Certificate, error) {
	if err := checkDevice(presented[0], at); err != nil {
		return nil, nil, err
	}
	var refused error
	for _, s := range all {
		between, ok := s.between(presented)
		if !ok {
			continue
		}
		chain, err := s.verify(between, at)
		if err == nil {
			return s, chain, nil
		}
		// A source whose keys verify the chain says more about the reason.
		if refused == nil || errors.Is(refused, errUnknown) {
			refused = err
		}
	}
	if refused == nil {
		refused = refuseUntrusted("no trust source has the issuer of certificate %d, the last one", len(presented))
	}
	return nil, nil, refused
}

// errUnknown marks the refusal of a chain that no key of the source verifies.
var errUnknown = errors.New("unknown authority")

// verify returns the chain from the device to a root of the source.
func (s *source) verify(between []*x509.Certificate, at time.Time) ([]*x509.Certificate, error) {
	if err := checkIssuers(between, at); err != nil {
		return nil, err
	}
	if n := len(between) + 1; n > s.maxChain {
		return nil, s.refuseLength(n)
	}
	device := between[0]
	if t, err := ca.TypeOf(device.PublicKey); err != nil || !slices.Contains(s.keys, t) {
		return nil, pki.Refuse(pki.RuleEvidenceAlgorithm,
			"use a device with one of "+pki.JoinKeyTypes(s.keys)+", or ask an operator to allow its key",
			"source %s does not allow keys like that of the device", s.name)
	}
	intermediates := s.intermediates
	if len(between) > 1 {
		intermediates = intermediates.Clone()
		for _, c := range between[1:] {
			intermediates.AddCert(c)
		}
	}
	chains, err := device.Verify(x509.VerifyOptions{
		Roots: s.roots, Intermediates: intermediates, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, s.refusal(err, at)
	}
	var shortest []*x509.Certificate
	for _, chain := range chains {
		if startsWith(chain, between) && (shortest == nil || len(chain) < len(shortest)) {
			shortest = chain
		}
	}
	switch {
	case shortest == nil:
		return nil, refuseUntrusted("source %s vouches for the device, but not for each CA certificate that was sent",
			s.name)
	case len(shortest) > s.maxChain:
		return nil, s.refuseLength(len(shortest))
	default:
		return shortest, nil
	}
}

func (s *source) refuseLength(n int) error {
	return pki.Refuse(pki.RuleEvidenceSize,
		"ask an operator to raise the maximum, or to trust a CA nearer to the device",
		"the chain has %d certificates, and source %s allows %d", n, s.name, s.maxChain)
}

// startsWith reports whether the chain begins with the certificates that were sent. Otherwise crypto/x509 found another
// way to the root, and did not verify one of them.
func startsWith(chain, sent []*x509.Certificate) bool {
	return len(chain) > len(sent) && slices.EqualFunc(chain[:len(sent)], sent, (*x509.Certificate).Equal)
}

// refusal converts an error of x509.Certificate.Verify. The certificates that were sent are checked before.
func (s *source) refusal(err error, at time.Time) error {
	var invalid x509.CertificateInvalidError
	if !errors.As(err, &invalid) {
		refused := refuseUntrusted("the chain is signed by none of the CAs of source %s", s.name)
		var unknown x509.UnknownAuthorityError
		if errors.As(err, &unknown) {
			return errors.Join(refused, errUnknown)
		}
		return refused
	}
	switch invalid.Reason {
	case x509.Expired: // of a certificate that was not sent
		if refused := checkTime("a CA certificate of source "+s.name, invalid.Cert, at); refused != nil {
			return refused
		}
		return refuseUntrusted("the chain does not verify at %s", at.UTC().Format(time.RFC3339))
	case x509.TooManyIntermediates:
		return refuseUntrusted("the chain is longer than one of its CA certificates allows (pathLenConstraint)")
	case x509.IncompatibleUsage:
		return refuseUntrusted("the extended key usage of the certificates does not allow TLS clients")
	case x509.CANotAuthorizedForThisName, x509.NameConstraintsWithoutSANs, x509.TooManyConstraints:
		return refuseUntrusted("the name constraints of a CA certificate do not allow a name in the chain")
	default: // the error may contain names
		return refuseUntrusted("the chain does not verify (openssl verify)")
	}
}

// checkIssuers checks the CA certificates that were sent, before their keys are used.
func checkIssuers(between []*x509.Certificate, at time.Time) error {
	for i, c := range between[1:] {
		name := fmt.Sprintf("certificate %d", i+2)
		if err := checkAlgorithms(name, c); err != nil {
			return err
		}
		if err := checkTime(name, c, at); err != nil {
			return err
		}
		if err := checkCA(c); err != nil {
			return refuseUntrusted("%s certifies the one before it: %v", name, err)
		}
	}
	return nil
}

// checkTime refuses a certificate that is not valid at a time. Its subject is not in the refusal, because it can be
// personal data.
func checkTime(name string, c *x509.Certificate, at time.Time) error {
	if at.Before(c.NotBefore) {
		return pki.Refuse(pki.RuleEvidenceNotYet, "check the server's clock",
			"%s is not valid before %s, and the server's time is %s",
			name, c.NotBefore.Format(time.RFC3339), at.UTC().Format(time.RFC3339))
	}
	if at.After(c.NotAfter) {
		return pki.Refuse(pki.RuleEvidenceExpired, "check the server's clock, or enroll the device with a token",
			"%s was valid until %s, and the server's time is %s",
			name, c.NotAfter.Format(time.RFC3339), at.UTC().Format(time.RFC3339))
	}
	return nil
}

// checkDevice checks the certificate of a device. It removes the subject alternative name from the unhandled critical
// extensions of c if it understands every name.
func checkDevice(c *x509.Certificate, at time.Time) error {
	const name = "certificate 1"
	if err := checkAlgorithms(name, c); err != nil {
		return err
	}
	if err := checkTime(name, c, at); err != nil {
		return err
	}
	if c.IsCA || c.KeyUsage&x509.KeyUsageCertSign != 0 {
		return refuseUntrusted("certificate 1 is that of a CA, not of a device")
	}
	if c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return refuseUntrusted("the key usage of the device's certificate does not allow signatures")
	}
	names, err := namesOf(c)
	if err != nil {
		return err
	}
	c.UnhandledCriticalExtensions = slices.DeleteFunc(c.UnhandledCriticalExtensions, oidSubjectAltName.Equal)
	if names.unknownCritical {
		c.UnhandledCriticalExtensions = append(c.UnhandledCriticalExtensions, oidSubjectAltName)
	}
	if unhandled := c.UnhandledCriticalExtensions; len(unhandled) > 0 {
		return refuseUntrusted("the critical extension %s of the device's certificate is unknown", unhandled[0])
	}
	return nil
}

// checkCA returns an error if c cannot be the certificate of a CA in a chain.
func checkCA(c *x509.Certificate) error {
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return errors.New("it is not the certificate of a CA (basicConstraints)")
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("its key usage does not allow signing certificates")
	case len(c.UnhandledCriticalExtensions) > 0:
		return fmt.Errorf("its critical extension %s is unknown", c.UnhandledCriticalExtensions[0])
	default:
		return checkKey(c.PublicKey)
	}
}

// signatures are the accepted algorithms of signatures in certificates.
var signatures = []x509.SignatureAlgorithm{
	x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512, x509.PureEd25519,
	x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
	x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
}

// checkAlgorithms refuses keys and signatures that are not accepted.
func checkAlgorithms(name string, c *x509.Certificate) error {
	err := checkKey(c.PublicKey)
	if err == nil && !slices.Contains(signatures, c.SignatureAlgorithm) {
		err = fmt.Errorf("its signature has the algorithm %s", c.SignatureAlgorithm)
	}
	if err == nil {
		return nil
	}
	return pki.Refuse(pki.RuleEvidenceAlgorithm,
		"use ECDSA on P-256, P-384 or P-521, RSA of 2048 to 4096 bits, or Ed25519, and SHA-256 or longer",
		"%s is not accepted: %v", name, err)
}

// checkKey returns an error for keys whose signatures are not accepted, or expensive to verify.
func checkKey(key any) error {
	switch key := key.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSA || bits > maxRSA {
			return fmt.Errorf("its RSA key has %d bits", bits)
		}
		if key.E < 3 || key.E%2 == 0 {
			return fmt.Errorf("its RSA key has the exponent %d", key.E)
		}
		return nil
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P256() || key.Curve == elliptic.P384() || key.Curve == elliptic.P521() {
			return nil
		}
		return fmt.Errorf("its key is on the curve %s", key.Params().Name)
	case ed25519.PublicKey:
		return nil
	default:
		return errors.New("its key is of an unknown type")
	}
}

// refuseUntrusted refuses a chain that no source vouches for.
func refuseUntrusted(detail string, args ...any) *pki.Refusal {
	return pki.Refuse(pki.RuleEvidenceUntrusted,
		"send an IDevID certificate whose chain leads to a trust source, or ask an operator to configure its manufacturer",
		detail, args...)
}

func refuseMalformed(detail string, args ...any) *pki.Refusal {
	return pki.Refuse(pki.RuleEvidenceMalformed, hintEvidence, detail, args...)
}
