package x5c

import (
	"crypto/x509"
	"testing"

	"github.com/brevet-pki/brevet/pki"
)

// A CRL belongs to a name and a key. Neither CAs with other key identifiers nor many CAs with one name cost more and more
// memory.
func TestCRLsBelongToKeys(t *testing.T) {
	l := &crl{keyID: []byte{1}, signed: new(x509.RevocationList), verified: map[pki.IssuerID]bool{}}
	issuer := func(key, id byte) *x509.Certificate {
		return &x509.Certificate{RawSubject: []byte("CN=Acme"), RawSubjectPublicKeyInfo: []byte{key}, SubjectKeyId: []byte{id}}
	}
	for key := range byte(200) {
		if l.isSignedBy(issuer(key, 2)) {
			t.Error("a CRL is taken for that of a CA with another key identifier")
		}
	}
	if len(l.verified) != 0 {
		t.Errorf("the signature was verified with %d keys that have another identifier", len(l.verified))
	}
	for key := range byte(200) {
		if l.isSignedBy(issuer(key, 1)) {
			t.Error("a CRL without a signature is accepted")
		}
	}
	if n := len(l.verified); n == 0 || n > maxVerified {
		t.Errorf("the results for %d keys are remembered, want 1 to %d", n, maxVerified)
	}
	l.keyID = nil
	if l.verified[pki.IssuerOf(issuer(199, 1))] = true; !l.isSignedBy(issuer(199, 9)) {
		t.Error("a CRL without a key identifier is not accepted")
	}
}
