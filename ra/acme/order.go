package acme

import (
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Status is the status of an order, an authorization or a challenge (RFC 8555 section 7.1.6).
type Status string

// The statuses. Orders are pending, ready, valid or invalid. Challenges are pending, processing, valid or invalid.
// Authorizations are never ready or processing.
const (
	StatusPending     Status = "pending"
	StatusReady       Status = "ready"
	StatusProcessing  Status = "processing"
	StatusValid       Status = "valid"
	StatusInvalid     Status = "invalid"
	StatusDeactivated Status = "deactivated"
	StatusExpired     Status = "expired"
	StatusRevoked     Status = "revoked"
)

// Order is a request for a certificate with some names (RFC 8555 section 7.1.3). Its names and profile do not change.
type Order struct {
	ID, Account ID
	Status      Status
	// Identifiers are the names of the certificate, sorted and without repetitions. There is at least one.
	Identifiers []Identifier
	Profile     string // of the certificate
	CreatedAt   time.Time
	// ExpiresAt is the end of the time in which the order can become valid.
	ExpiresAt time.Time
	// Authorizations are those of Identifiers, in the same order.
	Authorizations []ID
	// Certificate is the certificate that was issued for the order. It is zero unless the order is valid.
	Certificate pki.CertRef
	// Replaces is the certificate that the client replaces (RFC 9773 section 5). It is zero if the client named none.
	Replaces pki.CertRef
	// Failure says why the order is invalid. It is nil if the order is not, or only expired.
	Failure *pki.Refusal
}

// Authorization is the proof that an account controls one name of an order (RFC 8555 section 7.1.4).
type Authorization struct {
	ID, Account, Order ID
	// Identifier is the name without "*.", and Wildcard is true if the order's name begins with it.
	Identifier Identifier
	Wildcard   bool
	Status     Status
	ExpiresAt  time.Time
	Challenges []Challenge // those that were offered, at most one of each type
}

// Challenge returns the challenge of a type. It returns nil if the authorization does not offer it.
func (a *Authorization) Challenge(t ChallengeType) *Challenge {
	i := slices.IndexFunc(a.Challenges, func(c Challenge) bool { return c.Type == t })
	if i < 0 {
		return nil
	}
	return &a.Challenges[i]
}

// ChallengeType is a way to prove control of a name.
type ChallengeType string

// The types of challenges.
const (
	HTTP01    ChallengeType = "http-01"     // RFC 8555 section 8.3
	DNS01     ChallengeType = "dns-01"      // RFC 8555 section 8.4
	TLSALPN01 ChallengeType = "tls-alpn-01" // RFC 8737
)

// ChallengeTypes returns all types.
func ChallengeTypes() []ChallengeType { return []ChallengeType{HTTP01, DNS01, TLSALPN01} }

// Challenge is a challenge of an authorization (RFC 8555 section 7.1.5).
type Challenge struct {
	Type   ChallengeType
	Token  string // random, base64url; the same for all challenges of an authorization
	Status Status
	// ValidatedAt is when the challenge became valid. It is zero if it is not valid.
	ValidatedAt time.Time
	// Failure says why the challenge is invalid. It is nil if it is not.
	Failure *pki.Refusal
}

// Limits of orders.
const (
	// MaxIdentifiers is the maximum number of names in an order.
	MaxIdentifiers = 100
	// MaxOpenOrders is the maximum number of orders of an account that have not expired and have no certificate.
	MaxOpenOrders = 300
	// OrderLifetime is the time in which an order can become valid, with its authorizations.
	OrderLifetime = 24 * time.Hour
)

// NewOrder is a request for an order (RFC 8555 section 7.4).
type NewOrder struct {
	Identifiers []Identifier // as the client sent them
	Profile     string       // empty for the default of the account
	Replaces    pki.CertRef  // zero for none
}

// RevokeRequest is a request to revoke a certificate (RFC 8555 section 7.6). The caller has verified the signature
// of the request.
type RevokeRequest struct {
	// Account is the account whose key signed the request. It is zero if the key in Key signed it.
	Account ID
	// Key is the SubjectPublicKeyInfo of the key that signed the request, in DER. It is empty if Account is set.
	Key         []byte
	Certificate []byte // DER
	Reason      int    // RFC 5280 section 5.3.1; 0 if the client sent none
}
