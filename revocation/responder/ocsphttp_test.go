package responder_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	encoding_asn1 "encoding/asn1"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	xocsp "golang.org/x/crypto/ocsp"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
	"github.com/brevet-pki/brevet/revocation/ocsp"
	"github.com/brevet-pki/brevet/revocation/responder"
)

// singleRequest returns the only entry of requestList in a request that x/crypto/ocsp encoded.
func singleRequest(t testing.TB, der []byte) []byte {
	t.Helper()
	outer := cryptobyte.String(der)
	for range 3 {
		if !outer.ReadASN1(&outer, asn1.SEQUENCE) {
			t.Fatalf("%x is not an OCSP request", der)
		}
	}
	return outer
}

// composeRequest encodes a request with the given entries and a nonce of the given length. If the length is negative,
// there is no nonce.
func composeRequest(t testing.TB, nonce int, entries ...[]byte) []byte {
	t.Helper()
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(slices.Concat(entries...)) })
			if nonce < 0 {
				return
			}
			b.AddASN1(asn1.Tag(2).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
				b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(nonceExtension(t, nonce)) })
			})
		})
	})
	der, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func nonceExtension(t testing.TB, size int) []byte {
	t.Helper()
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(encoding_asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2})
		b.AddASN1(asn1.OCTET_STRING, func(b *cryptobyte.Builder) { b.AddASN1OctetString(bytes.Repeat([]byte{7}, size)) })
	})
	der, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestNonceIsRepeatedOrRefused(t *testing.T) {
	s := newFixture(t, responder.Config{}, revtest.Key(t, "p256"))
	leaf, _ := s.issue(t)
	entry := singleRequest(t, request(t, leaf, s.ca.Certificate, crypto.SHA1))
	for size, want := range map[int]string{0: malformed, 1: "good", 15: "good", 16: "good", 32: "good", 33: "good", 128: "good", 129: malformed} {
		der := composeRequest(t, size, entry)
		answer := s.post(t, der)
		if got, _ := s.read(t, leaf, answer); got != want {
			t.Errorf("a nonce of %d bytes: %s, want %s", size, got, want)
		}
		if echoed := bytes.Contains(answer, nonceExtension(t, size)); echoed != (want == "good") {
			t.Errorf("a nonce of %d bytes: contained in the response: %v", size, echoed)
		}
		if got := s.get(t, pathOf(der)).Header().Get("Cache-Control"); got != "no-store" {
			t.Errorf("a nonce of %d bytes: Cache-Control %q", size, got)
		}
	}
	if n := responder.CachedCount(s.Responder); n != 0 {
		t.Errorf("%d responses with a nonce are cached", n)
	}
}

func TestRequestsAboutSeveralCertificates(t *testing.T) {
	s := newFixture(t, responder.Config{}, revtest.Key(t, "p256"))
	young := s.root.Intermediate(t, "Young CA", "p256")
	if err := s.AddIssuer(young.Certificate); err != nil {
		t.Fatal(err)
	}
	key := revtest.Key(t, "ed25519")
	if err := s.SetDelegate(young.ID(), young.Delegate(t, key, nil), key); err != nil {
		t.Fatal(err)
	}
	leaf, _ := s.issue(t)
	entry := func(issuer *x509.Certificate, h crypto.Hash) []byte {
		return singleRequest(t, request(t, leaf, issuer, h))
	}
	ours, theirs := entry(s.ca.Certificate, crypto.SHA1), entry(young.Certificate, crypto.SHA1)
	for name, c := range map[string]struct {
		der  []byte
		want string
	}{
		"both hashes":           {composeRequest(t, -1, ours, entry(s.ca.Certificate, crypto.SHA256)), "good"},
		"one certificate twice": {composeRequest(t, -1, ours, ours), "good"},
		"sixteen":               {composeRequest(t, -1, bytes.Repeat(ours, 16)), "good"},
		"sixteen, with a nonce": {composeRequest(t, 32, bytes.Repeat(ours, 16)), "good"},
		"seventeen":             {composeRequest(t, -1, bytes.Repeat(ours, 17)), malformed},
		"two CAs":               {composeRequest(t, -1, ours, theirs), unauthorized},
		"two CAs, with a nonce": {composeRequest(t, 32, ours, theirs), unauthorized},
		"an unknown CA":         {composeRequest(t, -1, ours, entry(leaf, crypto.SHA1)), unauthorized},
		"an unsupported hash":   {composeRequest(t, -1, ours, entry(s.ca.Certificate, crypto.SHA384)), unauthorized},
	} {
		if got, _ := s.read(t, leaf, s.post(t, c.der)); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	if n := responder.CachedCount(s.Responder); n != 0 {
		t.Errorf("%d responses about several certificates are cached", n)
	}
}

// TestNeverIssuedIsUnknownOrExtendedRevoked requests the status of certificates that were never issued (RFC 6960 §2.2,
// §4.4.8).
func TestNeverIssuedIsUnknownOrExtendedRevoked(t *testing.T) {
	extended := []byte{0x30, 0x0f, 6, 9, 0x2b, 6, 1, 5, 5, 7, 0x30, 1, 9, 4, 2, 5, 0}
	for _, revoke := range []bool{false, true} {
		s := newFixture(t, responder.Config{ExtendedRevoke: revoke}, revtest.Key(t, "p256"))
		leaf, _ := s.issue(t)
		stranger := s.ca.Leaf(t, "stranger")
		plain := s.post(t, request(t, stranger, s.ca.Certificate, crypto.SHA1))
		for name, answer := range map[string][]byte{
			"plain":      plain,
			"with nonce": s.post(t, composeRequest(t, 32, singleRequest(t, request(t, stranger, s.ca.Certificate, crypto.SHA256)))),
			"beside a good one": s.post(t, composeRequest(t, -1, singleRequest(t, request(t, leaf, s.ca.Certificate, crypto.SHA1)),
				singleRequest(t, request(t, stranger, s.ca.Certificate, crypto.SHA1)))),
		} {
			got, response := s.read(t, stranger, answer)
			if bytes.Contains(answer, extended) != revoke {
				t.Errorf("%s: the response has the extension: %v, want %v", name, !revoke, revoke)
			}
			switch {
			case !revoke && got != "unknown":
				t.Errorf("%s: %s, want unknown", name, got)
			case revoke && (got != "revoked" || response.RevocationReason != xocsp.CertificateHold || !response.RevokedAt.Equal(time.Unix(0, 0))):
				t.Errorf("%s: %s at %v for %d", name, got, response.RevokedAt, response.RevocationReason)
			}
		}
		if got := s.get(t, pathOf(request(t, stranger, s.ca.Certificate, crypto.SHA1))).Header().Get("Cache-Control"); got != "no-store" {
			t.Errorf("Cache-Control %q", got)
		}
		good := s.post(t, request(t, leaf, s.ca.Certificate, crypto.SHA1))
		if got, _ := s.read(t, leaf, good); got != "good" || bytes.Contains(good, extended) {
			t.Errorf("an issued certificate is %s, with the extension: %v; want good without", got, bytes.Contains(good, extended))
		}
		if n := responder.CachedCount(s.Responder); n != 1 {
			t.Errorf("%d responses are cached, want only the one about the issued certificate", n)
		}
		// When the certificate is issued, it is good at once.
		s.Apply(s.book.Issue(s.ca.Ref(t, stranger), stranger.NotAfter))
		s.want(t, "issued since", stranger, "good")
	}
}

// TestSerialNumbersOfEveryLengthGetStatus requests serial numbers with 1 to 21 bytes. X.509 allows at most 20.
func TestSerialNumbersOfEveryLengthGetStatus(t *testing.T) {
	s := newFixture(t, responder.Config{}, revtest.Key(t, "p256"))
	leaf, _ := s.issue(t)
	for bits := uint(1); bits < 8*21; bits++ {
		other := *leaf
		other.SerialNumber = new(big.Int).Lsh(big.NewInt(1), bits)
		for range 2 {
			if got, _ := s.read(t, &other, s.post(t, request(t, &other, s.ca.Certificate, crypto.SHA1))); got != "unknown" {
				t.Errorf("2^%d: %s", bits, got)
			}
		}
		if serial, err := pki.SerialFromInt(other.SerialNumber); err == nil && bits%8 == 3 {
			s.Apply(pki.StatusChange{
				Ref: pki.CertRef{Issuer: s.ca.ID(), Serial: serial}, NotAfter: leaf.NotAfter, Status: pki.Status{State: pki.Good, Version: 1},
			})
			for range 2 {
				s.want(t, fmt.Sprintf("2^%d", bits), &other, "good")
			}
		}
	}
}

// FuzzPOST posts arbitrary bytes twice. If the request can be parsed, x/crypto/ocsp must accept the response. Otherwise
// the response must be malformedRequest.
func FuzzPOST(f *testing.F) {
	s := newFixture(f, responder.Config{}, revtest.Key(f, "p256"))
	leaf, _ := s.issue(f)
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		entry := singleRequest(f, request(f, leaf, s.ca.Certificate, h))
		f.Add(composeRequest(f, -1, entry))
		f.Add(composeRequest(f, 32, entry))
		f.Add(composeRequest(f, -1, entry, entry))
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		if len(der) > ocsp.MaxRequestSize {
			return
		}
		q, err := ocsp.ParseRequest(der)
		for range 2 {
			answer := s.post(t, der)
			refused := len(answer) == len(ocsp.MalformedRequest.DER())
			if err != nil && !bytes.Equal(answer, ocsp.MalformedRequest.DER()) || err == nil && bytes.Equal(answer, ocsp.MalformedRequest.DER()) {
				t.Fatalf("ParseRequest(%x) returns %v, but the response is %x", der, err, answer)
			}
			if refused {
				continue
			}
			response, err := xocsp.ParseResponse(answer, s.ca.Certificate)
			if len(q.IDs) == 1 && (err != nil || !bytes.Contains(answer, q.IDs[0].Raw) || response.Status == xocsp.Revoked) {
				t.Fatalf("the response to %x is %x: %v", der, answer, err)
			}
			if got := s.get(t, pathOf(der)); got.Code != http.StatusOK {
				t.Fatalf("the same request by GET gets HTTP %d", got.Code)
			}
		}
	})
}
