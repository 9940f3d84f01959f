package rules

import (
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
)

// RegistrationPermission returns the permission to register or update an identity, or to create a token for it. A
// token with a pattern has no identity yet, and no pattern matches a reserved one.
func RegistrationPermission(id pki.SPIFFEID) pki.Permission {
	if id.Reserved() {
		return pki.MayAdminister
	}
	return pki.MayRegister
}

// ChangePermission returns the permission for the change o. identity is the one that o names, or the one of its
// certificate. Only an admin can change an operator's identity, or take its certificates off hold. A revoker can revoke
// and hold them, to stop a stolen credential.
func ChangePermission(o revocation.Change, identity pki.SPIFFEID) pki.Permission {
	if identity.Reserved() && (!o.Identity.IsZero() || o.Action == revocation.Unhold) {
		return pki.MayAdminister
	}
	return pki.MayRevoke
}

// CheckOwnRoles refuses an update with which an admin would take that role from itself. Only admins change operators,
// so the caller of each such change remains an admin.
func CheckOwnRoles(by pki.Actor, have, next ra.Identity) *pki.Refusal {
	if by.Caller().Identity == have.ID && have.Roles.Has(pki.RoleAdmin) && !next.Roles.Has(pki.RoleAdmin) {
		return ownAdmin(have.ID)
	}
	return nil
}

func ownAdmin(id pki.SPIFFEID) *pki.Refusal {
	return pki.Refuse(pki.RuleAccessSelf, "ask another admin, so that one remains",
		"%s cannot suspend or retire itself, or give up the role admin", id)
}

// DistrustRoles returns the cause for which an update of an operator's roles revokes all tokens that it has created. It
// returns an empty text if the operator may still create these tokens. Tokens for operators need the role admin.
func DistrustRoles(have, next ra.Identity) string {
	if have.Roles.Permits(pki.MayAdminister) && !next.Roles.Permits(pki.MayAdminister) {
		return "its creator is no admin any more"
	}
	if have.Roles.Permits(pki.MayRegister) && !next.Roles.Permits(pki.MayRegister) {
		return "its creator may no longer create tokens"
	}
	return ""
}
