package ca_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/ca/lint"
	"github.com/brevet-pki/brevet/pki"
	"pgregory.net/rapid"
)

func TestIssuedCertificateMatchesProfile(t *testing.T) {
	w := newWorld(t)
	a := w.open(t, w.store.CA())
	defer closeAuthority(t, a)
	req := w.request(t)
	req.Names = ca.Names{DNS: []string{"pump-1.fleet.example"}}
	c, err := issue(t.Context(), a, req)
	if err != nil {
		t.Fatal(err)
	}
	cert := parse(t, c.DER)
	if err := lint.Certificate(c.DER); err != nil {
		t.Error(err)
	}
	if len(cert.URIs) != 1 || cert.URIs[0].String() != w.device.ID.String() || !slices.Equal(cert.DNSNames, req.Names.DNS) {
		t.Errorf("names: %v %v", cert.URIs, cert.DNSNames)
	}
	if cert.IsCA || cert.KeyUsage != x509.KeyUsageDigitalSignature || len(cert.ExtKeyUsage) != 2 {
		t.Errorf("usages: CA %v, %v, %v", cert.IsCA, cert.KeyUsage, cert.ExtKeyUsage)
	}
	if got := cert.NotAfter.Sub(cert.NotBefore); got != 24*time.Hour+time.Minute {
		t.Errorf("the certificate is valid for %s, want 24h and the back-dating of 1m", got)
	}
	short := w.issuer.ID.Short()
	if want := publicURL + "/crl/" + short + ".crl"; len(cert.CRLDistributionPoints) != 1 || cert.CRLDistributionPoints[0] != want {
		t.Errorf("CRL distribution points %v, want %s", cert.CRLDistributionPoints, want)
	}
	verifyWithOpenSSL(t, w, c.DER)
}

func verifyWithOpenSSL(t *testing.T, w *world, der []byte) {
	t.Helper()
	dir := t.TempDir()
	file := func(name string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	out, err := exec.Command("openssl", "verify", "-x509_strict", "-CAfile", file("root.pem", w.root.Raw),
		"-untrusted", file("issuing.pem", w.issuer.Certificate.Raw), file("leaf.pem", der)).CombinedOutput()
	if err != nil {
		t.Errorf("openssl verify: %v\n%s", err, out)
	}
}

func TestRefusedRequestsSignNothing(t *testing.T) {
	w := newWorld(t)
	a := w.open(t, w.store.CA())
	defer closeAuthority(t, a)
	for name, c := range map[string]struct {
		change func(*ca.Request)
		rule   pki.Rule
	}{
		"unknown issuer":   {func(r *ca.Request) { r.IssuingCA = pki.IssuerOf(w.root) }, pki.RuleNotFound},
		"lifetime over":    {func(r *ca.Request) { r.Lifetime = 31 * 24 * time.Hour }, pki.RuleLifetime},
		"lifetime under":   {func(r *ca.Request) { r.Lifetime = time.Millisecond }, pki.RuleLifetime},
		"negative":         {func(r *ca.Request) { r.Lifetime = -time.Hour }, pki.RuleLifetime},
		"P-224":            {func(r *ca.Request) { r.Key = newKey(t, elliptic.P224()).Public() }, pki.RuleKeyType},
		"P-521":            {func(r *ca.Request) { r.Key = newKey(t, elliptic.P521()).Public() }, pki.RuleKeyType},
		"RSA-2048":         {func(r *ca.Request) { r.Key = rsaKey(2048, 65537) }, pki.RuleKeyType},
		"RSA-1024":         {func(r *ca.Request) { r.Key = rsaKey(1024, 65537) }, pki.RuleKeyType},
		"RSA exponent 1":   {func(r *ca.Request) { r.Key = rsaKey(3072, 1) }, pki.RuleKeyWeak},
		"RSA exponent 3":   {func(r *ca.Request) { r.Key = rsaKey(3072, 3) }, pki.RuleKeyWeak},
		"RSA small factor": {func(r *ca.Request) { r.Key = keyDivisibleBy3(3072) }, pki.RuleKeyWeak},
		"no key":           {func(r *ca.Request) { r.Key = nil }, pki.RuleKeyType},
		"names forbidden": {func(r *ca.Request) {
			r.Profile, r.Names = w.profile(t, "client"), ca.Names{DNS: []string{"pump-1.fleet.example"}}
		}, pki.RuleNames},
	} {
		t.Run(name, func(t *testing.T) {
			req := w.request(t)
			c.change(&req)
			_, err := issue(t.Context(), a, req)
			refusal, ok := pki.AsRefusal(err)
			if !ok || refusal.Rule != c.rule || refusal.Hint == "" {
				t.Errorf("Issue: %v, want a refusal by %s with a hint", err, c.rule)
			}
		})
	}
	if n := len(w.signer.signed.list()); n != 0 {
		t.Errorf("%d signatures were made", n)
	}
}

// rsaKey returns a key with a random modulus. It has no private key.
func rsaKey(bits, e int) *rsa.PublicKey {
	n, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(bits-1)))
	n.SetBit(n.SetBit(n, bits-1, 1), 0, 1)
	for p := int64(3); p < 752; p += 2 {
		if new(big.Int).Mod(n, big.NewInt(p)).Sign() == 0 {
			return rsaKey(bits, e)
		}
	}
	return &rsa.PublicKey{N: n, E: e}
}

// keyDivisibleBy3 returns an RSA key with a modulus that 3 divides. It has no private key.
func keyDivisibleBy3(bits int) *rsa.PublicKey {
	n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
	n.Add(n, big.NewInt(1))
	for new(big.Int).Mod(n, big.NewInt(3)).Sign() != 0 {
		n.Add(n, big.NewInt(2))
	}
	return &rsa.PublicKey{N: n, E: 65537}
}

func TestNotAfterIsLimitedByIssuer(t *testing.T) {
	w := newWorld(t)
	_, w.issuer = hierarchy(t, elliptic.P256(), time.Hour)
	a := w.open(t, w.store.CA())
	defer closeAuthority(t, a)
	c, err := issue(t.Context(), a, w.request(t))
	if err != nil {
		t.Fatal(err)
	}
	if want := w.issuer.Certificate.NotAfter; !c.NotAfter.Equal(want) {
		t.Errorf("notAfter %s, the issuing CA's is %s", c.NotAfter, want)
	}
}

func TestKeyOfAnotherCertificateShowsBothFingerprints(t *testing.T) {
	_, iss := hierarchy(t, elliptic.P256(), time.Hour)
	other := newKey(t, elliptic.P256())
	_, err := ca.NewIssuingCA(iss.Certificate, other, []*x509.Certificate{iss.Root})
	have, herr := pki.HashKey(other.Public())
	if herr != nil {
		t.Fatal(herr)
	}
	want := pki.HashSPKI(iss.Certificate.RawSubjectPublicKeyInfo)
	if err == nil || !strings.Contains(err.Error(), have.String()) || !strings.Contains(err.Error(), want.String()) {
		t.Errorf("NewIssuingCA: %v", err)
	}
}

func TestP384CACertifiesEd25519Keys(t *testing.T) {
	w := newWorld(t)
	_, w.issuer = hierarchy(t, elliptic.P384(), 24*time.Hour)
	a := w.open(t, w.store.CA())
	defer closeAuthority(t, a)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	req := w.request(t)
	req.Key = key.Public()
	if req.Guard.Key, err = pki.HashKey(req.Key); err != nil {
		t.Fatal(err)
	}
	c, err := issue(t.Context(), a, req)
	if err != nil {
		t.Fatal(err)
	}
	if err := lint.Certificate(c.DER); err != nil {
		t.Error(err)
	}
}

// TestNothingIsSignedWithoutADurableIntent reads the intent from the store at the moment of each signature.
func TestNothingIsSignedWithoutADurableIntent(t *testing.T) {
	w := newWorld(t)
	j := &faultyJournal{Journal: w.store.CA()}
	w.signer.before = j.durable
	a := w.open(t, j)
	var wg sync.WaitGroup
	got := make([]ca.Certificate, 64)
	for i := range got {
		req := w.request(t)
		wg.Go(func() {
			c, err := issue(context.Background(), a, req)
			if err != nil {
				t.Error(err)
				return
			}
			rec, err := w.store.RA().Certificate(context.Background(), c.Ref)
			if err != nil || !rec.Delivered || !bytes.Equal(rec.DER, c.DER) {
				t.Errorf("delivered %s before its record: %v", c.Ref.Serial, err)
			}
			got[i] = c
		})
	}
	wg.Wait()
	closeAuthority(t, a)
	w.checkAccounted(t, j, got)
}

// TestFaultsLoseNothing runs concurrent requests with a journal and a key that fail at random, before or after taking
// effect. It then opens the next Authority on the same store, as after a crash. Every signature must be accounted for,
// and no intent may remain.
func TestFaultsLoseNothing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		plan := rapid.SliceOfN(rapid.IntRange(0, 5), 4, 40).Draw(rt, "plan")
		var calls, signs atomic.Int64
		j := &faultyJournal{Journal: w.store.CA()}
		j.write = func(int, int) *fault {
			n := calls.Add(1) - 1
			if int(n) >= len(plan) {
				return nil
			}
			switch plan[n] {
			case 0:
				return &fault{applied: false, err: errInjected}
			case 1:
				return &fault{applied: true, err: errInjected}
			}
			return nil
		}
		w.signer.before = func(digest []byte) error {
			if signs.Add(1)%7 == 3 {
				return errInjected
			}
			return j.durable(digest)
		}
		a := w.open(t, j)
		var mu sync.Mutex
		var got []ca.Certificate
		var wg sync.WaitGroup
		for i := range 24 {
			req := w.request(t)
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			if i%6 == 5 {
				ctx, cancel = context.WithTimeout(context.Background(), time.Duration(i)*time.Millisecond/4)
			}
			wg.Go(func() {
				defer cancel()
				c, err := issue(ctx, a, req)
				if err != nil {
					if !pki.IsTemporary(err) {
						t.Errorf("Issue: %v, want a temporary error", err)
					}
					return
				}
				mu.Lock()
				defer mu.Unlock()
				got = append(got, c)
			})
		}
		wg.Wait()
		closeAuthority(t, a)
		w.checkAccounted(t, j, got)
		_, left, err := w.store.CA().Begin(context.Background())
		if err != nil || len(left) != 0 {
			t.Errorf("%d intents remain after Close: %v", len(left), err)
		}
	})
}

// TestNextProcessCommitsPendingIntents drops the Authority between the signature and the record.
func TestNextProcessCommitsPendingIntents(t *testing.T) {
	w := newWorld(t)
	j := &faultyJournal{Journal: w.store.CA()}
	crashed := errors.New("crashed")
	j.write = func(commits, _ int) *fault {
		if commits > 0 {
			return &fault{applied: false, err: crashed}
		}
		return nil
	}
	a := w.open(t, j)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	req := w.request(t)
	_, err := issue(ctx, a, req)
	if !pki.IsTemporary(err) {
		t.Fatalf("Issue: %v, want a temporary error", err)
	}
	if n := len(w.signer.signed.list()); n != 1 {
		t.Fatalf("%d signatures were made, want 1", n)
	}
	b := w.open(t, w.store.CA()) // a new epoch, which fences the old process
	defer closeAuthority(t, b)
	deadline := time.Now().Add(10 * time.Second)
	for {
		c, err := w.store.RA().Certificate(t.Context(), mustRef(t, j, w.signer.signed.list()[0]))
		if err == nil {
			if c.Delivered || c.Status.State != pki.Revoked {
				t.Errorf("the certificate that was not returned: delivered %v, %s", c.Delivered, c.Status.State)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the next process did not commit the intent: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	j.write = nil
	if _, err := issue(t.Context(), a, w.request(t)); !errors.Is(err, ca.ErrReplaced) || !pki.IsTemporary(err) {
		t.Errorf("the old process issues: %v, want a temporary ErrReplaced", err)
	}
	if c, err := issue(t.Context(), b, req); err != nil || len(c.DER) == 0 {
		t.Errorf("the retry with the same request ID: %v", err)
	}
	closeAuthority(t, a)
}

func mustRef(t *testing.T, j *faultyJournal, digest string) pki.CertRef {
	t.Helper()
	ref, ok := j.refOf(digest)
	if !ok {
		t.Fatal("no intent contains the digest")
	}
	return ref
}

// TestAmbiguousCommitIsReadBack lets the commit of a record apply and return an error, and then lets reading it back
// fail for a while.
func TestAmbiguousCommitIsReadBack(t *testing.T) {
	w := newWorld(t)
	var once, unknown atomic.Bool
	j := &faultyJournal{Journal: w.store.CA()}
	j.write = func(commits, _ int) *fault {
		if commits > 0 && once.CompareAndSwap(false, true) {
			unknown.Store(true)
			time.AfterFunc(150*time.Millisecond, func() { unknown.Store(false) })
			return &fault{applied: true, err: errInjected}
		}
		return nil
	}
	j.readBack = func() error {
		if unknown.Load() {
			return errInjected
		}
		return nil
	}
	a := w.open(t, j)
	c, err := issue(t.Context(), a, w.request(t))
	if err != nil {
		t.Fatalf("Issue: %v; the record is durable, so the certificate must be delivered", err)
	}
	closeAuthority(t, a)
	w.checkAccounted(t, j, []ca.Certificate{c})
}

// TestRefusedGuardDoesNotFailOthers issues many certificates at the same time, one of them with a stale guard.
func TestRefusedGuardDoesNotFailOthers(t *testing.T) {
	w := newWorld(t)
	a := w.open(t, w.store.CA())
	defer closeAuthority(t, a)
	var wg sync.WaitGroup
	for i := range 32 {
		req := w.request(t)
		if i == 7 {
			req.Guard.Revision++
		}
		wg.Go(func() {
			_, err := issue(context.Background(), a, req)
			refusal, refused := pki.AsRefusal(err)
			switch {
			case i == 7 && (!refused || refusal.Rule != pki.RuleIdentityStale):
				t.Errorf("the request with the stale guard: %v, want a refusal by %s", err, pki.RuleIdentityStale)
			case i != 7 && err != nil:
				t.Errorf("request %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

func TestRequestsAboveLimitAreRefused(t *testing.T) {
	w := newWorld(t)
	hold := make(chan struct{})
	w.signer.before = func([]byte) error { <-hold; return nil }
	a := w.open(t, w.store.CA())
	var wg sync.WaitGroup
	var refused atomic.Int64
	requests := make([]ca.Request, 1100)
	for i := range requests {
		requests[i] = w.request(t)
	}
	for _, req := range requests {
		wg.Go(func() {
			_, err := issue(context.Background(), a, req)
			if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule == pki.RuleOverloaded {
				if pki.RetryAfter(err) <= 0 {
					t.Error("the refusal has no delay")
				}
				if refused.Add(1) == 76 {
					close(hold)
				}
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := refused.Load(); n != 76 {
		t.Errorf("%d of 1100 requests were refused, want 76", n)
	}
	closeAuthority(t, a)
}

func TestCloseWaitsForCertificatesInFlight(t *testing.T) {
	w := newWorld(t)
	signing, hold := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	w.signer.before = func([]byte) error {
		if first.CompareAndSwap(false, true) {
			close(signing)
			<-hold
		}
		return nil
	}
	a := w.open(t, w.store.CA())
	req := w.request(t)
	done := make(chan error, 1)
	go func() {
		_, err := issue(context.Background(), a, req)
		done <- err
	}()
	<-signing
	closed := make(chan struct{})
	go func() { closeAuthority(t, a); close(closed) }()
	for { // Close has started once Issue refuses
		if _, err := issue(t.Context(), a, w.request(t)); err != nil {
			if !pki.IsTemporary(err) {
				t.Errorf("Issue while stopping: %v, want a temporary error", err)
			}
			break
		}
	}
	close(hold)
	if err := <-done; err != nil {
		t.Errorf("the certificate in flight: %v", err)
	}
	<-closed
}
