package crl_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
	"pgregory.net/rapid"
)

// TestEntriesMatchEncodingASN1 compares encoded entries with the output of encoding/asn1.
func TestEntriesMatchEncodingASN1(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		number := new(big.Int).SetBytes(rapid.SliceOfN(rapid.Byte(), 1, 20).Draw(r, "serial"))
		number.SetBit(number, 159, 0)
		serial, err := pki.SerialFromInt(number)
		if err != nil {
			r.Skip("no serial")
		}
		at := time.Unix(rapid.Int64Range(0, 4102444800).Draw(r, "at"), 0).UTC() // up to the year 2100
		thisUpdate := at.Add(time.Hour)
		e := crl.Entry{Serial: serial, RevokedAt: at, Reason: pki.Reason(rapid.SampledFrom([]int{0, 1, 4, 6, 10}).Draw(r, "reason"))}
		want := pkix.RevokedCertificate{SerialNumber: number, RevocationTime: at}
		reason := int(e.Reason)
		if rapid.Bool().Draw(r, "removed") {
			e.Removed, e.RevokedAt, e.Reason, want.RevocationTime, reason = true, time.Time{}, 0, thisUpdate, 8
		} else if rapid.Bool().Draw(r, "late") {
			e.RevokedAt, want.RevocationTime = thisUpdate.Add(time.Minute), thisUpdate
		}
		if reason != 0 {
			want.Extensions = append(want.Extensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 21}, Value: mustMarshal(r, asn1.Enumerated(reason), "")})
		}
		if !e.Removed && rapid.Bool().Draw(r, "has an invalidity date") {
			e.InvalidSince = time.Unix(rapid.Int64Range(-1e9, 4e9).Draw(r, "since"), 0).UTC()
			want.Extensions = append(want.Extensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 24}, Value: mustMarshal(r, e.InvalidSince, "generalized")})
		}
		got, size := crl.EncodeEntries(thisUpdate, []crl.Entry{e})
		if der := mustMarshal(r, want, ""); !bytes.Equal(got, der) || size != int64(len(der)) {
			r.Fatalf("%+v is encoded as\n%x, with size %d, want\n%x", e, got, size, der)
		}
	})
}

func mustMarshal(r *rapid.T, v any, params string) []byte {
	der, err := asn1.MarshalWithParams(v, params)
	if err != nil {
		r.Fatal(err)
	}
	return der
}

// TestSignatureShorterThanReserved signs a CRL with a signature below its maximum length, so that the outer header is
// shorter.
func TestSignatureShorterThanReserved(t *testing.T) {
	ca := revtest.NewRoot(t, "Root", "p256")
	template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	for range 3000 { // so that more than one chunk must be moved
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: revtest.Serial(t).Int(), RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, ca.Certificate, ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "crl")
	crl, err := crl.SignShifted(path, crl.Issuer{Certificate: ca.Certificate, Signer: ca.Key}, list.RawTBSRevocationList)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := x509.ParseRevocationList(sealed)
	if err != nil || !bytes.Equal(again.RawTBSRevocationList, list.RawTBSRevocationList) || again.CheckSignatureFrom(ca.Certificate) != nil || crl.Size != int64(len(sealed)) {
		t.Errorf("the CRL has %d bytes and its record says %d; parsing it: %v", len(sealed), crl.Size, err)
	}
}

func TestReadNumber(t *testing.T) {
	ca := revtest.NewRoot(t, "Root", "p256")
	der := rootCRL(t, ca, func(l *x509.RevocationList) {
		l.Number = new(big.Int).Lsh(big.NewInt(3), 150)
		for range 5000 {
			l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: revtest.Serial(t).Int(), RevocationTime: time.Now()})
		}
	})
	counted := &countingReader{ReaderAt: bytes.NewReader(der)}
	n, err := crl.ReadNumber(counted, int64(len(der)))
	if err != nil || n.Cmp(new(big.Int).Lsh(big.NewInt(3), 150)) != 0 {
		t.Errorf("ReadNumber = %v, %v", n, err)
	}
	if counted.bytes > 1024 {
		t.Errorf("ReadNumber reads %d bytes of a CRL of %d", counted.bytes, len(der))
	}
	for name, bad := range map[string][]byte{
		"empty": nil, "one byte": der[:1], "half": der[:len(der)/2], "no signature": der[:len(der)-10], "trailing byte": append(slices.Clone(der), 0),
		"zeros": make([]byte, 200), "a certificate": ca.Certificate.Raw,
	} {
		if n, err := crl.ReadNumber(bytes.NewReader(bad), int64(len(bad))); err == nil {
			t.Errorf("ReadNumber of %s = %v, want an error", name, n)
		}
	}
}

type countingReader struct {
	io.ReaderAt
	bytes int
}

func (r *countingReader) ReadAt(b []byte, at int64) (int, error) {
	r.bytes += len(b)
	return r.ReaderAt.ReadAt(b, at)
}

// FuzzReadNumber compares ReadNumber with crypto/x509, for every input that crypto/x509 parses.
func FuzzReadNumber(f *testing.F) {
	ca := revtest.NewRoot(f, "Root", "p256")
	f.Add(rootCRL(f, ca, nil))
	f.Add(rootCRL(f, ca, func(l *x509.RevocationList) { l.ExtraExtensions = onlyUsers() }))
	f.Add([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, der []byte) {
		n, err := crl.ReadNumber(bytes.NewReader(der), int64(len(der)))
		list, goErr := x509.ParseRevocationList(der)
		if goErr != nil || len(list.Raw) != len(der) || list.Number == nil || list.Number.Sign() < 0 || list.Number.BitLen() >= 160 {
			return
		}
		if err != nil || n.Cmp(list.Number) != 0 {
			t.Errorf("number %v, %v; crypto/x509 says %v", n, err, list.Number)
		}
	})
}

// TestWrongSignatureIsNotPublished signs with a key that does not belong to the certificate. The CRL must not be
// published.
func TestWrongSignatureIsNotPublished(t *testing.T) {
	s := newScene(t, revtest.Never)
	other := revtest.Key(t, "p256")
	u, err := crl.New(t.Context(), crl.Config{
		Issuers: []crl.Issuer{{Certificate: s.ca.Certificate, Signer: lyingKey{s.ca.Key, other}}},
		Store:   s.book, Publisher: s.outlet, Directory: s.dir,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.PublishNow(t.Context()); err == nil || len(s.outlet.Published()) != 0 {
		t.Errorf("%d CRLs with another key's signature are published: %v", len(s.outlet.Published()), err)
	}
	if all, err := s.book.CRLs(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("%d CRLs with another key's signature are recorded: %v", len(all), errors.Join(err))
	}
}

// lyingKey is a key whose public key does not belong to the private key with which it signs.
type lyingKey struct{ shown, signs crypto.Signer }

func (k lyingKey) Public() crypto.PublicKey { return k.shown.Public() }

func (k lyingKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.signs.Sign(random, digest, opts)
}
