package acme

import (
	"net/netip"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// AccountStatus is the status of an account (RFC 8555 section 7.1.2).
type AccountStatus string

// The statuses of an account. An account never becomes valid again.
const (
	AccountValid       AccountStatus = "valid"
	AccountDeactivated AccountStatus = "deactivated" // by its holder
	AccountRevoked     AccountStatus = "revoked"     // by an operator, alone or with its external key
)

// Account is the account of a client.
type Account struct {
	ID ID
	// Key is the SubjectPublicKeyInfo of the account's key in DER, and Thumbprint the key's thumbprint (RFC 7638).
	Key        []byte
	Thumbprint [32]byte
	Status     AccountStatus
	// Contact are the URLs at which the holder can be reached. They are at most MaxContacts.
	Contact []string
	// ExternalKey is the key of the external account binding. It is zero if the account was created without one.
	ExternalKey ID
	CreatedAt   time.Time
}

// ListedAccount is an account in a list for operators.
type ListedAccount struct {
	Account
	// Unexpired is the number of unexpired certificates that the account has ordered, whatever their status, counted up to
	// MaxCounted.
	Unexpired int
}

// MaxCounted is the number at which the count of an account's certificates stops.
const MaxCounted = 1000

// Limits of the contacts of an account. The limit of a contact is in bytes.
const (
	MaxContacts = 10
	MaxContact  = 254
)

// NewAccount is a request for an account (RFC 8555 section 7.3). The caller has verified a signature with the key.
type NewAccount struct {
	Key        []byte // SubjectPublicKeyInfo, DER
	Thumbprint [32]byte
	Contact    []string
	// OnlyExisting returns an existing account, and creates none (onlyReturnExisting).
	OnlyExisting bool
	// Binding is the external account binding. It is nil if the request has none.
	Binding *Binding
	// From is the address that the request came from.
	From netip.Addr
}

// Binding is an external account binding (RFC 8555 section 7.3.4), whose signature is not verified yet.
type Binding struct {
	KeyID string
	// Verify reports whether the binding was signed for the account's key and this URL with the HMAC key. It does not keep
	// the key.
	Verify func(hmacKey []byte) bool
}

// ExternalKeyState is the state of an external key. It is derived from its record and the time.
type ExternalKeyState string

// The states of an external key. Only an open key can create an account.
const (
	ExternalKeyOpen    ExternalKeyState = "open"
	ExternalKeyUsed    ExternalKeyState = "used"    // it has created its account
	ExternalKeyExpired ExternalKeyState = "expired" // it was not used in time
	ExternalKeyRevoked ExternalKeyState = "revoked"
)

// ExternalKey is the key of an external account binding. It creates one account. Exactly one of Identity and Rule is
// set.
type ExternalKey struct {
	ID ID
	// Identity is the identity of all certificates of the account.
	Identity pki.SPIFFEID
	// IdentityState is the state of that identity. It is zero if the key names a rule, and when the key is created.
	IdentityState pki.IdentityState
	// Rule is the name of the only rule of the policy that may decide about the orders of the account.
	Rule string
	// Account is the account that the key has created. It is zero if it has created none.
	Account ID
	// Status is the status of that account. It is empty if there is none.
	Status    AccountStatus
	CreatedBy pki.Actor
	CreatedAt time.Time
	// ExpiresAt is the end of the time in which the key can create an account. It does not end the account.
	ExpiresAt time.Time
	// RevokedBecause says why the key was revoked. It is empty if it was not.
	RevokedBecause string
}

// CheckIdentity refuses a key that names an identity which cannot have certificates any more.
func (k *ExternalKey) CheckIdentity() *pki.Refusal {
	if k.Identity.IsZero() {
		return nil
	}
	return k.Identity.CheckMayHold(k.IdentityState)
}

// MaxUnused is the maximum time from the creation of an external key to its use.
const MaxUnused = 30 * 24 * time.Hour

// State returns the state of the key at a time.
func (k ExternalKey) State(at time.Time) ExternalKeyState {
	switch {
	case k.RevokedBecause != "":
		return ExternalKeyRevoked
	case !k.Account.IsZero():
		return ExternalKeyUsed
	case !at.Before(k.ExpiresAt):
		return ExternalKeyExpired
	default:
		return ExternalKeyOpen
	}
}

// AccountOf returns the account that an actor is, and zero if the actor is none.
func AccountOf(by pki.Actor) ID {
	text, isAccount := strings.CutPrefix(by.String(), pki.EvidenceACME.String()+":")
	if !isAccount {
		return ID{}
	}
	id, _ := ParseID(text) // zero for another text
	return id
}
