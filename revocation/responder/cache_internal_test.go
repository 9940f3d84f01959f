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

// testSigner returns a signer with a self-signed certificate.
func testSigner(tb testing.TB) *ocsp.Signer {
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

// testCertID returns a CertID whose DER is a prefix and the serial number. For the cache that is sufficient.
func testCertID(prefix string, serial pki.Serial) ocsp.CertID {
	return ocsp.CertID{Serial: serial, Raw: append([]byte(prefix), serial.Bytes()...)}
}

var prefixes = []string{"a", "b", "longer"}

// A cacheModel is a responseCache whose serial numbers are all in one shard, and a map with the expected content.
type cacheModel struct {
	*responseCache
	*shard
	issuer  *issuer
	signer  *ocsp.Signer
	serials []pki.Serial
	want    map[string][]byte // keyed by CertID
	maxHead int
}

func newCacheModel(t *rapid.T, signer *ocsp.Signer) *cacheModel {
	k := &cacheModel{responseCache: newResponseCache(), issuer: &issuer{statuses: newStatuses(), signer: signer}, signer: signer, want: map[string][]byte{}}
	k.serials = make([]pki.Serial, rapid.IntRange(1, 6).Draw(t, "serials"))
	for n := range k.serials {
		k.serials[n] = serialNumber(t, uint64(n)<<8) // so that all are in one shard
		k.issuer.statuses.apply([]pki.StatusChange{{Ref: pki.CertRef{Serial: k.serials[n]}, NotAfter: epoch, Status: pki.Status{State: pki.Hold, Version: 1}}}, epoch)
	}
	k.shard = k.responseCache.shard(k.serials[0])
	k.limit = rapid.IntRange(2, 20).Draw(t, "limit")
	k.maxHead = rapid.SampledFrom([]int{1, entrySizeStep, maxCachedSize}).Draw(t, "max head")
	return k
}

func (k *cacheModel) randomID(t *rapid.T) ocsp.CertID {
	return testCertID(rapid.SampledFrom(prefixes).Draw(t, "prefix"), rapid.SampledFrom(k.serials).Draw(t, "serial"))
}

func (k *cacheModel) lookupHead(t *rapid.T, id ocsp.CertID) []byte {
	a := k.get(id.Serial, id.Raw, func(*cacheEntry) bool { return true }, new(workspace))
	if a == nil {
		return nil
	}
	if a.tag != tagOf(append(bytes.Clone(a.head), a.tail...)) || a.thisUpdate != epoch.Unix() {
		t.Fatalf("the response about %x has the tag or times of another one", id.Raw)
	}
	return a.head
}

func (k *cacheModel) putWithVersion(t *rapid.T, id ocsp.CertID, head []byte, version uint64) bool {
	single := ocsp.Single{ID: id, Status: ocsp.Revoked, ThisUpdate: epoch, NextUpdate: epoch.Add(time.Hour)}
	d := &decision{issuer: k.issuer, signer: k.signer, versions: []uint64{version}, current: epoch, response: ocsp.Response{Singles: []ocsp.Single{single}}}
	return k.put(d, append(bytes.Clone(head), k.signer.Certificate().Raw...), rapid.Int64Range(0, 9).Draw(t, "asked")) != nil
}

func (k *cacheModel) putValid(t *rapid.T) {
	id, head := k.randomID(t), rapid.SliceOfN(rapid.Byte(), 1, k.maxHead).Draw(t, "head")
	if !k.putWithVersion(t, id, head, 1) {
		t.Fatal("a response with the current status is not cached")
	}
	if k.want[string(id.Raw)] = head; !bytes.Equal(k.lookupHead(t, id), head) {
		t.Fatalf("%x was put, but the cache returns %x", head, k.lookupHead(t, id))
	}
}

func (k *cacheModel) putRefused(t *rapid.T) {
	id := k.randomID(t)
	before := k.lookupHead(t, id)
	if k.putWithVersion(t, id, []byte{0}, 2) {
		t.Fatal("a response with an outdated status is cached")
	}
	if !k.putWithVersion(t, id, make([]byte, maxCachedSize+1), 1) || !bytes.Equal(k.lookupHead(t, id), before) {
		t.Fatal("a response over maxCachedSize is refused, or replaces the cached one")
	}
}

func (k *cacheModel) dropSerial(t *rapid.T) {
	serial := rapid.SampledFrom(k.serials).Draw(t, "serial")
	k.drop(serial)
	for _, prefix := range prefixes {
		delete(k.want, string(testCertID(prefix, serial).Raw))
	}
}

func (k *cacheModel) dropPrefix(t *rapid.T) {
	leaving := rapid.SampledFrom(prefixes).Draw(t, "leaving")
	seen, count := 0, len(k.all)
	k.each(func(one *cacheEntry, from *source) bool {
		seen++
		if from.prefix == leaving {
			delete(k.want, string(testCertID(from.prefix, one.serial).Raw))
		}
		return from.prefix != leaving
	})
	if seen != count {
		t.Fatalf("each visits %d of %d entries", seen, count)
	}
}

func (k *cacheModel) check(t *rapid.T) {
	lossless := k.limit >= len(prefixes)*len(k.serials) && k.maxHead <= entrySizeStep
	count := 0
	for _, serial := range k.serials {
		for _, prefix := range prefixes {
			id := testCertID(prefix, serial)
			got, latest := k.lookupHead(t, id), k.want[string(id.Raw)]
			if got != nil && !bytes.Equal(got, latest) || lossless && got == nil && latest != nil {
				t.Fatalf("for %x the cache returns %x, want %x", id.Raw, got, latest)
			}
			if got != nil {
				count++
			}
		}
	}
	if count != len(k.all) || count > k.limit || len(k.from) != count || len(k.der) != count*k.entrySize {
		t.Fatalf("%d entries can be read, %d exist, the limit is %d", count, len(k.all), k.limit)
	}
}

// TestResponseCacheMatchesMap runs random operations on a responseCache and on a map. For each CertID the cache must
// return the response that was put last, or nothing if it was dropped since. It may lose entries only because of its
// limit, or when the entry size grows.
func TestResponseCacheMatchesMap(t *testing.T) {
	signer := testSigner(t)
	rapid.Check(t, func(t *rapid.T) {
		k := newCacheModel(t, signer)
		t.Repeat(map[string]func(*rapid.T){"put": k.putValid, "put refused": k.putRefused, "drop": k.dropSerial, "visit": k.dropPrefix, "": k.check})
	})
}
