package ra

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// Identity is a machine or person that may have certificates.
type Identity struct {
	ID          pki.SPIFFEID
	Kind        pki.Kind
	Profile     string
	Labels      map[string]string
	DNSNames    []string
	IPAddresses []netip.Addr
	State       pki.IdentityState
	// Revision counts the updates, enrollments, suspensions, resumptions and retirements, from 1.
	Revision  uint64
	CreatedAt time.Time
}

// SameAttributes reports whether two identities have the same profile, labels and names. The order of names has no
// meaning.
func (i Identity) SameAttributes(o Identity) bool {
	return i.Profile == o.Profile && maps.Equal(i.Labels, o.Labels) &&
		sameElements(i.DNSNames, o.DNSNames, cmp.Compare[string]) && sameElements(i.IPAddresses, o.IPAddresses, netip.Addr.Compare)
}

// CheckRevision returns the refusal of an update that was decided on another revision, or nil.
func (i Identity) CheckRevision(decided uint64) error {
	if decided == i.Revision {
		return nil
	}
	return pki.Refuse(pki.RuleIdentityRevision, "read the identity again, and decide again",
		"the update is of revision %d of %s, which has revision %d now", decided, i.ID, i.Revision)
}

func sameElements[T comparable](a, b []T, compare func(T, T) int) bool {
	return slices.Equal(slices.SortedFunc(slices.Values(a), compare), slices.SortedFunc(slices.Values(b), compare))
}

// Token is the record of an enrollment token: everything but its secret.
type Token struct {
	ID       pki.TokenID
	Identity pki.SPIFFEID
	// IdentityRevision is that of the identity when the token was made.
	IdentityRevision uint64
	Profile          string
	ExpiresAt        time.Time
	// Replace allows the token to enroll an identity that is enrolled already.
	Replace   bool
	CreatedBy pki.Actor
	CreatedAt time.Time
	// Request and Key are what the token is bound to once somebody has presented it; zero before.
	Request pki.RequestID
	Key     pki.KeyHash
	// Spent says that a certificate was issued for it.
	Spent bool
	// CreatorCertificate is the certificate that its maker had; zero for a part of the system.
	CreatorCertificate pki.CertRef
	// RevokedBecause says why it was revoked before it was spent; empty where it was not.
	RevokedBecause string
}

// hintToken is the next step after a token that does not serve.
const hintToken = "ask an operator for a new token (brevet token create)"

// RefuseToken returns the refusal of a token that is unknown, expired or spent. It does not say which, so that a caller
// learns nothing about a token that it does not hold.
func RefuseToken() *pki.Refusal {
	return pki.Refuse(pki.RuleToken, hintToken, "the enrollment token is unknown, expired or spent")
}

// CheckRevoked returns the refusal of a token that was revoked, or nil.
func (t Token) CheckRevoked() error {
	if t.RevokedBecause == "" {
		return nil
	}
	return pki.Refuse(pki.RuleTokenRevoked, hintToken, "the enrollment token was revoked: %s", t.RevokedBecause)
}

// CheckRevision returns the refusal of a token whose identity has changed since the token was made, or nil.
func (t Token) CheckRevision(id Identity) error {
	if t.IdentityRevision == id.Revision {
		return nil
	}
	return pki.Refuse(pki.RuleToken, hintToken, "%s changed since the enrollment token was made", id.ID)
}

// CheckBound returns the refusal of a token for a request and key that it is not bound to, or nil.
func (t Token) CheckBound(request pki.RequestID, key pki.KeyHash) error {
	if t.Request == request && t.Key == key {
		return nil
	}
	return pki.Refuse(pki.RuleTokenBound, "repeat the first request with its key, or "+hintToken,
		"the enrollment token was presented before, with another request or key")
}

// TokenState says what a token is good for.
type TokenState string

// A token is open until it is spent, revoked or expired, or its identity has changed since it was made, which is stale.
const (
	TokenOpen    TokenState = "open"
	TokenSpent   TokenState = "spent"
	TokenRevoked TokenState = "revoked"
	TokenExpired TokenState = "expired"
	TokenStale   TokenState = "stale"
)

// ParseTokenState reads the name of a state.
func ParseTokenState(text string) (TokenState, error) {
	switch s := TokenState(text); s {
	case TokenOpen, TokenSpent, TokenRevoked, TokenExpired, TokenStale:
		return s, nil
	}
	return "", pki.Refuse(pki.RuleRequest, "use open, spent, revoked, expired or stale", "%.64q is not a token's state", text)
}

// ListedToken is a token with its state at the time of the list.
type ListedToken struct {
	Token
	State TokenState
}

// TokenRevocation revokes one token, or all that an identity has made so far. Exactly one of ID and MadeBy is set.
type TokenRevocation struct {
	ID        string // as pki.TokenID.String formats it
	CreatedBy pki.SPIFFEID
	By        pki.Actor
	// Comment is a comment for the log.
	Comment string
	At      time.Time
}

// Certificate is the record of one certificate.
type Certificate struct {
	Ref       pki.CertRef
	Identity  pki.SPIFFEID // zero for a serial that was never released
	Profile   string
	KeyHash   pki.KeyHash
	IssuedAt  time.Time // to the millisecond
	NotBefore time.Time
	NotAfter  time.Time
	Status    pki.Status
	// InvalidSince is when it is known or suspected to have become invalid; zero where nobody said.
	InvalidSince time.Time
	// DER is empty for a serial that was never released.
	DER       []byte
	Delivered bool
	RequestID pki.RequestID
	// Successor is the key with which the certificate was renewed; zero if it was not.
	Successor pki.KeyHash
}

// IssuanceQuery is what is asked of the records about a request for a certificate.
type IssuanceQuery struct {
	Identity pki.SPIFFEID
	// Predecessor is the certificate to renew; zero for none.
	Predecessor pki.CertRef
	Request     pki.RequestID
	Key         pki.KeyHash
}

// IssuanceState is what a decision about a request rests on.
type IssuanceState struct {
	Identity Identity
	// Predecessor says how the certificate to renew stands; zero where the question names none.
	Predecessor Predecessor
	// Prior is what the request was answered with before; nil where it was not.
	Prior *PriorIssuance
	// KeyRefusal refuses the key, as a guard for it and this identity would; nil where nothing is against it.
	KeyRefusal *pki.Refusal
}

// Predecessor is a certificate that is to be renewed.
type Predecessor struct {
	Status pki.Status
	// Successor is the key with which it was renewed before; zero if it was not.
	Successor pki.KeyHash
	// IssuedAt and NotAfter are the beginning and the end of its life.
	IssuedAt, NotAfter time.Time
	// Superseded says that its renewal revoked it, as pki.Guard has it.
	Superseded bool
}

// PriorIssuance is the certificate that a request was answered with, and the key that it was for.
type PriorIssuance struct {
	Certificate ca.Certificate
	Key         pki.KeyHash
	// Supersedes says that the certificate renewed the predecessor that the question names, and that this one was
	// revoked for it.
	Supersedes bool
}

// MaxTokensCounted bounds how many tokens of a maker, the newest first, a revocation looks at to count those that it reaches.
const MaxTokensCounted = 10_000

// Store is what the registration authority remembers. Methods are safe for concurrent use. A change and its log
// entry are one durable transaction. What does not exist is a *pki.Refusal of the class Missing.
type Store interface {
	IdentityStore
	TokenStore
	CertificateStore
}

// IdentityStore keeps identities.
type IdentityStore interface {
	// CreateIdentity registers an identity in generation 1. One that exists with the same kind, profile, labels and
	// names is returned as it stands; one that differs is refused (identity.exists).
	CreateIdentity(ctx context.Context, id Identity, by pki.Actor) (Identity, error)
	// UpdateIdentity replaces the profile, labels and names of an identity that is not retired, in a new revision, and
	// returns it (log action identity.updated). Its kind, state and creation time stay. Nothing to change is success. If
	// id has a revision and that is not the one on record, the update is refused (identity.revision).
	UpdateIdentity(ctx context.Context, id Identity, by pki.Actor, at time.Time) (Identity, error)
	Identity(ctx context.Context, id pki.SPIFFEID) (Identity, error)
	// Identities returns up to limit identities that a filter matches at a time, in the order of their IDs, after the given
	// ID, and the ID after which the next page begins; zero if there is none. Like every list of the store, it looks at no
	// more than MaxLooked records, so a page that others follow can be short or empty.
	Identities(ctx context.Context, f IdentityFilter, at time.Time, after pki.SPIFFEID, limit int) ([]Identity, pki.SPIFFEID, error)
}

// TokenStore keeps enrollment tokens, by the hash of their secret.
//
// All tokens that an identity has made so far are revoked, for ever, in the transaction that suspends or retires it, that
// revokes one of its certificates for keyCompromise or privilegeWithdrawn, or that orders a bulk revocation which does.
type TokenStore interface {
	// CreateToken records a token and returns it as it is recorded. A repeat of the request that created a token revokes
	// that token if it is open and was not presented, and records t with the same expiry in its place. Otherwise the repeat
	// is refused (request_id.reused).
	CreateToken(ctx context.Context, t Token) (Token, error)
	Token(ctx context.Context, id pki.TokenID) (Token, error)
	// BindToken binds a token that is bound to nothing yet, durably, and returns its record, which says what it is
	// bound to now: the first caller's request and key. A revoked token is refused (token.revoked).
	BindToken(ctx context.Context, id pki.TokenID, request pki.RequestID, key pki.KeyHash, at time.Time) (Token, error)
	TokenInventory
}

// TokenInventory lists enrollment tokens and revokes them.
type TokenInventory interface {
	// Tokens returns up to limit tokens that a filter matches at a time, with their states then, the newest first, after
	// the given place, and the place after which the next page begins; zero if there is none.
	Tokens(ctx context.Context, f TokenFilter, at time.Time, after TokenPlace, limit int) ([]ListedToken, TokenPlace, error)
	// RevokeTokens revokes tokens (log action token.revoked) and returns how many of them could have been used, among
	// the newest MaxTokensCounted of the maker. None is success, and changes nothing.
	RevokeTokens(ctx context.Context, r TokenRevocation) (int, error)
}

// CertificateStore reads the inventory of certificates.
type CertificateStore interface {
	Certificate(ctx context.Context, ref pki.CertRef) (Certificate, error)
	// CertificateBySerial finds a certificate without naming its issuer.
	CertificateBySerial(ctx context.Context, serial pki.Serial) (Certificate, error)
	// Certificates returns up to limit certificates that a filter matches, the newest first, after the given place, and the
	// place after which the next page begins; zero if there is none. What the selection names has to be on record.
	Certificates(ctx context.Context, f CertificateFilter, after CertificatePlace, limit int) ([]Certificate, CertificatePlace, error)
	IssuanceStore
}

// IssuanceStore reads what a request for a certificate is decided by. Few requests need more than Standing: those that come
// early, or again.
type IssuanceStore interface {
	// IssuanceState answers a question, all of it as of one moment. An identity that is not registered, and a predecessor that
	// was not released to it, are refused.
	IssuanceState(ctx context.Context, q IssuanceQuery) (IssuanceState, error)
	// Unexpired counts the certificates of an identity that end after a time, in whatever state, up to most.
	Unexpired(ctx context.Context, id pki.SPIFFEID, at time.Time, most int) (int, error)
	// Renewed returns the newest certificate of a question's identity and key that was recorded after the question's
	// predecessor, is good and ends after a time; nil where there is none.
	Renewed(ctx context.Context, q IssuanceQuery, at time.Time) (*PriorIssuance, error)
}
