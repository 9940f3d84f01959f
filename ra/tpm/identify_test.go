package tpm

import (
	"bytes"
	"crypto/x509"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/pki/attest"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/nonce"
)

func TestIdentifyAcceptsForgeryThatIsNotChanged(t *testing.T) {
	a, f := newAuthenticator(t), newForgery(t)
	claim, err := identify(t, a, f.evidence(t, a), f.request, f.key.Public(), now)
	if err != nil {
		t.Fatal(err)
	}
	if !claim.HardwareKey || claim.Nonce.IsZero() || claim.Subject.Kind != pki.EvidenceTPM || !claim.Identity.IsZero() || claim.Actor.NeedsAuthorization() {
		t.Errorf("the claim is %+v", claim)
	}
	declared := a.Facts()
	if len(claim.Facts) != len(declared) {
		t.Errorf("the claim has the facts %v, and %v are declared", claim.Facts, declared)
	}
	for name, want := range map[string]any{
		factSource: "acme", factCertified: true, factManufacturer: "id:41434D45", factModel: "one", factVersion: "id:1", factEK: claim.Subject.String()[len("tpm:"):],
	} {
		if claim.Facts[name] != want || declared[name] == 0 {
			t.Errorf("the fact %s is %v, want %v", name, claim.Facts[name], want)
		}
	}
	if err := a.Bind(t.Context(), nil, ra.Binding{}); err != nil {
		t.Errorf("the evidence is bound: %v", err)
	}
}

// A change is a change of good evidence, and the rule by which the result is refused.
type change struct {
	edit func(*forgery)
	rule pki.Rule
}

// response changes the response after everything was signed.
func response(edit func(*attest.Response)) func(*forgery) {
	return func(f *forgery) { f.editResponse = edit }
}

// checkRefused makes each change of good evidence on its own.
func checkRefused(t *testing.T, changes map[string]change) {
	t.Helper()
	a := newAuthenticator(t)
	for name, c := range changes {
		f := newForgery(t)
		c.edit(f)
		claim, err := identify(t, a, f.evidence(t, a), requestID(t, 1), f.key.Public(), now)
		refused(t, name, err, c.rule)
		if claim.HardwareKey || len(claim.Facts) > 0 || !claim.Subject.IsZero() {
			t.Errorf("%s: the refusal has the claim %+v", name, claim)
		}
	}
}

// Short names of rules for the tables.
const (
	badKey, otherKey    = pki.RuleEvidenceAlgorithm, pki.RuleEvidenceKey
	unproven, malformed = pki.RuleEvidenceSignature, pki.RuleEvidenceMalformed
)

func TestIdentifyRefusesKeys(t *testing.T) {
	stranger := newP256(t)
	checkRefused(t, map[string]change{
		"attestation key of another challenge": {func(f *forgery) { f.sealedAK = nameOfArea(t, f.keyArea) }, otherKey},
		"attestation key is not restricted": {func(f *forgery) {
			f.akArea.ObjectAttributes.Restricted = false
		}, badKey},
		"attestation key can be exported":   {func(f *forgery) { f.akArea.ObjectAttributes.FixedTPM = false }, badKey},
		"attestation key can be duplicated": {func(f *forgery) { f.akArea.ObjectAttributes.FixedParent = false }, badKey},
		"attestation key was imported": {
			func(f *forgery) { f.akArea.ObjectAttributes.SensitiveDataOrigin = false }, badKey,
		},
		"attestation key decrypts":    {func(f *forgery) { f.akArea.ObjectAttributes.Decrypt = true }, badKey},
		"attestation key cannot sign": {func(f *forgery) { f.akArea.ObjectAttributes.SignEncrypt = false }, badKey},
		"attestation key signs SHA-1": {
			func(f *forgery) { f.akArea = eccArea(t, &f.ak.PublicKey, akAttributes(), ecdsaScheme(tpm2.TPMAlgSHA1)) }, badKey,
		},
		"attestation key has no scheme": {
			func(f *forgery) { f.akArea = eccArea(t, &f.ak.PublicKey, akAttributes(), tpm2.TPMSECCParms{}) }, badKey,
		},
		"certified key is not the CSR's": {
			func(f *forgery) { f.keyArea = eccArea(t, &stranger.PublicKey, keyAttributes(), tpm2.TPMSECCParms{}) }, otherKey,
		},
		"certified key can be exported":   {func(f *forgery) { f.keyArea.ObjectAttributes.FixedTPM = false }, badKey},
		"certified key can be duplicated": {func(f *forgery) { f.keyArea.ObjectAttributes.FixedParent = false }, badKey},
		"certified key was imported": {
			func(f *forgery) { f.keyArea.ObjectAttributes.SensitiveDataOrigin = false }, badKey,
		},
		"certified key cannot sign":    {func(f *forgery) { f.keyArea.ObjectAttributes.SignEncrypt = false }, badKey},
		"certified key does not parse": {response(func(r *attest.Response) { r.Key = r.Key[:20] }), malformed},
	})
}

// TestIdentifyRefuses signs the changed statement again where an attacker could.
func TestIdentifyRefuses(t *testing.T) {
	stranger := newP256(t)
	checkRefused(t, map[string]change{
		"activated by another TPM": {
			response(func(r *attest.Response) { r.Secret = make([]byte, secretSize) }), unproven,
		},
		"no secret":                       {response(func(r *attest.Response) { r.Secret = nil }), unproven},
		"statement signed by another key": {func(f *forgery) { f.signer = stranger }, unproven},
		"statement changed after signing": {response(func(r *attest.Response) { r.Statement[20] ^= 1 }), unproven},
		"signature of another algorithm": {func(f *forgery) {
			f.editSignature = func(s *tpm2.TPMTSignature) {
				s.SigAlg = tpm2.TPMAlgECDAA
				s.Signature = tpm2.NewTPMUSignature(tpm2.TPMAlgECDAA, &tpm2.TPMSSignatureECC{Hash: tpm2.TPMAlgSHA256})
			}
		}, unproven},
		"HMAC instead of a signature": {func(f *forgery) {
			f.editResponse = func(r *attest.Response) { r.Signature = append([]byte{0, 5, 0, 11}, make([]byte, 32)...) }
		}, unproven},
		"no signature":                {response(func(r *attest.Response) { r.Signature = nil }), unproven},
		"statement about another key": {func(f *forgery) { f.certified = nameOfArea(t, f.akArea) }, otherKey},
		"statement for another trust domain": {
			func(f *forgery) { f.trustDomain = "other.example" }, otherKey,
		},
		"statement for another challenge": {func(f *forgery) { f.otherChallenge = true }, otherKey},
		"statement of TPM2_Quote": {func(f *forgery) {
			f.statement.Type = tpm2.TPMSTAttestQuote
			f.statement.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{})
		}, malformed},
		"statement that no TPM generated": {
			func(f *forgery) { f.editStatement = func(b []byte) []byte { return append([]byte{0xfe}, b[1:]...) } }, malformed,
		},
		"statement that is cut off": {
			func(f *forgery) { f.editStatement = func(b []byte) []byte { return b[:len(b)-40] } }, malformed,
		},
		"challenge that was changed": {
			response(func(r *attest.Response) { r.Sealed[len(r.Sealed)-1] ^= 1 }), pki.RuleChallengeInvalid,
		},
		"no challenge":                  {response(func(r *attest.Response) { r.Sealed = nil }), pki.RuleChallengeInvalid},
		"challenge for another request": {func(f *forgery) { f.request = requestID(t, 2) }, otherKey},
		"challenge for another key":     {func(f *forgery) { f.challengeKey = pki.HashSPKI([]byte("other")) }, otherKey},
	})
	a, f := newAuthenticator(t), newForgery(t)
	_, err := identify(t, a, f.evidence(t, a), f.request, f.key.Public(), now.Add(nonce.Lifetime+time.Second))
	refused(t, "a late response", err, pki.RuleChallengeExpired)
}

// A challenge contains what the sources said about the endorsement key. It is not accepted after they have changed.
func TestChallengesEndWithTheirSources(t *testing.T) {
	one, other := newCA(t).certificate, newCA(t).certificate
	source := func(name string, roots ...*x509.Certificate) Source { return Source{Name: name, Roots: roots} }
	before := []Source{source("acme", one), source("other", other)}
	a, f := newAuthenticator(t, before...), newForgery(t)
	evidence := f.evidence(t, a)
	if _, err := identify(t, newAuthenticator(t, before...), evidence, f.request, f.key.Public(), now); err != nil {
		t.Errorf("with the same sources: %v", err)
	}
	for name, after := range map[string][]Source{
		"none": nil, "one removed": before[1:], "another root": {source("acme", other), before[1]},
		"a root added": {before[0], source("other", other, one)}, "another name": {source("acmes", one), before[1]},
		"another order": {before[1], before[0]}, "one more": append(before[:2:2], source("third", one)),
		"a root is an intermediate": {before[0], {Name: "other", Roots: []*x509.Certificate{one}, Intermediates: []*x509.Certificate{other}}},
	} {
		_, err := identify(t, newAuthenticator(t, after...), evidence, f.request, f.key.Public(), now)
		refused(t, name, err, pki.RuleChallengeInvalid)
	}
}

func TestIdentifyRefusesMessages(t *testing.T) {
	a, f := newAuthenticator(t), newForgery(t)
	good := f.evidence(t, a)
	for name, c := range map[string]struct {
		evidence []byte
		rule     pki.Rule
	}{
		"empty":     {nil, pki.RuleEvidenceMalformed},
		"cut off":   {good[:len(good)-1], pki.RuleEvidenceMalformed},
		"extended":  {append(bytes.Clone(good), 0), pki.RuleEvidenceMalformed},
		"too long":  {append(bytes.Clone(good), make([]byte, attest.MaxMessage)...), pki.RuleEvidenceSize},
		"all zeros": {make([]byte, len(good)), pki.RuleEvidenceMalformed},
	} {
		_, err := identify(t, a, c.evidence, f.request, f.key.Public(), now)
		refused(t, name, err, c.rule)
	}
	for i := range good {
		changed := bytes.Clone(good)
		changed[i] ^= 1
		if _, err := identify(t, a, changed, f.request, f.key.Public(), now); err == nil {
			t.Errorf("the evidence is accepted with another byte %d of %d", i, len(good))
		} else if _, ok := pki.AsRefusal(err); !ok {
			t.Errorf("with another byte %d, the error is no refusal: %v", i, err)
		}
	}
}
