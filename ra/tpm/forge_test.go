package tpm

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/pki/attest"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/nonce"
)

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

func newAuthenticator(t testing.TB, from ...Source) *Authenticator {
	t.Helper()
	return must(New("fleet.example", from, must(nonce.FromKey([32]byte{1}, [16]byte{1}))(t)))(t)
}

func requestID(t testing.TB, first byte) pki.RequestID {
	t.Helper()
	return must(pki.RequestIDFromBytes(append([]byte{first}, make([]byte, 15)...)))(t)
}

func newP256(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
}

// objectOfTPM has the attributes of keys that were generated in a TPM and cannot leave it.
var objectOfTPM = tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true}

// aes128 is the cipher of endorsement keys.
var aes128 = tpm2.TPMTSymDefObject{
	Algorithm: tpm2.TPMAlgAES, KeyBits: tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)), Mode: tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
}

// eccArea returns the public area of a P-256 key.
func eccArea(t testing.TB, key *ecdsa.PublicKey, attributes tpm2.TPMAObject, p tpm2.TPMSECCParms) tpm2.TPMTPublic {
	t.Helper()
	point := must(key.Bytes())(t)
	p.CurveID = tpm2.TPMECCNistP256
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes, Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &p),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
		}),
	}
}

// ecdsaScheme returns parameters with the scheme ECDSA.
func ecdsaScheme(hash tpm2.TPMAlgID) tpm2.TPMSECCParms {
	return tpm2.TPMSECCParms{Scheme: tpm2.TPMTECCScheme{
		Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: hash}),
	}}
}

// with returns attributes after a change.
func with(a tpm2.TPMAObject, edit func(*tpm2.TPMAObject)) tpm2.TPMAObject {
	edit(&a)
	return a
}

func ekAttributes() tpm2.TPMAObject {
	return with(objectOfTPM, func(a *tpm2.TPMAObject) { a.Restricted, a.Decrypt = true, true })
}

func akAttributes() tpm2.TPMAObject {
	return with(objectOfTPM, func(a *tpm2.TPMAObject) { a.Restricted, a.SignEncrypt = true, true })
}

func keyAttributes() tpm2.TPMAObject {
	return with(objectOfTPM, func(a *tpm2.TPMAObject) { a.SignEncrypt = true })
}

// forgery is evidence that a test makes in software. Its fields are what a TPM would return; a test changes them before
// it calls evidence.
type forgery struct {
	ak, key        *ecdsa.PrivateKey
	akArea         tpm2.TPMTPublic
	keyArea        tpm2.TPMTPublic
	sealedAK       []byte // the name of the attestation key in the challenge
	statement      tpm2.TPMSAttest
	certified      []byte // the name in the statement
	secret         []byte
	signer         *ecdsa.PrivateKey
	request        pki.RequestID // of the challenge
	challengeKey   pki.KeyHash
	editStatement  func([]byte) []byte // before it is signed
	editSignature  func(*tpm2.TPMTSignature)
	editResponse   func(*attest.Response)
	otherChallenge bool   // the statement is for another challenge
	trustDomain    string // that the statement is for; empty for that of the authenticator
}

func nameOfArea(t testing.TB, area tpm2.TPMTPublic) []byte {
	t.Helper()
	return must(tpm2.ObjectName(&area))(t).Buffer
}

// newForgery returns evidence that is accepted if it is not changed.
func newForgery(t testing.TB) *forgery {
	t.Helper()
	f := &forgery{ak: newP256(t), key: newP256(t), secret: make([]byte, secretSize), request: requestID(t, 1)}
	_, _ = rand.Read(f.secret)
	f.signer = f.ak
	f.akArea = eccArea(t, &f.ak.PublicKey, akAttributes(), ecdsaScheme(tpm2.TPMAlgSHA256))
	f.keyArea = eccArea(t, &f.key.PublicKey, keyAttributes(), tpm2.TPMSECCParms{})
	f.challengeKey = must(pki.HashKey(&f.key.PublicKey))(t)
	f.statement = tpm2.TPMSAttest{Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestCertify}
	return f
}

// evidence returns the encoded response.
func (f *forgery) evidence(t testing.TB, a *Authenticator) []byte {
	t.Helper()
	if f.sealedAK == nil {
		f.sealedAK = nameOfArea(t, f.akArea)
	}
	if f.certified == nil {
		f.certified = nameOfArea(t, f.keyArea)
	}
	s := state{sha256.Sum256(f.secret), sha256.Sum256([]byte("ek")), f.sealedAK, a.digest, endorsement{"acme", product{"id:41434D45", "one", "id:1"}}}
	sealed := must(a.nonces.Seal(binding(f.request, f.challengeKey), must(s.marshal())(t), now))(t)
	r := attest.Response{Sealed: sealed, Secret: f.secret, AK: tpm2.Marshal(f.akArea), Key: tpm2.Marshal(f.keyArea)}
	f.statement.ExtraData.Buffer = attest.QualifyingData(cmp.Or(f.trustDomain, "fleet.example"), sealed)
	if f.otherChallenge {
		f.statement.ExtraData.Buffer = attest.QualifyingData("fleet.example", must(a.nonces.Seal(binding(f.request, f.challengeKey), nil, now))(t))
	}
	if f.statement.Type == tpm2.TPMSTAttestCertify {
		f.statement.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{Name: tpm2.TPM2BName{Buffer: f.certified}})
	}
	r.Statement = tpm2.Marshal(f.statement)
	if f.editStatement != nil {
		r.Statement = f.editStatement(r.Statement)
	}
	digest := sha256.Sum256(r.Statement)
	rValue, sValue, err := ecdsa.Sign(rand.Reader, f.signer, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
		Hash: tpm2.TPMAlgSHA256, SignatureR: tpm2.TPM2BECCParameter{Buffer: rValue.Bytes()}, SignatureS: tpm2.TPM2BECCParameter{Buffer: sValue.Bytes()},
	})}
	if f.editSignature != nil {
		f.editSignature(&signature)
	}
	r.Signature = tpm2.Marshal(signature)
	if f.editResponse != nil {
		f.editResponse(&r)
	}
	return must(r.Marshal())(t)
}

// identify presents evidence for the key of the forgery.
func identify(t testing.TB, a *Authenticator, evidence []byte, request pki.RequestID, key crypto.PublicKey, at time.Time) (ra.Claim, error) {
	t.Helper()
	return a.Identify(t.Context(), ra.Presented{Evidence: evidence, Request: request, Key: must(pki.HashKey(key))(t), At: at})
}

// refused checks the rule of a refusal, and that it says what was found and what would pass.
func refused(t testing.TB, name string, err error, rule pki.Rule) {
	t.Helper()
	r, ok := pki.AsRefusal(err)
	if !ok || r.Rule != rule || r.Detail == "" || r.Hint == "" {
		t.Errorf("%s: got %v, want a refusal by %s", name, err, rule)
	}
}

// rsaArea returns the public area of an RSA key.
func rsaArea(key *rsa.PublicKey, attributes tpm2.TPMAObject, p tpm2.TPMSRSAParms) tpm2.TPMTPublic {
	p.KeyBits = tpm2.TPMKeyBits(key.N.BitLen())
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes, Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &p),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()}),
	}
}
