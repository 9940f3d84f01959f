package ra

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// proof is an Authenticator. It accepts the path of an identity as evidence for this identity.
type proof struct {
	claim Claim
	bound *[]Binding
}

func (proof) Facts() map[string]FactType { return nil }

func (p proof) Identify(_ context.Context, presented Presented) (Claim, error) {
	id, err := pki.SPIFFEIDIn("fleet.example", string(presented.Evidence))
	if err != nil {
		return Claim{}, pki.Refuse(pki.RuleToken, "send a path", "the evidence is not a path")
	}
	c := p.claim
	c.Identity = id
	return c, nil
}

func (p proof) Bind(_ context.Context, _ []byte, b Binding) error {
	*p.bound = append(*p.bound, b)
	return nil
}

// challengedProof is a proof that requires a challenge.
type challengedProof struct{ proof }

func (challengedProof) Challenge(_ context.Context, c ChallengeRequest, _ time.Time) ([]byte, error) {
	return fmt.Appendf(nil, "%s %s %s", c.Request, c.Key, c.Public), nil
}

// Kinds of evidence that exist only in tests.
const kindA, kindB pki.EvidenceKind = 100, 101

func registrarOf(t *testing.T) (*Registrar, *[]Binding) {
	t.Helper()
	secret, err := pki.TokenSecretFromBytes([]byte(strings.Repeat("x", 32)))
	if err != nil {
		t.Fatal(err)
	}
	bound := new([]Binding)
	rev := Revision{Authenticators: map[pki.EvidenceKind]Authenticator{
		kindA: proof{Claim{Token: secret.ID()}, bound}, kindB: challengedProof{proof{Claim{Replace: true}, bound}},
	}}
	return &Registrar{clock: time.Now, revision: func() Revision { return rev }}, bound
}

func TestEvidenceIsCombined(t *testing.T) {
	r, bound := registrarOf(t)
	both := []pki.Evidence{{Kind: kindB, Value: []byte("device/1")}, {Kind: kindA, Value: []byte("device/1")}}
	claims, err := r.revision().identify(t.Context(), EnrollRequest{Evidence: both}, pki.KeyHash{}, r.clock())
	if err != nil {
		t.Fatal(err)
	}
	named, err := claims.named()
	if err != nil || named.Path() != "device/1" || claims.guard().Token.IsZero() || !claims.replaces() {
		t.Errorf("the claims are %+v, of %s: %v", claims, named, err)
	}
	if err := r.revision().bind(t.Context(), both, Binding{}); err != nil || len(*bound) != 2 {
		t.Errorf("%d pieces of evidence were bound, want 2: %v", len(*bound), err)
	}
	for name, c := range map[string]struct {
		evidence []pki.Evidence
		rule     pki.Rule
	}{
		"none":              {nil, pki.RuleRequest},
		"three":             {append(both, both[0]), pki.RuleRequest},
		"two of one kind":   {[]pki.Evidence{both[0], both[0]}, pki.RuleRequest},
		"without a kind":    {[]pki.Evidence{{}}, pki.RuleEvidenceKind},
		"a token":           {[]pki.Evidence{{Kind: pki.EvidenceToken, Value: []byte("device/1")}}, pki.RuleEvidenceKind},
		"of two identities": {[]pki.Evidence{both[0], {Kind: kindA, Value: []byte("device/2")}}, pki.RuleEvidenceMismatch},
		"one is not valid":  {[]pki.Evidence{both[0], {Kind: kindA, Value: []byte("//")}}, pki.RuleToken},
	} {
		claims, err := r.revision().identify(t.Context(), EnrollRequest{Evidence: c.evidence}, pki.KeyHash{}, r.clock())
		if err == nil {
			_, err = claims.named()
		}
		if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != c.rule {
			t.Errorf("%s: %+v, %v, want %s", name, claims, err, c.rule)
		}
	}
}

func TestChallenge(t *testing.T) {
	r, _ := registrarOf(t)
	for kind, rule := range map[pki.EvidenceKind]pki.Rule{kindA: pki.RuleChallenge, pki.EvidenceToken: pki.RuleEvidenceKind, 0: pki.RuleEvidenceKind, kindB: ""} {
		sealed, err := r.Challenge(t.Context(), ChallengeRequest{Kind: kind, Public: []byte("public")})
		refusal, refused := pki.AsRefusal(err)
		if refused != (rule != "") || refused && refusal.Rule != rule || !refused && !strings.HasSuffix(string(sealed), " public") {
			t.Errorf("%s: %q, %v, want %q", kind, sealed, err, rule)
		}
	}
}
