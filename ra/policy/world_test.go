package policy_test

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/ra/policy"
	"github.com/brevet-pki/brevet/ra/recovery"
	"github.com/brevet-pki/brevet/ra/token"
	"github.com/brevet-pki/brevet/ra/tpm"
	"github.com/brevet-pki/brevet/ra/x5c"
)

const trustDomain = "fleet.example"

// The kinds of evidence in these tests, beside tokens.
const (
	kindX5C pki.EvidenceKind = 2
	kindTPM pki.EvidenceKind = 3
	kindJWT pki.EvidenceKind = 4
)

func kinds() []policy.Kind {
	return []policy.Kind{
		policy.KindOf(pki.EvidenceToken, token.New(nil), nil),
		{
			Evidence: kindX5C, Name: "x5c", Unique: new(x5c.Authenticator).Unique(),
			Facts: map[string]ra.FactType{
				"x5c.source": ra.FactString, "x5c.serial": ra.FactString, "x5c.hardware_type": ra.FactString, "x5c.common_name": ra.FactString,
				"x5c.organization": ra.FactString, "x5c.issuer": ra.FactString, "x5c.certificate_serial": ra.FactString, "x5c.not_after": ra.FactTime,
			},
		},
		{
			Evidence: kindTPM, Name: "tpm", Unique: new(tpm.Authenticator).Unique(), Certified: new(tpm.Authenticator).Certified(),
			Facts: map[string]ra.FactType{
				"tpm.ek": ra.FactString, "tpm.source": ra.FactString, "tpm.manufacturer": ra.FactString, "tpm.model": ra.FactString,
				"tpm.version": ra.FactString, "tpm.certified": ra.FactBool,
			},
		},
		{
			Evidence: kindJWT, Name: "jwt", Unique: []ra.UniqueFact{
				{Name: "jwt.subject", Within: [][]string{{"jwt.source", "jwt.issuer"}}},
				{Name: "jwt.kubernetes.service_account", Within: [][]string{{"jwt.source", "jwt.issuer"}, {"jwt.kubernetes.namespace"}}},
			},
			Facts: map[string]ra.FactType{
				"jwt.source": ra.FactString, "jwt.issuer": ra.FactString, "jwt.subject": ra.FactString, "jwt.audience": ra.FactStrings,
				"jwt.expires_at": ra.FactTime, "jwt.issued_at": ra.FactTime, "jwt.uses": ra.FactInt,
				"jwt.kubernetes.namespace": ra.FactString, "jwt.kubernetes.service_account": ra.FactString, "jwt.kubernetes.pod": ra.FactString,
				"jwt.kubernetes.pod_uid": ra.FactString, "jwt.kubernetes.node": ra.FactString,
			},
		},
		policy.KindOf(pki.EvidenceX5CTLS, new(x5c.TLSAuthenticator), nil),
		policy.KindOf(pki.EvidenceRecovery, new(recovery.Authenticator), anySection{}),
		policy.KindOf(pki.EvidenceACME, new(acme.Authenticator), anySection{}),
	}
}

// anySection is a section that accepts all values.
type anySection struct{}

func (anySection) Check(*yaml.Node) error { return nil }

func environment(testing.TB) policy.Environment {
	return policy.Environment{TrustDomain: trustDomain, Kinds: kinds(), PublicURL: "http://pki.fleet.example"}
}

func compile(t testing.TB, document string) *policy.Policy {
	t.Helper()
	p, err := policy.Compile([]byte(document), 7, environment(t))
	if err != nil {
		t.Fatalf("%v in\n%s", err, document)
	}
	return p
}

// claim returns the claim of a kind with facts, as name and value in turn. The subject is the hash of the facts.
func claim(kind pki.EvidenceKind, facts ...any) ra.KindClaim {
	c := ra.Claim{Facts: map[string]any{}, Subject: pki.EvidenceSubject{Kind: kind, Hash: sha256.Sum256(fmt.Append(nil,
		facts...))}}
	for i := 0; i < len(facts); i += 2 {
		c.Facts[facts[i].(string)] = facts[i+1]
	}
	return ra.KindClaim{Kind: kind, Claim: c}
}

// tokenFor returns the claim of a token for an identity.
func tokenFor(t testing.TB, path string) ra.KindClaim {
	t.Helper()
	return ra.KindClaim{Kind: pki.EvidenceToken, Claim: ra.Claim{
		Identity: identity(t, path), Facts: map[string]any{"token.identity": path, "token.creator": "spiffe://fleet.example/brevet/operator/alice"},
	}}
}

func identity(t testing.TB, path string) pki.SPIFFEID {
	t.Helper()
	id, err := pki.SPIFFEIDIn(trustDomain, path)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

var now = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

// refused checks that err is a refusal with a rule, whose text contains the given words.
func refused(t *testing.T, what string, err error, rule pki.Rule, words string) {
	t.Helper()
	r, ok := pki.AsRefusal(err)
	if !ok || r.Rule != rule || !strings.Contains(err.Error(), words) {
		t.Errorf("%s: %v, want a refusal %s with %q", what, err, rule, words)
	}
}
