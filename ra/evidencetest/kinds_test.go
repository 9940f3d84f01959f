package evidencetest_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	enrolltpm "github.com/brevet-pki/brevet/enroll/tpm"
	"github.com/brevet-pki/brevet/enroll/tpm/tpmtest"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/evidencetest"
	"github.com/brevet-pki/brevet/ra/nonce"
	"github.com/brevet-pki/brevet/ra/token"
	"github.com/brevet-pki/brevet/ra/tpm"
	"github.com/brevet-pki/brevet/ra/x5c"
	"github.com/brevet-pki/brevet/store/memory"
)

// samples has a sample of each kind of evidence. A test fails for a kind that is missing here.
var samples = map[pki.EvidenceKind]func(testing.TB) evidencetest.Sample{
	pki.EvidenceToken: tokenSample,
	pki.EvidenceX5C:   x5cSample,
	pki.EvidenceTPM:   tpmSample,
	pki.EvidenceJWT:   jwtSample,

	pki.EvidenceRecovery: recoverySample,
	pki.EvidenceX5CTLS:   x5cTLSSample,
	pki.EvidenceACME:     acmeSample,
}

func TestEveryKind(t *testing.T) {
	var all []evidencetest.Sample
	for _, kind := range pki.EvidenceKinds() {
		make := samples[kind]
		if make == nil {
			t.Errorf("there is no sample of the kind %s: add one to samples", kind)
			continue
		}
		s := make(t)
		all = append(all, s)
		t.Run(kind.String(), func(t *testing.T) { evidencetest.Run(t, s) })
	}
	t.Run("pairs", func(t *testing.T) { evidencetest.RunPairs(t, all...) })
}

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func tokenSample(t testing.TB) evidencetest.Sample {
	records := &memory.Store{}
	id := ra.Identity{ID: must(pki.SPIFFEIDIn("fleet.example", "device/1"))(t), Kind: pki.Device, State: pki.Registered, Profile: "device", Revision: 1}
	by := pki.ActorCommand("test")
	id = must(records.CreateIdentity(t.Context(), ra.Registration{Identity: id}, by))(t)
	random := make([]byte, 32)
	_, _ = rand.Read(random)
	secret := must(pki.TokenSecretFromBytes(random))(t)
	made := must(records.CreateToken(t.Context(), ra.Token{
		ID: secret.ID(), Identity: id.ID, IdentityRevision: id.Revision, Profile: id.Profile, CreatedAt: now, ExpiresAt: now.Add(time.Minute), CreatedBy: by,
	}))(t)
	return evidencetest.Sample{
		Kind: pki.EvidenceToken, Authenticator: token.New(records), At: now, Expired: made.ExpiresAt, Key: pki.HashSPKI([]byte("key")), Identity: id,
		Make: func(testing.TB, evidencetest.Request) []byte { return secret.Bytes() },
	}
}

func x5cSample(t testing.TB) evidencetest.Sample {
	root, rootKey := certificate(t, nil, nil, true)
	issuing, issuingKey := certificate(t, root, rootKey, true)
	device, key := certificate(t, issuing, issuingKey, false)
	own, foreign := must(nonce.FromKey([32]byte{1}, [16]byte{}))(t), must(nonce.FromKey([32]byte{2}, [16]byte{}))(t)
	sources := []x5c.Source{{Name: "cameras", Roots: []*x509.Certificate{root}}}
	return evidencetest.Sample{
		Kind: pki.EvidenceX5C, Authenticator: must(x5c.New("fleet.example", sources, own))(t), Foreign: must(x5c.New("fleet.example", sources, foreign))(t),
		At: now, Expired: now.Add(nonce.Lifetime), Key: pki.HashSPKI([]byte("key")),
		Make: func(t testing.TB, r evidencetest.Request) []byte {
			digest := sha256.Sum256(pki.X5CStatement("fleet.example", r.Key, r.ID, r.Challenge))
			signature := must(key.Sign(rand.Reader, digest[:], crypto.SHA256))(t)
			return pki.X5CEvidence{Certificates: [][]byte{device.Raw, issuing.Raw}, Challenge: r.Challenge, Signature: signature}.Encode()
		},
	}
}

// x5cTLSSample is a device that authenticated to a TLS server with its factory certificate.
func x5cTLSSample(t testing.TB) evidencetest.Sample {
	root, rootKey := certificate(t, nil, nil, true)
	issuing, issuingKey := certificate(t, root, rootKey, true)
	device, _ := certificate(t, issuing, issuingKey, false)
	nonces := must(nonce.FromKey([32]byte{1}, [16]byte{}))(t)
	sources := []x5c.Source{{Name: "cameras", Roots: []*x509.Certificate{root}}}
	return evidencetest.Sample{
		Kind: pki.EvidenceX5CTLS, SameAs: pki.EvidenceX5C, Authenticator: must(x5c.New("fleet.example", sources, nonces))(t).TLS(),
		At: now, Expired: device.NotAfter.Add(time.Second), Key: pki.HashSPKI([]byte("key")), Bearer: true,
		Make: func(testing.TB, evidencetest.Request) []byte {
			return pki.X5CTLSEvidence{Certificates: [][]byte{device.Raw, issuing.Raw}}.Encode()
		},
	}
}

func tpmSample(t testing.TB) evidencetest.Sample {
	device := enrolltpm.New(tpmtest.NewManufacturer(t).Make(t).Path)
	key := must(device.NewKey())(t)
	own, foreign := must(nonce.FromKey([32]byte{1}, [16]byte{}))(t), must(nonce.FromKey([32]byte{2}, [16]byte{}))(t)
	return evidencetest.Sample{
		Kind: pki.EvidenceTPM, Authenticator: must(tpm.New("fleet.example", nil, own))(t), Foreign: must(tpm.New("fleet.example", nil, foreign))(t),
		At: now, Expired: now.Add(nonce.Lifetime), Key: must(pki.HashKey(key.Public()))(t), Public: must(device.Describe())(t),
		Make: func(_ testing.TB, r evidencetest.Request) []byte {
			response, err := device.Respond("fleet.example", r.Challenge, key)
			if err != nil {
				return nil // the challenge is not for this TPM
			}
			return response
		},
	}
}

// certificate makes a certificate and its key. Without a parent, it is a root.
func certificate(t testing.TB, parent *x509.Certificate, parentKey crypto.Signer, isCA bool) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	serial := must(rand.Int(rand.Reader, big.NewInt(1<<62)))(t)
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: serial.String(), SerialNumber: "SN-0042"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IsCA: isCA, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if isCA {
		template.KeyUsage = x509.KeyUsageCertSign
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey))(t)))(t), key
}
