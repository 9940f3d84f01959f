package ca_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"io"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/store/tables"
)

// world is a store with an installed CA and one device, for tests to open Authorities on.
type world struct {
	store    *tables.DB
	root     *x509.Certificate
	issuer   ca.IssuingCA
	device   ra.Identity
	signer   *countingSigner
	observed *observer
	profiles *ca.Profiles // of the Authority that was started last
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldOf(t, func(*ceremony.SignSpec) {})
}

// newWorldOf returns a world with an issuing CA that is signed after edit.
func newWorldOf(t testing.TB, edit func(*ceremony.SignSpec)) *world {
	t.Helper()
	return newWorldFor(t, 365*24*time.Hour, edit)
}

// newWorldFor returns a world with an issuing CA that is valid for a lifetime, and is signed after edit.
func newWorldFor(t testing.TB, lifetime time.Duration, edit func(*ceremony.SignSpec)) *world {
	t.Helper()
	store, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &world{store: store, observed: &observer{}}
	w.root, w.issuer = hierarchy(t, elliptic.P256(), lifetime, edit)
	w.signer = &countingSigner{Signer: w.issuer.Signer}
	w.issuer.Signer = w.signer
	now := time.Now()
	for cert, key := range map[*x509.Certificate]string{w.root: "", w.issuer.Certificate: "issuing"} {
		if err := store.CA().Install(t.Context(), ca.InstalledCA{Certificate: cert.Raw, Key: key, At: now}, pki.ActorCommand("test")); err != nil {
			t.Fatal(err)
		}
	}
	w.device = w.register(t, "device/1")
	return w
}

// hierarchy returns a root and an issuing CA made by the ceremony's functions. edits change how the issuing CA is
// signed.
func hierarchy(t testing.TB, curve elliptic.Curve, lifetime time.Duration, edits ...func(*ceremony.SignSpec)) (*x509.Certificate, ca.IssuingCA) {
	t.Helper()
	now := time.Now().Add(-10 * time.Minute) // before notBefore of back-dated certificates
	name := func(text string) ceremony.Subject {
		s, err := ceremony.ParseSubject(text)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	rootKey, issuingKey := newKey(t, curve), newKey(t, curve)
	rootDER, err := ceremony.Root(rootKey, ceremony.RootSpec{Subject: name("CN=Root G1"), Lifetime: 2 * lifetime, PathLength: 1, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	root := parse(t, rootDER)
	csr, err := ceremony.Request(issuingKey, ceremony.RequestSpec{Subject: name("CN=Issuing G1")})
	if err != nil {
		t.Fatal(err)
	}
	spec := ceremony.SignSpec{Lifetime: lifetime, TrustDomain: "fleet.example", Now: now}
	for _, edit := range edits {
		edit(&spec)
	}
	der, err := ceremony.Sign(root, rootKey, csr, spec)
	if err != nil {
		t.Fatal(err)
	}
	iss, err := ca.NewIssuingCA(parse(t, der), issuingKey, []*x509.Certificate{root})
	if err != nil {
		t.Fatal(err)
	}
	return root, iss
}

func newKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (w *world) register(t testing.TB, path string) ra.Identity {
	t.Helper()
	id, err := pki.SPIFFEIDIn("fleet.example", path)
	if err != nil {
		t.Fatal(err)
	}
	have, err := w.store.RA().CreateIdentity(t.Context(), ra.Registration{Identity: ra.Identity{
		ID: id, Kind: pki.Device, Profile: "device", State: pki.Registered, Revision: 1, CreatedAt: time.Now().Truncate(time.Millisecond),
	}}, pki.ActorCommand("test"))
	if err != nil {
		t.Fatal(err)
	}
	return have
}

// open starts an Authority on the world's store, or on a journal that wraps it.
func (w *world) open(t testing.TB, journal ca.Journal) *ca.Authority {
	t.Helper()
	return w.openAt(t, journal, time.Now)
}

// openAt starts an Authority with the given clock.
func (w *world) openAt(t testing.TB, journal ca.Journal, clock func() time.Time) *ca.Authority {
	t.Helper()
	return w.openConfigured(t, journal, clock, profiles(t), 4)
}

// openWith starts an Authority with the given profile for devices and number of partitions.
func (w *world) openWith(t testing.TB, journal ca.Journal, p *ca.Profile, partitions int) *ca.Authority {
	t.Helper()
	all := profiles(t)
	all["device"] = p
	return w.openConfigured(t, journal, time.Now, all, partitions)
}

func (w *world) openConfigured(t testing.TB, journal ca.Journal, clock func() time.Time, all map[string]*ca.Profile, partitions int) *ca.Authority {
	t.Helper()
	a, err := ca.New(t.Context(), ca.Config{
		TrustDomain: "fleet.example", IssuingCAs: []ca.IssuingCA{w.issuer}, Partitions: partitions, Journal: journal, Observer: w.observed, Meter: noMeter{},
		Clock: clock, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	if w.profiles, err = a.Prepare(merged(t, all), nil); err != nil {
		t.Fatal(err)
	}
	return a
}

// merged returns the default profiles and others.
func merged(t testing.TB, others map[string]*ca.Profile) *ca.Profiles {
	t.Helper()
	all, err := ca.NewProfiles(others, publicURL)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// profile returns one of the profiles of the Authority that was started last.
func (w *world) profile(t testing.TB, name string) *ca.Profile {
	t.Helper()
	p, err := w.profiles.Profile(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

type noMeter struct{}

func (noMeter) Begin(context.Context, ca.Step, pki.IssuerID) func(error) { return func(error) {} }
func (noMeter) Issued(string)                                            {}

func closeAuthority(t testing.TB, a *ca.Authority) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := a.Close(ctx); err != nil {
		t.Error(err)
	}
}

// request returns a request for a new key of the device, without a guard on the identity's revision.
func (w *world) request(t testing.TB) ca.Request {
	t.Helper()
	return w.requestFor(t, newKey(t, elliptic.P256()).Public())
}

func requestID(t testing.TB) pki.RequestID {
	t.Helper()
	var b [16]byte
	_, _ = rand.Read(b[:])
	id, err := pki.RequestIDFromBytes(b[:])
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// signFault is called before a signature. If it returns an error, the signature is not made.
type signFault func(digest []byte) error

// countingSigner is the issuing key. It records every digest before it signs it.
type countingSigner struct {
	crypto.Signer
	before signFault // called first, if not nil
	signed digests
}

func (s *countingSigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if s.before != nil {
		if err := s.before(digest); err != nil {
			return nil, err
		}
	}
	s.signed.add(digest)
	return s.Signer.Sign(random, digest, opts)
}

// issue drafts and issues a certificate, as a registration authority does.
func issue(ctx context.Context, a *ca.Authority, req ca.Request) (ca.Certificate, error) {
	d, err := a.Draft(req)
	if err != nil {
		return ca.Certificate{}, err
	}
	return a.Issue(ctx, d)
}
