package crl_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
)

// takes imports a CRL. Import must refuse it, or it must be a complete, current CRL of the root and be published.
func (s *scene) takes(t *testing.T, der []byte) {
	t.Helper()
	_, err := s.Import(t.Context(), der, operator)
	published := s.outlet.Published()
	if err != nil {
		if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != pki.RuleCRL || len(published) != 0 {
			t.Fatalf("%v is not a refusal by %s, or %d CRLs are published nevertheless", err, pki.RuleCRL, len(published))
		}
		return
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil || len(published) != 1 || !bytes.Equal(published[0].DER, der) || published[0].Issuer != s.root.ID() {
		t.Fatalf("%d CRLs are published, %v", len(published), err)
	}
	if err := list.CheckSignatureFrom(s.root.Certificate); err != nil || time.Until(list.NextUpdate) <= 0 || time.Until(list.ThisUpdate) > 0 {
		t.Fatalf("a CRL from %s to %s is published, %v", list.ThisUpdate, list.NextUpdate, err)
	}
	for _, e := range list.Extensions {
		if partial := len(e.Id) == 4 && (e.Id[3] == 27 || e.Id[3] == 28); partial || e.Critical {
			t.Fatalf("a partial CRL with the extension %s is published", e.Id)
		}
	}
}

func FuzzImport(f *testing.F) {
	s := newScene(f, revtest.Never)
	f.Add(rootCRL(f, s.root, nil))
	f.Add(rootCRL(f, s.ca, nil))
	f.Add(s.root.Certificate.Raw)
	f.Add([]byte{0x30, 0x80, 0, 0})
	f.Fuzz(func(t *testing.T, der []byte) {
		s.book, s.outlet = revtest.NewBook(), &revtest.Outlet{}
		s.start(t, revtest.Never)
		s.takes(t, der)
	})
}

// FuzzSignedCRL imports CRLs with arbitrary content and a valid signature. The signature alone must not be sufficient.
func FuzzSignedCRL(f *testing.F) {
	f.Add([]byte{1}, int64(-1), int64(3600), false, uint8(46), []byte{0x30, 0})
	f.Add([]byte{0xff}, int64(3600), int64(7200), false, uint8(29), []byte{})
	f.Add([]byte{1}, int64(-1), int64(3600), true, uint8(28), []byte{0x30, 0})
	f.Add([]byte{1}, int64(-1), int64(3600), false, uint8(27), []byte{2, 1, 1})
	f.Add(bytes.Repeat([]byte{0xff}, 21), int64(-7200), int64(-3600), true, uint8(27), []byte{2, 1, 1})
	f.Add([]byte{}, int64(0), int64(1)<<40, false, uint8(35), []byte{4, 0})
	f.Fuzz(func(t *testing.T, number []byte, begin, end int64, critical bool, arc uint8, value []byte) {
		s := newScene(t, revtest.Never)
		now := time.Now()
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
			Number:     new(big.Int).SetBytes(number),
			ThisUpdate: now.Add(time.Duration(begin) * time.Second), NextUpdate: now.Add(time.Duration(end) * time.Second),
			ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, int(arc)}, Critical: critical, Value: value}},
		}, s.root.Certificate, s.root.Key)
		if err == nil { // crypto/x509 can parse the content
			s.takes(t, der)
		}
	})
}
