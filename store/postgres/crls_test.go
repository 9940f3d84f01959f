package postgres_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/revocation/responder"
	"github.com/brevet-pki/brevet/store/postgres"
	"github.com/brevet-pki/brevet/store/tables"
)

// crlServer is a server that publishes the CRLs of one CA.
type crlServer struct {
	db   *tables.DB
	dir  string
	stop func()
}

func newCA(t *testing.T) crl.Issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Issuing CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte("key"),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return crl.Issuer{Certificate: cert, Signer: key}
}

// startCRLs starts a server. Without hasKey, another server signs the CRLs of the CA.
func startCRLs(t *testing.T, connection, name string, issuing crl.Issuer, hasKey bool) *crlServer {
	t.Helper()
	db, err := postgres.Open(t.Context(), connection, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	r, err := responder.New(responder.Config{})
	if err == nil {
		err = r.AddIssuer(issuing.Certificate)
	}
	if err != nil {
		t.Fatal(err)
	}
	s := &crlServer{db: db, dir: t.TempDir()}
	c := crl.Config{
		Store: db.Revocation(), Exchange: db.Exchange(), Publisher: r, Directory: s.dir, Log: slog.New(slog.DiscardHandler),
		Issuers: []crl.Issuer{issuing},
	}
	if !hasKey {
		c.Issuers, c.Elsewhere = nil, []*x509.Certificate{issuing.Certificate}
	}
	u, err := crl.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- u.Run(ctx) }()
	ended := false
	s.stop = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(s.stop)
	return s
}

// awaitCRL waits until a server publishes a CRL after a number, with so many certificates.
func (s *crlServer) awaitCRL(t *testing.T, scope crl.Scope, after *big.Int, revoked int) *x509.RevocationList {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for ctx.Err() == nil {
		der, err := os.ReadFile(filepath.Join(s.dir, filepath.FromSlash(scope.Path())))
		if err == nil {
			list, err := x509.ParseRevocationList(der)
			if err != nil {
				t.Fatal(err)
			}
			if list.Number.Cmp(after) > 0 && len(list.RevokedCertificateEntries) == revoked {
				return list
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("the server publishes no CRL after %v with %d certificates", after, revoked)
	return nil
}

// TestServersPublishOneCRL has three servers, one of which has no key. A revocation at any of them is in the CRL of all, and
// another server takes over when the leader has ended.
func TestServersPublishOneCRL(t *testing.T) {
	t.Parallel()
	connection, issuing := cluster.Schema(t), newCA(t)
	id := pki.IssuerOf(issuing.Certificate)
	full := crl.Scope{Issuer: id}
	first := startCRLs(t, connection, "first", issuing, true)
	before := first.awaitCRL(t, full, new(big.Int), 0)
	second, third := startCRLs(t, connection, "second", issuing, true), startCRLs(t, connection, "third", issuing, false)
	same := func(want *x509.RevocationList) {
		t.Helper()
		for _, s := range []*crlServer{second, third} {
			if list := s.awaitCRL(t, full, new(big.Int).Sub(want.Number, big.NewInt(1)), len(want.RevokedCertificateEntries)); !bytes.Equal(list.Raw, want.Raw) {
				t.Errorf("a server publishes CRL %v, and other bytes than CRL %v", list.Number, want.Number)
			}
		}
	}
	same(before)
	revokeOne(t, third.db, id)
	after := first.awaitCRL(t, full, before.Number, 1)
	same(after)
	first.stop()
	next := second.awaitCRL(t, full, after.Number, 1)
	same(next)
	revokeOne(t, third.db, id)
	same(second.awaitCRL(t, full, next.Number, 2))
}

// revokeOne records a certificate that is never delivered, which is revoked.
func revokeOne(t *testing.T, db *tables.DB, issuer pki.IssuerID) {
	t.Helper()
	epoch, _, err := db.CA().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var random [pki.SerialRandomSize]byte
	_, _ = rand.Read(random[:])
	serial, err := pki.MakeSerial(time.Now(), random)
	if err != nil {
		t.Fatal(err)
	}
	now, digest := time.Now().UTC().Truncate(time.Second), sha256.Sum256(random[:])
	intent := ca.Intent{Batch: ca.NewBatchID(), Items: []ca.IntentItem{{
		Ref: pki.CertRef{Issuer: issuer, Serial: serial}, Digest: digest[:], IssuedAt: now, NotAfter: now.Add(time.Hour),
	}}}
	if _, err := db.CA().Write(t.Context(), epoch, nil, []ca.Intent{intent}); err != nil {
		t.Fatal(err)
	}
	if _, err := db.CA().Write(t.Context(), epoch, []ca.BatchCommit{{Intent: intent, At: now}}, nil); err != nil {
		t.Fatal(err)
	}
}

// TestLargeCRLIsCopiedInPieces copies the bytes of a CRL of 16 MiB, of which at most a quarter may be in memory.
func TestLargeCRLIsCopiedInPieces(t *testing.T) {
	db, err := postgres.Open(t.Context(), cluster.Schema(t), "server-1")
	must(t, err)
	t.Cleanup(func() { must(t, db.Close()) })
	const size = 16 << 20
	x, issuer := db.Exchange(), pki.IssuerOf(newCA(t).Certificate)
	leads, err := x.Lead(t.Context(), issuer)
	if must(t, err); !leads {
		t.Fatal("the only server does not lead")
	}
	c := crl.CRL{Issuer: issuer, Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour), Position: 1, Size: size}
	must(t, x.PutFile(t.Context(), c, io.LimitReader(zeros{}, size)))
	must(t, db.Revocation().PutCRLs(t.Context(), []crl.CRL{c}, pki.ActorCommand("test"), time.Now()))
	w := &heap{before: inUse()}
	must(t, x.CopyFile(t.Context(), c, w))
	if w.size != size || w.most > size/4 {
		t.Errorf("%d bytes were copied, with up to %d in memory", w.size, w.most)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// heap is a Writer that measures the memory in use when it gets its first bytes.
type heap struct{ size, before, most int }

func (h *heap) Write(b []byte) (int, error) {
	if h.size == 0 {
		h.most = inUse() - h.before
	}
	h.size += len(b)
	return len(b), nil
}

// inUse returns the size of the heap without garbage.
func inUse() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}
