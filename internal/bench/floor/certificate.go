package floor

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"
)

// oidUserID is the attribute of the subject that contains the path of the identity (RFC 4519 §2.39).
var oidUserID = asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1}

// request is the request that one goroutine issues for repeatedly, for its own identity.
type request struct {
	identity int64
	csr      []byte
	uri      *url.URL
	name     string
}

func newRequest(n int) (request, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return request{}, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	name := fmt.Sprintf("device/%d", n)
	return request{int64(n) + 1, csr, &url.URL{Scheme: "spiffe", Host: "dev.brevet.internal", Path: "/" + name}, name}, err
}

// check parses the request and verifies the proof of possession.
func (r request) check() (crypto.PublicKey, error) {
	csr, err := x509.ParseCertificateRequest(r.csr)
	if err != nil {
		return nil, err
	}
	return csr.PublicKey, csr.CheckSignature()
}

// row holds the columns of a certificate in the database.
type row struct {
	serial    []byte
	identity  int64
	issuedAt  time.Time
	notBefore time.Time
	notAfter  time.Time
	der       []byte
	request   []byte
}

// certify builds a certificate like those of profile "device" and signs it with the session. x509.CreateCertificate
// verifies the signature.
func (r request) certify(issuer *x509.Certificate, key crypto.PublicKey, s *session) (row, error) {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return row{}, err
	}
	now := time.Now()
	out := row{
		serial: newSerial(now), identity: r.identity, request: make([]byte, 16),
		issuedAt: now, notBefore: now.Add(-time.Minute).Truncate(time.Second), notAfter: now.Add(24 * time.Hour).Truncate(time.Second),
	}
	_, _ = rand.Read(out.request) // never fails
	hash := sha256.Sum256(spki)
	out.der, err = x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(out.serial), NotBefore: out.notBefore.UTC(), NotAfter: out.notAfter.UTC(),
		Subject: pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: oidUserID, Value: r.name}}}, SubjectKeyId: hash[:20], URIs: []*url.URL{r.uri},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
		CRLDistributionPoints: []string{"http://127.0.0.1:12345/crl/0123456789abcdef.crl"},
		OCSPServer:            []string{"http://127.0.0.1:12345/ocsp"},
		IssuingCertificateURL: []string{"http://127.0.0.1:12345/ca/0123456789abcdef.cer"},
	}, issuer, key, s)
	return out, err
}

// newSerial returns 6 bytes of milliseconds and 14 random bytes.
func newSerial(now time.Time) []byte {
	serial := make([]byte, 22)
	binary.BigEndian.PutUint64(serial, uint64(now.UnixMilli()))
	_, _ = rand.Read(serial[8:]) // never fails
	return serial[2:]
}

// selfSigned returns the certificate of the issuer.
func selfSigned(s *session) (*x509.Certificate, error) {
	spki, err := x509.MarshalPKIXPublicKey(s.public)
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256(spki)
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(newSerial(now)), Subject: pkix.Name{CommonName: "Brevet Development Issuing G1"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(48 * time.Hour), SubjectKeyId: id[:20],
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, s.public, s)
	if err != nil {
		return nil, errors.Join(errors.New("the HSM's key does not make a CA"), err)
	}
	return x509.ParseCertificate(der)
}
