package tpm

import (
	"bytes"
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

// TestIdentifyRefuses changes one thing about good evidence, and signs the statement again where an attacker could.
func TestIdentifyRefuses(t *testing.T) {
	a := newAuthenticator(t)
	stranger := newP256(t)
	at := func(edit func(*forgery)) func(*forgery) { return edit }
	for name, c := range map[string]struct {
		edit func(*forgery)
		rule pki.Rule
	}{
		"activated by another TPM":             {at(func(f *forgery) { f.editResponse = func(r *attest.Response) { r.Secret = make([]byte, secretSize) } }), pki.RuleEvidenceSignature},
		"no secret":                            {at(func(f *forgery) { f.editResponse = func(r *attest.Response) { r.Secret = nil } }), pki.RuleEvidenceSignature},
		"attestation key of another challenge": {at(func(f *forgery) { f.sealedAK = nameOfArea(t, f.keyArea) }), pki.RuleEvidenceKey},
		"attestation key is not restricted": {at(func(f *forgery) {
			f.akArea.ObjectAttributes.Restricted = false
		}), pki.RuleEvidenceAlgorithm},
		"attestation key can be exported":   {at(func(f *forgery) { f.akArea.ObjectAttributes.FixedTPM = false }), pki.RuleEvidenceAlgorithm},
		"attestation key can be duplicated": {at(func(f *forgery) { f.akArea.ObjectAttributes.FixedParent = false }), pki.RuleEvidenceAlgorithm},
		"attestation key was imported":      {at(func(f *forgery) { f.akArea.ObjectAttributes.SensitiveDataOrigin = false }), pki.RuleEvidenceAlgorithm},
		"attestation key decrypts":          {at(func(f *forgery) { f.akArea.ObjectAttributes.Decrypt = true }), pki.RuleEvidenceAlgorithm},
		"attestation key cannot sign":       {at(func(f *forgery) { f.akArea.ObjectAttributes.SignEncrypt = false }), pki.RuleEvidenceAlgorithm},
		"attestation key signs SHA-1":       {at(func(f *forgery) { f.akArea = eccArea(t, &f.ak.PublicKey, akAttributes(), ecdsaScheme(tpm2.TPMAlgSHA1)) }), pki.RuleEvidenceAlgorithm},
		"attestation key has no scheme":     {at(func(f *forgery) { f.akArea = eccArea(t, &f.ak.PublicKey, akAttributes(), tpm2.TPMSECCParms{}) }), pki.RuleEvidenceAlgorithm},
		"statement signed by another key":   {at(func(f *forgery) { f.signer = stranger }), pki.RuleEvidenceSignature},
		"statement changed after signing":   {at(func(f *forgery) { f.editResponse = func(r *attest.Response) { r.Statement[20] ^= 1 } }), pki.RuleEvidenceSignature},
		"signature of another algorithm": {at(func(f *forgery) {
			f.editSignature = func(s *tpm2.TPMTSignature) {
				s.SigAlg = tpm2.TPMAlgECDAA
				s.Signature = tpm2.NewTPMUSignature(tpm2.TPMAlgECDAA, &tpm2.TPMSSignatureECC{Hash: tpm2.TPMAlgSHA256})
			}
		}), pki.RuleEvidenceSignature},
		"HMAC instead of a signature": {at(func(f *forgery) {
			f.editResponse = func(r *attest.Response) { r.Signature = append([]byte{0, 5, 0, 11}, make([]byte, 32)...) }
		}), pki.RuleEvidenceSignature},
		"no signature":                    {at(func(f *forgery) { f.editResponse = func(r *attest.Response) { r.Signature = nil } }), pki.RuleEvidenceSignature},
		"statement about another key":     {at(func(f *forgery) { f.certified = nameOfArea(t, f.akArea) }), pki.RuleEvidenceKey},
		"certified key is not the CSR's":  {at(func(f *forgery) { f.keyArea = eccArea(t, &stranger.PublicKey, keyAttributes(), tpm2.TPMSECCParms{}) }), pki.RuleEvidenceKey},
		"statement for another challenge": {at(func(f *forgery) { f.otherChallenge = true }), pki.RuleEvidenceKey},
		"statement of TPM2_Quote": {at(func(f *forgery) {
			f.statement.Type = tpm2.TPMSTAttestQuote
			f.statement.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{})
		}), pki.RuleEvidenceMalformed},
		"statement that no TPM generated": {at(func(f *forgery) { f.editStatement = func(b []byte) []byte { return append([]byte{0xfe}, b[1:]...) } }), pki.RuleEvidenceMalformed},
		"statement that is cut off":       {at(func(f *forgery) { f.editStatement = func(b []byte) []byte { return b[:len(b)-40] } }), pki.RuleEvidenceMalformed},
		"certified key can be exported":   {at(func(f *forgery) { f.keyArea.ObjectAttributes.FixedTPM = false }), pki.RuleEvidenceAlgorithm},
		"certified key can be duplicated": {at(func(f *forgery) { f.keyArea.ObjectAttributes.FixedParent = false }), pki.RuleEvidenceAlgorithm},
		"certified key was imported":      {at(func(f *forgery) { f.keyArea.ObjectAttributes.SensitiveDataOrigin = false }), pki.RuleEvidenceAlgorithm},
		"certified key cannot sign":       {at(func(f *forgery) { f.keyArea.ObjectAttributes.SignEncrypt = false }), pki.RuleEvidenceAlgorithm},
		"certified key does not parse":    {at(func(f *forgery) { f.editResponse = func(r *attest.Response) { r.Key = r.Key[:20] } }), pki.RuleEvidenceMalformed},
		"challenge that was changed":      {at(func(f *forgery) { f.editResponse = func(r *attest.Response) { r.Sealed[len(r.Sealed)-1] ^= 1 } }), pki.RuleChallengeInvalid},
		"no challenge":                    {at(func(f *forgery) { f.editResponse = func(r *attest.Response) { r.Sealed = nil } }), pki.RuleChallengeInvalid},
		"challenge for another request":   {at(func(f *forgery) { f.request = requestID(t, 2) }), pki.RuleEvidenceKey},
		"challenge for another key":       {at(func(f *forgery) { f.challengeKey = pki.HashSPKI([]byte("other")) }), pki.RuleEvidenceKey},
	} {
		f := newForgery(t)
		c.edit(f)
		claim, err := identify(t, a, f.evidence(t, a), requestID(t, 1), f.key.Public(), now)
		refused(t, name, err, c.rule)
		if claim.HardwareKey || len(claim.Facts) > 0 || !claim.Subject.IsZero() {
			t.Errorf("%s: the refusal has the claim %+v", name, claim)
		}
	}
	f := newForgery(t)
	_, err := identify(t, a, f.evidence(t, a), f.request, f.key.Public(), now.Add(nonce.Lifetime+time.Second))
	refused(t, "a late response", err, pki.RuleChallengeExpired)
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
