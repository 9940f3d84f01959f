package acme

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
)

// The interfaces in this file are implemented by [acme.Authority]. All methods are safe for concurrent use. If a method
// that changes something returns nil, the change is durable. An error is a [pki.Refusal], or its text is not for clients.

// Accounts finds and creates accounts.
type Accounts interface {
	NewAccount(ctx context.Context, n acme.NewAccount) (a acme.Account, isNew bool, err error)
	AccountByKey(ctx context.Context, thumbprint [32]byte) (acme.Account, error)
	Account(ctx context.Context, id acme.ID) (acme.Account, error)
	// IdentityOf returns the identity of all certificates of an account, if its external key names one.
	IdentityOf(ctx context.Context, a acme.Account) (pki.SPIFFEID, error)
}

// RefusalLog records refusals: an *audit.Recorder. It is safe for concurrent use.
type RefusalLog interface {
	// RecordEvidence records err if it is a refusal that is not recorded yet, and returns it. id is zero if the caller's
	// identity is not known.
	RecordEvidence(ctx context.Context, by pki.Actor, id pki.SPIFFEID, e pki.EvidenceRecord, err error) error
}

// AccountChanges changes accounts.
type AccountChanges interface {
	ChangeKey(ctx context.Context, account acme.ID, old [32]byte, key []byte, thumbprint [32]byte) (acme.Account, error)
	SetContact(ctx context.Context, account acme.ID, contact []string) (acme.Account, error)
	Deactivate(ctx context.Context, account acme.ID) (acme.Account, error)
}

// Orders creates and finalizes orders. For an order of another account it returns the same refusal as for one that does
// not exist.
type Orders interface {
	NewOrder(ctx context.Context, account acme.ID, n acme.NewOrder) (acme.Order, error)
	Order(ctx context.Context, account, id acme.ID) (acme.Order, error)
	// Finalize issues the certificate of an order. A repeated call returns the same certificate.
	Finalize(ctx context.Context, account, order acme.ID, csr []byte) (acme.Order, error)
}

// Authorizations reads and changes authorizations. For an authorization of another account it returns the same refusal
// as for one that does not exist.
type Authorizations interface {
	Authorization(ctx context.Context, account, id acme.ID) (acme.Authorization, error)
	DeactivateAuthorization(ctx context.Context, account, id acme.ID) (acme.Authorization, error)
	// BeginValidation marks a challenge as processing. starts is false if it is already processing, valid or invalid.
	BeginValidation(ctx context.Context, account, id acme.ID, t acme.ChallengeType) (a acme.Authorization, starts bool, err error)
	// EndValidation records the result of a validation: failure, or nil if the challenge is valid. It returns the
	// authorization.
	EndValidation(ctx context.Context, id acme.ID, t acme.ChallengeType, failure *pki.Refusal) (acme.Authorization, error)
}

// Certificates reads and revokes certificates.
type Certificates interface {
	// Certificate returns a certificate of an account with its chain, in DER, the certificate first.
	Certificate(ctx context.Context, account acme.ID, ref pki.CertRef) ([][]byte, error)
	Revoke(ctx context.Context, r acme.RevokeRequest) error
}

// Terms says what the policy offers.
type Terms interface {
	// Profiles returns the profiles that orders may name, with their descriptions.
	Profiles() map[string]string
	// RequiresBinding reports whether new accounts need an external account binding.
	RequiresBinding() bool
}

// Renewals suggests when to renew certificates (RFC 9773).
type Renewals interface {
	// RenewalInfo returns the window in which to renew a certificate, and how long the response may be used. It returns a
	// refusal if there is no such certificate.
	RenewalInfo(ref pki.CertRef) (start, end time.Time, retryAfter time.Duration, err error)
}
