package ceremony

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"fmt"

	"github.com/brevet-pki/brevet/pki"
)

// RequestSpec describes a request. The root decides everything except subject and key.
type RequestSpec struct {
	Subject Subject
}

// Request returns the DER of a PKCS #10 request (RFC 2986) of a new CA for the signer's key.
func Request(signer crypto.Signer, spec RequestSpec) ([]byte, error) {
	if spec.Subject.IsZero() {
		return nil, refuseSubject("the request has no subject")
	}
	algorithm, err := signatureAlgorithm(signer.Public())
	if err != nil {
		return nil, err
	}
	template := &x509.CertificateRequest{RawSubject: spec.Subject.bytes(), SignatureAlgorithm: algorithm}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, signer)
	if err != nil {
		return nil, fmt.Errorf("sign request: %w", err)
	}
	return der, nil
}

const maxRequestBytes = 64 << 10 // bytes

// readRequest parses a request, and checks its key and its proof of possession.
func readRequest(der []byte) (*x509.CertificateRequest, Subject, error) {
	if len(der) > maxRequestBytes {
		return nil, Subject{}, pki.Refuse(pki.RuleCSR, "give the file that 'brevet ceremony intermediate request' wrote",
			"the request has %d bytes, more than %d", len(der), maxRequestBytes)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, Subject{}, pki.Refuse(pki.RuleCSR, "give the file that 'brevet ceremony intermediate request' wrote",
			"this is not a PKCS #10 request: %v", err)
	}
	if _, err := signatureAlgorithm(csr.PublicKey); err != nil {
		return nil, Subject{}, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, Subject{}, pki.Refuse(pki.RuleCSRSignature, "make the request again, signed with its own key",
			"the request's signature does not verify: %v", err)
	}
	subject, err := subjectFromDER(csr.RawSubject)
	if err != nil {
		return nil, Subject{}, err
	}
	return csr, subject, nil
}
