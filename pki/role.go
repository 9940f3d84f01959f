package pki

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Role is a role of an operator. It grants permissions. An operator can have several roles.
type Role uint8

// The roles. An admin may do everything. A registrar registers devices and workloads, and requests certificates for
// them. A revoker revokes. An auditor reads everything, and changes nothing.
const (
	RoleAdmin Role = iota + 1
	RoleRegistrar
	RoleRevoker
	RoleAuditor
)

var roleNames = [...]string{RoleAdmin: "admin", RoleRegistrar: "registrar", RoleRevoker: "revoker", RoleAuditor: "auditor"}

// AllRoles returns all roles.
func AllRoles() []Role { return []Role{RoleAdmin, RoleRegistrar, RoleRevoker, RoleAuditor} }

// String returns the role's name.
func (r Role) String() string {
	if r < RoleAdmin || r > RoleAuditor {
		return fmt.Sprintf("role(%d)", uint8(r))
	}
	return roleNames[r]
}

// Permission is what an operator needs to call an operation. Roles grant permissions.
type Permission uint8

// The permissions.
const (
	MayRead       Permission = iota + 1 // read identities, tokens, certificates, revocations and CRLs
	MayAudit                            // read the log, the policy and the statistics of the store
	MayRegister                         // register and update devices and workloads, and create tokens for them
	MayIssue                            // issue certificates of devices and workloads for CSRs
	MayRevoke                           // revoke, hold and rotate certificates, suspend and retire devices, revoke tokens
	MayAdminister                       // change operators, the policy and imported CRLs
)

var permissionNames = [...]string{
	MayRead: "read", MayAudit: "audit", MayRegister: "register", MayIssue: "issue", MayRevoke: "revoke",
	MayAdminister: "administer",
}

// AllPermissions returns all permissions.
func AllPermissions() []Permission {
	return []Permission{MayRead, MayAudit, MayRegister, MayIssue, MayRevoke, MayAdminister}
}

// String returns the permission's name.
func (p Permission) String() string {
	if p < MayRead || p > MayAdminister {
		return fmt.Sprintf("permission(%d)", uint8(p))
	}
	return permissionNames[p]
}

// permissions maps each role to the permissions that it grants.
var permissions = map[Role][]Permission{
	RoleAdmin:     {MayRead, MayAudit, MayRegister, MayIssue, MayRevoke, MayAdminister},
	RoleRegistrar: {MayRead, MayRegister, MayIssue},
	RoleRevoker:   {MayRead, MayRevoke},
	RoleAuditor:   {MayRead, MayAudit},
}

// Permits reports whether the role grants a permission.
func (r Role) Permits(p Permission) bool { return slices.Contains(permissions[r], p) }

// Roles is a set of roles. The zero value is the empty set. Sets can be compared with ==.
type Roles uint8

// RolesOf returns the set of the given roles.
func RolesOf(roles ...Role) Roles {
	var s Roles
	for _, r := range roles {
		s |= 1 << (r - 1)
	}
	return s
}

// nameRoles names all roles for a hint.
func nameRoles() string {
	names := roleNames[RoleAdmin:]
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}

// Has reports whether the set has a role.
func (s Roles) Has(r Role) bool { return s&RolesOf(r) != 0 }

// List returns the roles in the set.
func (s Roles) List() []Role {
	return slices.DeleteFunc(AllRoles(), func(r Role) bool { return !s.Has(r) })
}

// Permits reports whether one of the roles grants a permission.
func (s Roles) Permits(p Permission) bool {
	for r := RoleAdmin; r <= RoleAuditor; r++ {
		if s.Has(r) && r.Permits(p) {
			return true
		}
	}
	return false
}

// String returns the names of the roles, separated by commas.
func (s Roles) String() string {
	var names []string
	for _, r := range s.List() {
		names = append(names, r.String())
	}
	return strings.Join(names, ",")
}

// CheckRoles returns a refusal if an identity of a kind cannot have these roles. Operators have at least one role, and
// other identities have none.
func (k Kind) CheckRoles(roles Roles) *Refusal {
	switch {
	case k == Operator && roles == 0:
		return Refuse(RuleRequest, "give the operator one role at least (--role): "+nameRoles(), "the operator has no role")
	case k != Operator && roles != 0:
		return Refuse(RuleRequest, "leave the roles out", "a %s cannot have roles", k)
	default:
		return nil
	}
}

// CallerIdentity is what a store has recorded about the identity of a caller.
type CallerIdentity struct {
	State  IdentityState
	Roles  Roles
	Labels map[string]string
}

// CheckPermission returns a refusal if none of the caller's roles grants a permission. Otherwise it returns nil.
func (s SPIFFEID) CheckPermission(roles Roles, p Permission) *Refusal {
	if roles.Permits(p) {
		return nil
	}
	var able []string
	for _, r := range AllRoles() {
		if r.Permits(p) {
			able = append(able, r.String())
		}
	}
	hint := "call with the certificate of an operator with the role " + strings.Join(able, " or ")
	if roles == 0 {
		return Refuse(RuleAccess, hint, "%s has no role, and needs the permission %s", s, p)
	}
	return Refuse(RuleAccess, hint, "%s has the roles %s, and needs the permission %s", s, roles, p)
}

// CheckLabels returns a refusal if the caller may not register, update or enroll an identity with the given labels. If
// a registrar has labels, it may do so only for identities that have all of them. The labels of an admin do not matter.
func (s SPIFFEID) CheckLabels(c CallerIdentity, labels map[string]string) *Refusal {
	if !c.IsScoped() {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(c.Labels)) {
		if value, ok := labels[name]; !ok || value != c.Labels[name] {
			return Refuse(RuleAccessLabel, "give the identity this label, or ask an admin or a registrar of the identity's labels",
				"%s may only register, update and enroll identities with the label %s=%s", s, name, c.Labels[name])
		}
	}
	return nil
}

// IsScoped reports whether CheckLabels depends on labels.
func (c CallerIdentity) IsScoped() bool { return len(c.Labels) > 0 && !c.Roles.Has(RoleAdmin) }
