package acme

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Store keeps the accounts, orders and external keys of ACME. A method that changes a record writes the record, and its
// log entry if it has one, in one durable transaction. External keys and accounts are in the log, except for the secrets.
// Orders and authorizations are not, apart from the certificates issued for them.
//
// A method that finds no record returns a [*pki.Refusal] of the class NotFound. Methods are safe for concurrent use, also
// by several processes.
type Store interface {
	OperatorStore
	AccountStore
	OrderStore
	AuthorizationStore
}

// OperatorStore is what operators need.
type OperatorStore interface {
	ExternalKeyStore
	AccountInventory
}

// ExternalKeyStore keeps external keys.
type ExternalKeyStore interface {
	// CreateExternalKey records a new key with its sealed HMAC key. It refuses a creator who may not register the
	// identity (rules access.denied and access.label), an identity that is not registered or cannot have certificates, and
	// a registrar with labels for a key that names a rule.
	CreateExternalKey(ctx context.Context, k ExternalKey, sealed []byte) (ExternalKey, error)
	// ExternalKey returns a key and its sealed HMAC key. The latter is empty if it was erased because the key was used or
	// revoked, or if the store was recreated from the log.
	ExternalKey(ctx context.Context, id ID) (k ExternalKey, sealed []byte, err error)
	// ExternalKeys returns up to limit keys, newest first. The page starts after the key with the given ID, and at the
	// newest key if it is zero. The second result is the ID after which the next page starts, and zero if there is none.
	ExternalKeys(ctx context.Context, after ID, limit int) ([]ExternalKey, ID, error)
	// RevokeExternalKey revokes a key, erases its HMAC key and revokes its account, so that the account can do nothing any
	// more. If the key is revoked already, it changes nothing and succeeds. The account's certificates do not change.
	RevokeExternalKey(ctx context.Context, r ExternalKeyRevocation) (ExternalKey, error)
}

// ExternalKeyRevocation is an operator's request to revoke an external key.
type ExternalKeyRevocation struct {
	ID ID
	By pki.Actor
	// Comment is recorded in the log.
	Comment string
	At      time.Time
}

// AccountStore keeps accounts.
type AccountStore interface {
	// CreateAccount records an account, and reports whether it did. If an account has the same key already, CreateAccount
	// returns that account and changes nothing. If the account has an external key, the key must be open at
	// Account.CreatedAt (rule acme.binding), and its identity must be able to have certificates. It becomes used, and its HMAC key is erased. Of two accounts that use one key
	// at the same time, one is refused.
	CreateAccount(ctx context.Context, a Account) (Account, bool, error)
	Account(ctx context.Context, id ID) (Account, error)
	// AccountByKey returns the account whose key has the thumbprint.
	AccountByKey(ctx context.Context, thumbprint [32]byte) (Account, error)
	// ChangeAccount makes a change of a valid account, and returns its record. It refuses other accounts (rule
	// acme.account_status). Deactivating a deactivated account succeeds and changes nothing.
	ChangeAccount(ctx context.Context, c AccountChange) (Account, error)
}

// AccountInventory lists and revokes accounts for operators.
type AccountInventory interface {
	// Accounts returns up to limit accounts, newest first, as of a time. Pages are as those of ExternalKeys.
	Accounts(ctx context.Context, at time.Time, after ID, limit int) ([]ListedAccount, ID, error)
	// RevokeAccount revokes an account, so that it can do nothing any more, and its external key if it has one. If the
	// account is revoked already, it changes nothing and succeeds. The account's certificates do not change.
	RevokeAccount(ctx context.Context, r AccountRevocation) (Account, error)
}

// AccountRevocation is an operator's request to revoke an account.
type AccountRevocation struct {
	ID ID
	By pki.Actor
	// Comment is recorded in the log.
	Comment string
	At      time.Time
}

// AccountChange is a change of an account by its holder. Exactly one of NewKey, SetContact and Deactivate is set.
type AccountChange struct {
	ID ID
	// NewKey replaces the key. The account must still have the key with OldThumbprint, and no other account may have the
	// new one (rule acme.account_key).
	NewKey        []byte // SubjectPublicKeyInfo, DER
	NewThumbprint [32]byte
	OldThumbprint [32]byte
	SetContact    bool
	Contact       []string
	Deactivate    bool
	At            time.Time
}

// OrderStore keeps orders.
type OrderStore interface {
	// CreateOrder records a pending order with its authorizations. It refuses an account that is not valid (rule
	// acme.account_status), one with MaxOpenOrders orders that have not expired and have no certificate (rule
	// acme.too_many_orders), and an order that replaces a certificate that another order replaces, unless that order is
	// invalid (rule acme.already_replaced).
	CreateOrder(ctx context.Context, o Order, all []Authorization) error
	// Order returns a consistent snapshot of an order and what it depends on, as of a time.
	Order(ctx context.Context, id ID, at time.Time) (OrderState, error)
	// OrderOf returns a consistent snapshot of the order for which a certificate was issued. An order is kept as long as its
	// certificate.
	OrderOf(ctx context.Context, certificate pki.CertRef) (OrderState, error)
	// Certificates returns up to limit certificates of an account that expire later than at, in the order in which they were
	// recorded. The page starts after the given certificate. It also finds certificates of orders that are not on record,
	// because the store was recreated from the log.
	Certificates(ctx context.Context, account ID, at time.Time, after pki.CertRef, limit int) ([]pki.CertRef, error)
}

// OrderState is an order, and the records that decide about it.
type OrderState struct {
	Order   Order
	Account Account
	// Key is the external key of the account. It is zero if the account has none.
	Key            ExternalKey
	Authorizations []Authorization // in the order of Order.Identifiers
}

// AuthorizationStore keeps authorizations.
type AuthorizationStore interface {
	// Authorization returns an authorization of an account as of a time. It refuses an account that is not valid (rule
	// acme.account_status).
	Authorization(ctx context.Context, account, id ID, at time.Time) (Authorization, error)
	// MoveAuthorization changes the status of an authorization or of one of its challenges, and returns the result. It
	// reports whether the move changed something. A move that does not fit the status changes nothing and succeeds. A move of
	// an account is refused as Authorization refuses it.
	MoveAuthorization(ctx context.Context, m Move) (a Authorization, moved bool, err error)
	// Authorized reports whether an account has, at a time, valid authorizations for all names, in whatever orders.
	Authorized(ctx context.Context, account ID, names []Identifier, at time.Time) (bool, error)
}

// MoveKind is a kind of change of an authorization.
type MoveKind uint8

// The moves.
const (
	// Begin makes a pending challenge processing. A challenge that has been processing for ValidationTimeout begins again,
	// because the server that validated it has stopped.
	Begin MoveKind = iota + 1
	// Succeed makes a processing challenge valid, and with it the authorization.
	Succeed
	// Fail makes a processing challenge invalid, and with it the authorization and the order.
	Fail
	// Withdraw deactivates a pending or valid authorization.
	Withdraw
)

// ValidationTimeout is the time after which the validation of a challenge counts as lost.
const ValidationTimeout = 2 * time.Minute

// Move is a change of an authorization.
type Move struct {
	// Account is the account that requests the move. It is zero for the result of a validation.
	Account       ID
	Authorization ID
	Kind          MoveKind
	Challenge     ChallengeType // unless Kind is Withdraw
	Failure       *pki.Refusal  // if Kind is Fail
	At            time.Time
}
