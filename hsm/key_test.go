package hsm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
)

// digest is the digest that the tests sign.
var digest = sha256.Sum256([]byte("a certificate"))

// mustSign signs digest and checks the signature.
func mustSign(t testing.TB, k *Key) {
	t.Helper()
	sig, err := signed(k)
	if err != nil {
		t.Fatal(err)
	}
	verify(t, k, sig)
}

// signed signs digest with an ECDSA or RSA key.
func signed(k *Key) ([]byte, error) { return k.Sign(rand.Reader, digest[:], crypto.SHA256) }

// verify verifies a signature of digest as in a certificate.
func verify(t testing.TB, k *Key, sig []byte) {
	t.Helper()
	alg := x509.ECDSAWithSHA256
	if _, ok := k.Public().(*rsa.PublicKey); ok {
		alg = x509.SHA256WithRSA
	}
	c := x509.Certificate{PublicKey: k.Public()}
	if err := c.CheckSignature(alg, []byte("a certificate"), sig); err != nil {
		t.Errorf("signature: %v", err)
	}
}

func mustGenerate(t testing.TB, tok *HSM, label string, alg Algorithm) *Key {
	t.Helper()
	k, err := tok.Generate(t.Context(), label, alg)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// selfSigned issues a self-signed CA certificate, and verifies it with Go and OpenSSL.
func selfSigned(t *testing.T, signer crypto.Signer, alg x509.SignatureAlgorithm) {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "Brevet test"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
		SignatureAlgorithm:    alg,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		t.Fatalf("%v: %v", alg, err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CheckSignatureFrom(c); err != nil {
		t.Errorf("%v: %v", alg, err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := tool(t, "openssl", "verify", "-check_ss_sig", "-CAfile", file, file); !strings.HasSuffix(out, ": OK\n") {
		t.Errorf("openssl verify: %s", out)
	}
}

// TestKeysOfEveryAlgorithmSign generates a key of every type and signs certificates with it. Another program must
// report the key as protected, and a reopened HSM must find it.
func TestKeysOfEveryAlgorithmSign(t *testing.T) {
	signatures := map[Algorithm][]x509.SignatureAlgorithm{
		P256:    {x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512},
		P384:    {x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512},
		RSA3072: {x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA, x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS},
		RSA4096: {x509.SHA256WithRSA, x509.SHA512WithRSAPSS},
		Ed25519: {x509.PureEd25519},
	}
	b := newTestBench(t, "algorithms")
	tok := b.open(t, b.config("algorithms"))
	made := make(map[Algorithm]*Key)
	for alg, algs := range signatures {
		t.Run(alg.String(), func(t *testing.T) {
			made[alg] = mustGenerate(t, tok, "key "+alg.String(), alg)
			for _, sa := range algs {
				selfSigned(t, made[alg], sa)
			}
		})
	}
	if err := tok.Close(); err != nil {
		t.Fatal(err)
	}

	tok = b.open(t, b.config("algorithms"))
	infos, err := tok.Keys(t.Context())
	if err != nil || len(infos) != len(made) {
		t.Fatalf("Keys = %d, %v", len(infos), err)
	}
	for _, info := range infos {
		was := made[info.Algorithm]
		if was == nil || info.Label != was.Label() || !bytes.Equal(info.ID, was.ID()) || !was.pub.Equal(info.Public) {
			t.Errorf("Keys returned %+v, want %+v", info, was)
		}
		for _, ref := range []KeyRef{{Label: info.Label}, {ID: info.ID}, was.Ref()} {
			k, err := tok.Find(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			if !was.pub.Equal(k.Public()) || k.Algorithm() != info.Algorithm || k.Label() != info.Label || !bytes.Equal(k.ID(), info.ID) {
				t.Errorf("%v found another key", ref)
			}
			selfSigned(t, k, signatures[info.Algorithm][0])
		}
		listing := b.pkcs11Tool(t, "algorithms", "--list-objects", "--type", "privkey", "--id", fmt.Sprintf("%x", info.ID))
		for _, want := range []string{"label:      " + info.Label, "sensitive, always sensitive, never extractable, local", "Usage:      sign\n"} {
			if !strings.Contains(listing, want) {
				t.Errorf("pkcs11-tool does not show %q:\n%s", want, listing)
			}
		}
	}
}

// TestPSSSaltLengths signs with each kind of salt length, and verifies the signatures with Go.
func TestPSSSaltLengths(t *testing.T) {
	b := newTestBench(t, "pss")
	k := mustGenerate(t, b.open(t, b.config("pss")), "k", RSA3072)
	pub := k.Public().(*rsa.PublicKey)
	most := pub.Size() - sha256.Size - 2
	for length, want := range map[int]int{rsa.PSSSaltLengthAuto: 32, rsa.PSSSaltLengthEqualsHash: 32, 20: 20, most: most} {
		sig, err := k.Sign(nil, digest[:], &rsa.PSSOptions{SaltLength: length, Hash: crypto.SHA256})
		if err != nil {
			t.Fatal(err)
		}
		if err := rsa.VerifyPSS(pub, crypto.SHA256, digest[:], sig, &rsa.PSSOptions{SaltLength: want}); err != nil {
			t.Errorf("salt %d: %v", length, err)
		}
	}
	for _, length := range []int{-2, most + 1} {
		if _, err := k.Sign(nil, digest[:], &rsa.PSSOptions{SaltLength: length, Hash: crypto.SHA256}); !errors.Is(err, ErrDigest) {
			t.Errorf("salt %d: %v", length, err)
		}
	}
}

// TestWrongDigestIsRefused checks that Sign refuses input whose length does not match the hash, before it reaches the
// HSM.
func TestWrongDigestIsRefused(t *testing.T) {
	b := newTestBench(t, "digest")
	tok := b.open(t, b.config("digest"))
	ec, rsaKey, ed := mustGenerate(t, tok, "ec", P256), mustGenerate(t, tok, "rsa", RSA3072), mustGenerate(t, tok, "ed", Ed25519)
	long := sha512.Sum512(nil)
	before := b.count("SignInit")
	for name, c := range map[string]struct {
		key    *Key
		digest []byte
		opts   crypto.SignerOpts
	}{
		"too short":        {ec, digest[:31], crypto.SHA256},
		"too long":         {ec, long[:], crypto.SHA256},
		"empty":            {ec, nil, crypto.SHA256},
		"no hash":          {ec, digest[:], crypto.Hash(0)},
		"no options":       {ec, digest[:], nil},
		"SHA-1":            {rsaKey, digest[:20], crypto.SHA1},
		"MD5":              {rsaKey, digest[:16], crypto.MD5},
		"PSS with SHA-1":   {rsaKey, digest[:20], &rsa.PSSOptions{Hash: crypto.SHA1}},
		"RSA too short":    {rsaKey, digest[:31], crypto.SHA256},
		"Ed25519 digest":   {ed, long[:], crypto.SHA512},
		"Ed25519 prehash":  {ed, long[:], &ed25519.Options{Hash: crypto.SHA512}},
		"Ed25519 context":  {ed, digest[:], &ed25519.Options{Context: "x"}},
		"Ed25519 nil opts": {ed, digest[:], nil},
	} {
		sig, err := c.key.Sign(rand.Reader, c.digest, c.opts)
		if !errors.Is(err, ErrDigest) || temporary(err) || sig != nil {
			t.Errorf("%s: %x, %v", name, sig, err)
		}
	}
	if n := b.count("SignInit"); n != before {
		t.Errorf("%d of the requests reached the HSM", n-before)
	}
}

// TestLongDigestIsTruncated checks that a digest that is longer than the order of the curve is truncated before it
// reaches the HSM (SEC 1 section 4.1.3). SoftHSM would also truncate it, but not every HSM does.
func TestLongDigestIsTruncated(t *testing.T) {
	long := sha512.Sum512(nil)
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
		req, err := newRequest(&ecdsa.PublicKey{Curve: curve}, long[:], crypto.SHA512)
		if err != nil || !bytes.Equal(req.data, long[:curve.Params().BitSize/8]) {
			t.Errorf("%s: %x, %v", curve.Params().Name, req.data, err)
		}
	}
}

// TestCallsAreBoundedBySessions lets many goroutines sign with few sessions. There must never be more calls inside the
// library than sessions.
func TestCallsAreBoundedBySessions(t *testing.T) {
	b := newTestBench(t, "many")
	cfg := b.config("many")
	cfg.Sessions = 3
	tok := b.open(t, cfg)
	keys := []*Key{mustGenerate(t, tok, "ec", P256), mustGenerate(t, tok, "rsa", RSA3072)}
	opened := b.count("OpenSession")
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			for range 8 {
				k := keys[i%len(keys)]
				sig, err := signed(k)
				if err != nil {
					t.Error(err)
					return
				}
				verify(t, k, sig)
			}
		})
	}
	wg.Wait()
	if b.most < 2 || b.most > cfg.Sessions {
		t.Errorf("%d calls were in the library at once, with %d sessions", b.most, cfg.Sessions)
	}
	if n := b.count("OpenSession") - opened; n > cfg.Sessions {
		t.Errorf("%d sessions were opened, want at most the configured number", n)
	}
}

// TestHangingCallGivesBusy makes a call hang inside the library. The call keeps its session, other callers get ErrBusy,
// and Close does not finalize the library.
func TestHangingCallGivesBusy(t *testing.T) {
	b := newTestBench(t, "slow")
	cfg := b.config("slow")
	cfg.Sessions, cfg.Wait = 1, 200*time.Millisecond
	tok := b.open(t, cfg)
	k := mustGenerate(t, tok, "k", P256)

	release := b.stall("Sign")
	for range 2 { // the second call finds no free session
		if _, err := signed(k); !errors.Is(err, ErrBusy) || !temporary(err) || retryAfter(err) <= 0 {
			t.Errorf("a hanging call returns %v, want temporary ErrBusy", err)
		}
	}
	finalized := b.count("Finalize")
	if err := tok.Close(); !errors.Is(err, ErrBusy) || !temporary(err) {
		t.Errorf("Close with a call inside: %v, want temporary ErrBusy", err)
	}
	if _, err := signed(k); !errors.Is(err, ErrClosed) || temporary(err) {
		t.Errorf("signing after Close: %v, want ErrClosed", err)
	}
	if b.count("Finalize") != finalized {
		t.Error("the library was finalized with a call inside")
	}
	release()
	for range 2 {
		eventually(t, tok.Close)
	}
	if n := b.count("Finalize") - finalized; n != 1 {
		t.Errorf("the library was finalized %d times", n)
	}
}

// TestHangingRecoveryGivesBusy makes each step of the recovery hang. Callers must get a temporary error in time, and
// signatures as soon as the step continues.
func TestHangingRecoveryGivesBusy(t *testing.T) {
	for _, call := range []string{"Finalize", "Initialize", "OpenSession", "Login", "FindObjects"} {
		t.Run(call, func(t *testing.T) {
			b := newTestBench(t, "stuck")
			cfg := b.config("stuck")
			cfg.Wait = 100 * time.Millisecond
			k := mustGenerate(t, b.open(t, cfg), "k", P256)
			release := b.stall(call)
			b.inject(fault{call: "SignInit", times: 1, err: pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)})
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for range 2 {
						if _, err := signed(k); err != nil && !temporary(err) {
							t.Errorf("while %s hangs: %v", call, err)
						}
					}
				})
			}
			wg.Wait()
			if _, err := signed(k); !errors.Is(err, ErrBusy) {
				t.Errorf("while %s hangs: %v", call, err)
			}
			release()
			eventually(t, func() error { _, err := signed(k); return err })
		})
	}
}

// TestRestartWaitsForCallsInside checks that a restart waits for a call inside the library. If the call does not return
// in time, the library must not be finalized.
func TestRestartWaitsForCallsInside(t *testing.T) {
	b := newTestBench(t, "one", "two")
	cfg := b.config("one")
	cfg.Wait = 200 * time.Millisecond
	k, other := mustGenerate(t, b.open(t, cfg), "k", P256), mustGenerate(t, b.open(t, b.config("two")), "k", P256)
	mustSign(t, k)
	finalized := b.count("Finalize")
	finish := signTogether(b, other, 1)
	b.inject(fault{call: "SignInit", times: 1, err: pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)})
	for range 3 {
		if _, err := signed(k); !errors.Is(err, ErrBusy) || !temporary(err) {
			t.Errorf("signing while a restart waits for a call: %v, want temporary ErrBusy", err)
		}
	}
	if b.count("Finalize") != finalized {
		t.Error("the library was finalized around a call")
	}
	if err := finish(); err != nil {
		t.Errorf("the call inside the library failed: %v", err)
	}
	eventually(t, func() error { _, err := signed(k); return err })
	if b.count("Finalize") != finalized+1 {
		t.Error("the restart did not take place")
	}
	mustSign(t, other)
}

// TestEd25519SignsAnyLength signs messages of several lengths, including empty ones.
func TestEd25519SignsAnyLength(t *testing.T) {
	b := newTestBench(t, "empty")
	k := mustGenerate(t, b.open(t, b.config("empty")), "k", Ed25519)
	for _, message := range [][]byte{nil, {}, {0}, make([]byte, 100_000)} {
		sig, err := k.Sign(nil, message, crypto.Hash(0))
		if err != nil || !ed25519.Verify(k.Public().(ed25519.PublicKey), message, sig) {
			t.Errorf("%d bytes: %x, %v", len(message), sig, err)
		}
	}
}
