package authz

import (
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// allGood reports every certificate as good.
type allGood struct{}

func (allGood) IsStale() bool { return false }

func (allGood) Status(pki.CertRef) (pki.Status, bool) {
	return pki.Status{State: pki.Good, Version: 1}, true
}

// newCA returns a CA with a key derived from the seed.
func newCA(t testing.TB, seed byte) (*x509.Certificate, ed25519.PrivateKey) {
	t.Helper()
	key := ed25519.NewKeyFromSeed(append(make([]byte, ed25519.SeedSize-1), seed))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, SubjectKeyId: []byte{1}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c, key
}

// FuzzCaller authenticates certificates with arbitrary names, serial numbers, purposes and extensions, signed by the CA
// or by another CA with the same name. Only a valid client certificate that the CA signed for an identity may pass.
// Every refusal must have a rule, a detail and a hint.
func FuzzCaller(f *testing.F) {
	ours, key := newCA(f, 1)
	_, foreign := newCA(f, 2)
	now := time.Unix(1<<31, 0)
	roots := x509.NewCertPool()
	roots.AddCert(ours)
	a := New(Config{
		TrustDomain: "fleet.example", Roots: roots, Intermediates: x509.NewCertPool(), Statuses: allGood{},
		Clock: func() time.Time { return now },
	})
	uris := func(texts ...string) []byte {
		var names []asn1.RawValue
		for _, text := range texts {
			names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(text)})
		}
		der, err := asn1.Marshal(names)
		if err != nil {
			f.Fatal(err)
		}
		return der
	}
	device := uris("spiffe://fleet.example/device/1")
	f.Add(true, device, []byte{1}, int64(-1), int64(1), uint8(x509.ExtKeyUsageClientAuth), uint8(0), []byte{})
	f.Add(false, device, []byte{1}, int64(-1), int64(1), uint8(x509.ExtKeyUsageClientAuth), uint8(0), []byte{})
	f.Add(true, device, make([]byte, 21), int64(-2), int64(-1), uint8(x509.ExtKeyUsageAny), uint8(19), []byte{0x30, 3, 1, 1, 0xff})
	f.Add(true, uris("spiffe://fleet.example/brevet/server", "spiffe://fleet.example/device/1"), []byte{0xff}, int64(1), int64(2), uint8(x509.ExtKeyUsageServerAuth), uint8(30), []byte{0x30, 0})
	f.Add(true, uris("spiffe://other.example/%62revet/operator/a"), []byte{2}, int64(-1), int64(1), uint8(x509.ExtKeyUsageClientAuth), uint8(15), []byte{3, 2, 1, 6})
	f.Add(true, []byte{0x30, 0}, []byte{}, int64(-1), int64(1), uint8(x509.ExtKeyUsageClientAuth), uint8(37), []byte{0x30, 0})
	f.Fuzz(func(t *testing.T, signed bool, names, serial []byte, begin, end int64, purpose, arc uint8, value []byte) {
		by := foreign
		if signed {
			by = key
		}
		template := &x509.Certificate{
			SerialNumber: new(big.Int).SetBytes(serial), Subject: pkix.Name{CommonName: "x"},
			NotBefore: now.Add(time.Duration(begin%1000) * time.Hour), NotAfter: now.Add(time.Duration(end%1000) * time.Hour),
			ExtKeyUsage:     []x509.ExtKeyUsage{x509.ExtKeyUsage(purpose) % (x509.ExtKeyUsageOCSPSigning + 1)},
			ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: names}},
		}
		if arc != 0 && arc != 17 {
			template.ExtraExtensions = append(template.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, int(arc)}, Value: value})
		}
		der, err := x509.CreateCertificate(nil, template, ours, by.Public(), by)
		if err != nil {
			return // x509 refuses to create this certificate
		}
		client, err := NewClient(der)
		if err != nil {
			return // crypto/tls would end the handshake
		}
		leaf := client.leaf
		c, err := a.verify(client, false)
		if r, ok := pki.AsRefusal(err); err != nil && (!ok || r.Rule == "" || r.Detail == "" || r.Hint == "") {
			t.Fatalf("%v is not a complete refusal", err)
		}
		if err == nil && (now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) || c.ID.IsZero()) {
			t.Fatalf("%x passes at %s as %q", der, now, c.ID)
		}
		if c.ID.IsZero() {
			return // verify attributes the certificate to no identity
		}
		if !signed || len(leaf.URIs) != 1 || c.ID.String() != leaf.URIs[0].String() || c.ID.TrustDomain() != a.config.TrustDomain || leaf.CheckSignatureFrom(ours) != nil {
			t.Fatalf("%x is attributed to %q", der, c.ID)
		}
	})
}
