package responder

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/ocsp"
)

func delegateOfTest(tb testing.TB) *ocsp.Signer {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: epoch, NotAfter: epoch.Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := ocsp.NewSigner(c, key)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// certIDOf is in the place of a CertID: what comes before the serial number is the prefix.
func certIDOf(prefix string, serial pki.Serial) ocsp.CertID {
	return ocsp.CertID{Serial: serial, Raw: append([]byte(prefix), serial.Bytes()...)}
}

var prefixes = []string{"a", "b", "longer"}

// keeping is a shard, and what one map holds in its place.
type keeping struct {
	*answers
	*shard
	issuer  *issuer
	signer  *ocsp.Signer
	serials []pki.Serial
	want    map[string][]byte // by CertID
	longest int
}

func newKeeping(t *rapid.T, signer *ocsp.Signer) *keeping {
	k := &keeping{answers: newAnswers(), issuer: &issuer{statuses: newStatuses(), signer: signer}, signer: signer, want: map[string][]byte{}}
	k.serials = make([]pki.Serial, rapid.IntRange(1, 6).Draw(t, "serials"))
	for n := range k.serials {
		k.serials[n] = serialNumber(t, uint64(n)<<8) // of one shard
		k.issuer.statuses.apply([]pki.StatusChange{{Ref: pki.CertRef{Serial: k.serials[n]}, NotAfter: epoch, Status: pki.Status{State: pki.Hold, Version: 1}}}, epoch)
	}
	k.shard = k.answers.shard(k.serials[0])
	k.limit = rapid.IntRange(2, 20).Draw(t, "limit")
	k.longest = rapid.SampledFrom([]int{1, roomStep, longestKept}).Draw(t, "longest")
	return k
}

func (k *keeping) draw(t *rapid.T) ocsp.CertID {
	return certIDOf(rapid.SampledFrom(prefixes).Draw(t, "prefix"), rapid.SampledFrom(k.serials).Draw(t, "serial"))
}

func (k *keeping) given(t *rapid.T, id ocsp.CertID) []byte {
	a := k.get(id.Serial, id.Raw, func(*kept) bool { return true }, new(workspace))
	if a == nil {
		return nil
	}
	if a.tag != tagOf(append(bytes.Clone(a.head), a.tail...)) || a.thisUpdate != epoch.Unix() {
		t.Fatalf("an answer about %x has another one's tag or times", id.Raw)
	}
	return a.head
}

func (k *keeping) putAs(t *rapid.T, id ocsp.CertID, head []byte, version uint64) bool {
	single := ocsp.Single{ID: id, Status: ocsp.Revoked, ThisUpdate: epoch, NextUpdate: epoch.Add(time.Hour)}
	d := &decision{issuer: k.issuer, signer: k.signer, versions: []uint64{version}, current: epoch, response: ocsp.Response{Singles: []ocsp.Single{single}}}
	return k.put(d, append(bytes.Clone(head), k.signer.Certificate().Raw...), rapid.Int64Range(0, 9).Draw(t, "asked")) != nil
}

func (k *keeping) keep(t *rapid.T) {
	id, head := k.draw(t), rapid.SliceOfN(rapid.Byte(), 1, k.longest).Draw(t, "head")
	if !k.putAs(t, id, head, 1) {
		t.Fatal("an answer is not kept whose status is still so")
	}
	if k.want[string(id.Raw)] = head; !bytes.Equal(k.given(t, id), head) {
		t.Fatalf("%x was put, and %x is given", head, k.given(t, id))
	}
}

func (k *keeping) keepNot(t *rapid.T) {
	id := k.draw(t)
	before := k.given(t, id)
	if k.putAs(t, id, []byte{0}, 2) {
		t.Fatal("an answer is kept whose status is another one")
	}
	if !k.putAs(t, id, make([]byte, longestKept+1), 1) || !bytes.Equal(k.given(t, id), before) {
		t.Fatal("what is too long to be kept is refused, or changes what is kept")
	}
}

func (k *keeping) dropAll(t *rapid.T) {
	serial := rapid.SampledFrom(k.serials).Draw(t, "serial")
	k.drop(serial)
	for _, prefix := range prefixes {
		delete(k.want, string(certIDOf(prefix, serial).Raw))
	}
}

func (k *keeping) dropSome(t *rapid.T) {
	leaving := rapid.SampledFrom(prefixes).Draw(t, "leaving")
	seen, count := 0, len(k.all)
	k.each(func(one *kept, from *source) bool {
		seen++
		if from.prefix == leaving {
			delete(k.want, string(certIDOf(from.prefix, one.serial).Raw))
		}
		return from.prefix != leaving
	})
	if seen != count {
		t.Fatalf("%d of %d answers are looked at", seen, count)
	}
}

func (k *keeping) check(t *rapid.T) {
	lossless := k.limit >= len(prefixes)*len(k.serials) && k.longest <= roomStep
	count := 0
	for _, serial := range k.serials {
		for _, prefix := range prefixes {
			id := certIDOf(prefix, serial)
			got, latest := k.given(t, id), k.want[string(id.Raw)]
			if got != nil && !bytes.Equal(got, latest) || lossless && got == nil && latest != nil {
				t.Fatalf("about %x %x is given, and not %x", id.Raw, got, latest)
			}
			if got != nil {
				count++
			}
		}
	}
	if count != len(k.all) || count > k.limit || len(k.from) != count || len(k.octets) != count*k.room {
		t.Fatalf("%d answers are given, and %d kept, of at most %d", count, len(k.all), k.limit)
	}
}

// Whatever is put, dropped and looked through: what is given about a CertID is what was put last for it, or nothing where
// it was dropped; and nothing is lost but to the bound, or where the rooms grow.
func TestAnswersAreAsInAPlainMap(t *testing.T) {
	signer := delegateOfTest(t)
	rapid.Check(t, func(t *rapid.T) {
		k := newKeeping(t, signer)
		t.Repeat(map[string]func(*rapid.T){"keep": k.keep, "keep not": k.keepNot, "drop": k.dropAll, "look through": k.dropSome, "": k.check})
	})
}
