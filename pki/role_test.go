package pki_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
)

func TestPermissionsOfRoles(t *testing.T) {
	t.Parallel()
	want := map[pki.Role]string{
		pki.RoleAdmin: "read audit register issue revoke administer", pki.RoleRegistrar: "read register issue",
		pki.RoleRevoker: "read revoke", pki.RoleAuditor: "read audit",
	}
	for _, role := range pki.AllRoles() {
		for _, p := range pki.AllPermissions() {
			permits := slices.Contains(strings.Fields(want[role]), p.String())
			if role.Permits(p) != permits {
				t.Errorf("the role %s permits %s: %v, want %v", role, p, !permits, permits)
			}
			refusal := operatorAlice(t).CheckPermission(pki.RolesOf(role), p)
			if (refusal == nil) != permits || refusal != nil && (refusal.Rule != pki.RuleAccess || !strings.Contains(refusal.Detail, p.String())) {
				t.Errorf("the role %s, the permission %s: %v", role, p, refusal)
			}
		}
	}
	if r := operatorAlice(t).CheckPermission(0, pki.MayRead); r == nil || r.Rule != pki.RuleAccess {
		t.Errorf("an operator without a role: %v", r)
	}
}

// A set of roles has the permissions of its roles together.
func TestSetsOfRoles(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		roles := rapid.SliceOfDistinct(rapid.SampledFrom(pki.AllRoles()), func(r pki.Role) pki.Role { return r }).Draw(t, "roles")
		set := pki.RolesOf(roles...)
		slices.Sort(roles)
		if got := set.List(); !slices.Equal(got, roles) {
			t.Errorf("the set of %v has %v", roles, got)
		}
		for _, p := range pki.AllPermissions() {
			want := slices.ContainsFunc(roles, func(r pki.Role) bool { return r.Permits(p) })
			if set.Permits(p) != want {
				t.Errorf("the roles %v permit %s: %v", roles, p, !want)
			}
		}
	})
}

// CheckLabels passes exactly if the identity has every label of the caller, or if the caller is an admin.
func TestLabelsOfRegistrars(t *testing.T) {
	t.Parallel()
	alice := operatorAlice(t)
	rapid.Check(t, func(t *rapid.T) {
		label := rapid.SampledFrom([]string{"", "a", "b"})
		labels := rapid.MapOfN(rapid.SampledFrom([]string{"line", "site", "batch"}), label, 0, 3)
		own, of := labels.Draw(t, "labels of the caller"), labels.Draw(t, "labels of the identity")
		roles := pki.Roles(rapid.Uint8Range(1, 15).Draw(t, "roles"))
		has := maps.Clone(of)
		maps.Copy(has, own)
		want := roles.Has(pki.RoleAdmin) || maps.Equal(has, of)
		r := alice.CheckLabels(pki.CallerIdentity{Roles: roles, Labels: own}, of)
		if (r == nil) != want || r != nil && r.Rule != pki.RuleAccessLabel {
			t.Errorf("roles %s, labels %v, identity %v: %v", roles, own, of, r)
		}
	})
}

func TestRolesOfKinds(t *testing.T) {
	t.Parallel()
	for kind := pki.Device; kind <= pki.VA; kind++ {
		none, one := kind.CheckRoles(0), kind.CheckRoles(pki.RolesOf(pki.RoleAuditor))
		if (none == nil) == (kind == pki.Operator) || (one == nil) != (kind == pki.Operator) {
			t.Errorf("a %s without roles: %v, with a role: %v", kind, none, one)
		}
	}
}

func operatorAlice(t *testing.T) pki.SPIFFEID {
	t.Helper()
	id, err := pki.OperatorID("fleet.example", "alice")
	if err != nil {
		t.Fatal(err)
	}
	return id
}
