package ra

import (
	"bytes"
	"testing"

	"github.com/brevet-pki/brevet/pki"
)

// An identity gets the certificate of an OCSP delegate only with the attributes of one, whatever its name is.
func TestCheckDelegate(t *testing.T) {
	t.Parallel()
	issuer := func(n byte) pki.IssuerID {
		id, err := pki.IssuerIDFromBytes(bytes.Repeat([]byte{n}, 32))
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	want := DelegateIdentity(issuer(1))
	for name, alter := range map[string]func(*Identity){
		"its own":         func(*Identity) {},
		"another kind":    func(i *Identity) { i.Kind = pki.Server },
		"another profile": func(i *Identity) { i.Profile = "server" },
		"another CA":      func(i *Identity) { i.Labels = DelegateIdentity(issuer(2)).Labels },
		"a name":          func(i *Identity) { i.DNSNames = []string{"ca.example"} },
		"a role":          func(i *Identity) { i.Roles = 1 },
	} {
		id := Identity{Kind: want.Kind, Profile: want.Profile, Labels: want.Labels, State: pki.Enrolled, Revision: 7}
		alter(&id)
		refusal := checkDelegate(id, want)
		if (refusal == nil) != (name == "its own") || refusal != nil && refusal.Rule != pki.RuleAccess {
			t.Errorf("%s: %v", name, refusal)
		}
	}
}
