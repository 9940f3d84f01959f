package ra

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// Identity is the record of a device, workload, operator or part of Brevet that may have certificates.
type Identity struct {
	ID          pki.SPIFFEID
	Kind        pki.Kind
	Profile     string
	Labels      map[string]string
	DNSNames    []string
	IPAddresses []netip.Addr
	State       pki.IdentityState
	// Revision starts at 1 and grows with each update, enrollment, suspension, resumption and retirement.
	Revision  uint64
	CreatedAt time.Time
	// Subject is the subject of the evidence that the identity is tied to. It is zero if there is none. No two identities
	// have the same subject.
	Subject pki.EvidenceSubject
	// Rule is the name of the rule of the policy that registered the identity. It is empty if an operator or a part of
	// Brevet did. It never changes.
	Rule string
	// Terms are those of the rule of the policy with which the identity enrolled. Each enrollment replaces them.
	Terms pki.Terms
	// Roles are the roles of an operator. Other identities have none.
	Roles pki.Roles
	// Recoveries is how often in a row the identity has recovered with the key of an expired certificate. An enrollment with
	// other evidence, and a renewal, set it to zero.
	Recoveries int
}

// Registration is a request to register an identity.
type Registration struct {
	Identity
	// Total is the maximum number of identities that the rule Identity.Rule may register, including this one. Zero means
	// that there is no limit. Without a rule it has no effect.
	Total int
}

// SameAttributes reports whether two identities have the same profile, subject of evidence, roles, labels and names, in
// any order.
func (i Identity) SameAttributes(o Identity) bool {
	return i.Profile == o.Profile && i.Subject == o.Subject && i.Roles == o.Roles && maps.Equal(i.Labels, o.Labels) &&
		sameElements(i.DNSNames, o.DNSNames, cmp.Compare[string]) && sameElements(i.IPAddresses, o.IPAddresses, netip.Addr.Compare)
}

// CheckRevision refuses an update that was based on another revision than that of i.
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

// Token is the record of an enrollment token. It does not contain the secret.
type Token struct {
	ID pki.TokenID
	// Identity is the identity that the token enrolls. If the token has a pattern, it is zero until the token is bound.
	Identity pki.SPIFFEID
	// IdentityRevision is the revision of the identity when the token was created, or when a token with a pattern was
	// bound.
	IdentityRevision uint64
	// Profile is the profile of the identity.
	Profile string
	// Pattern is a regular expression for the path of the identity, as pki.ParseIdentityPattern accepts it. It is empty for
	// a token of one identity.
	Pattern string
	// Kind and Labels are those of an identity that matches the pattern. They are empty without a pattern.
	Kind   pki.Kind
	Labels map[string]string
	// Networks are the networks from which the token can be used. If there are none, it can be used from everywhere.
	Networks []netip.Prefix
	// RequiredKey is the hash of the only key for which the token can be used. It is zero if the token can be used for any
	// key.
	RequiredKey pki.KeyHash
	ExpiresAt   time.Time
	// Replace allows the token to enroll an identity that is already enrolled.
	Replace   bool
	CreatedBy pki.Actor
	CreatedAt time.Time
	// Request and Key identify the request that the token is bound to. They are zero until the token is presented.
	Request pki.RequestID
	Key     pki.KeyHash
	// Spent is true once a certificate has been issued for the token.
	Spent bool
	// CreatorCertificate is the certificate of the operator who created the token. It is zero if a part of Brevet did.
	CreatorCertificate pki.CertRef
	// RevokedBecause is the reason for which the token was revoked before it was spent. It is empty if it was not revoked.
	RevokedBecause string
}

// hintToken is the hint of a refused token.
const hintToken = "ask an operator for a new token (brevet token create)"

// RefuseToken returns the refusal of a token that is unknown, expired or spent. The refusal does not say which of the
// three, so that a caller learns nothing about a token that it does not have.
func RefuseToken() *pki.Refusal {
	return pki.Refuse(pki.RuleToken, hintToken, "the enrollment token is unknown, expired or spent")
}

// CheckRevoked refuses a token that was revoked.
func (t Token) CheckRevoked() error {
	if t.RevokedBecause == "" {
		return nil
	}
	return pki.Refuse(pki.RuleTokenRevoked, hintToken, "the enrollment token was revoked: %s", t.RevokedBecause)
}

// CheckNetwork refuses a request from an address at which the token cannot be used. The zero Addr is in no network.
func (t Token) CheckNetwork(from netip.Addr) error {
	if len(t.Networks) == 0 || slices.ContainsFunc(t.Networks, func(n netip.Prefix) bool { return n.Contains(from) }) {
		return nil
	}
	return pki.Refuse(pki.RuleTokenNetwork, "use it in the network for which an operator created it, or "+hintToken,
		"the enrollment token cannot be used from %s", from)
}

// CheckKey refuses a request for a key for which the token cannot be used.
func (t Token) CheckKey(key pki.KeyHash) error {
	if t.RequiredKey.IsZero() || t.RequiredKey == key {
		return nil
	}
	return pki.Refuse(pki.RuleTokenKey, "use the key for which an operator created it, or "+hintToken, "the enrollment token is for another key")
}

// CheckIdentity refuses an identity that a token with a pattern cannot enroll. A token that is bound can only enroll the
// identity that it is bound to.
func (t Token) CheckIdentity(id pki.SPIFFEID) error {
	if id.IsZero() {
		return pki.Refuse(pki.RuleTokenIdentity, "name the identity of this machine (brevet-agent enroll --identity)",
			"the enrollment token is for one of several identities, and the request names none")
	}
	if !t.Identity.IsZero() {
		if t.Identity != id {
			return refuseBound()
		}
		return nil
	}
	pattern, err := pki.ParseIdentityPattern(t.Pattern)
	if err != nil {
		return fmt.Errorf("read the pattern of token %s: %w", t.ID, err)
	}
	if !pattern.Matches(id) {
		return pki.Refuse(pki.RuleTokenIdentity, hintToken, "the enrollment token cannot enroll %s", id)
	}
	return nil
}

// CheckRevision refuses a token whose identity has changed since the token was created.
func (t Token) CheckRevision(id Identity) error {
	if t.IdentityRevision == id.Revision {
		return nil
	}
	return pki.Refuse(pki.RuleToken, hintToken, "%s changed since the enrollment token was made", id.ID)
}

// CheckBound refuses a token that is bound to another request or key.
func (t Token) CheckBound(request pki.RequestID, key pki.KeyHash) error {
	if t.Request == request && t.Key == key {
		return nil
	}
	return refuseBound()
}

func refuseBound() *pki.Refusal {
	return pki.Refuse(pki.RuleTokenBound, "repeat the first request with its key, or "+hintToken,
		"the enrollment token was presented before, with another request or key")
}

// TokenState is the state of an enrollment token. Only an open token can enroll an identity.
type TokenState string

// The states of a token. A token is open at first. It becomes stale if its identity changes after the token was created.
const (
	TokenOpen    TokenState = "open"
	TokenSpent   TokenState = "spent"
	TokenRevoked TokenState = "revoked"
	TokenExpired TokenState = "expired"
	TokenStale   TokenState = "stale"
)

// ParseTokenState returns the state with the name text, or a refusal if there is none.
func ParseTokenState(text string) (TokenState, error) {
	switch s := TokenState(text); s {
	case TokenOpen, TokenSpent, TokenRevoked, TokenExpired, TokenStale:
		return s, nil
	}
	return "", pki.Refuse(pki.RuleRequest, "use open, spent, revoked, expired or stale", "%.64q is not a token's state", text)
}

// ListedToken is an entry of a list of tokens. State is the token's state at the time of the list.
type ListedToken struct {
	Token
	State TokenState
}

// TokenRevocation is a request to revoke one token, or all tokens that an identity has created so far. Exactly one of ID
// and CreatedBy is set.
type TokenRevocation struct {
	ID        string // in the format of pki.TokenID.String
	CreatedBy pki.SPIFFEID
	By        pki.Actor
	// Comment is recorded in the log.
	Comment string
	At      time.Time
}

// Certificate is the record of one certificate.
type Certificate struct {
	Ref       pki.CertRef
	Identity  pki.SPIFFEID // zero if the certificate was never delivered
	Profile   string
	KeyHash   pki.KeyHash
	IssuedAt  time.Time // in whole milliseconds
	NotBefore time.Time
	NotAfter  time.Time
	Status    pki.Status
	// InvalidSince is when the key is known or suspected to have become invalid (invalidityDate, RFC 5280 §5.3.2). It is
	// zero if the revocation did not specify it.
	InvalidSince time.Time
	// DER is empty if the certificate was never delivered.
	DER       []byte
	Delivered bool
	RequestID pki.RequestID
	// Successor is the hash of the key in the certificate's renewal. It is zero if the certificate was not renewed.
	Successor pki.KeyHash
}

// IssuanceQuery selects the records that are needed to decide about a request for a certificate.
type IssuanceQuery struct {
	Identity pki.SPIFFEID
	// Predecessor is the certificate to renew. It is zero if the request is not a renewal.
	Predecessor pki.CertRef
	Request     pki.RequestID
	Key         pki.KeyHash
	// Caller is the operator who requests the certificate. It is zero if the identity itself requests it.
	Caller pki.SPIFFEID
	// At is the time of the request.
	At time.Time
	// Subject is the subject of the evidence of an enrollment, and Nonces are those that the evidence responds to.
	Subject pki.EvidenceSubject
	Nonces  []pki.Nonce
	// Order is the ACME order of the request. It is zero for other requests.
	Order pki.Order
	// MaxUnexpired is the number at which the count of unexpired certificates stops.
	MaxUnexpired int
	// Recovery is the condition of a request that recovers the identity. It is zero for other requests.
	Recovery pki.Recovery
}

// IssuanceState holds the records that a decision about a request for a certificate is based on.
type IssuanceState struct {
	Identity Identity
	// Predecessor is the state of the certificate to renew. It is zero if the query names none.
	Predecessor Predecessor
	// Prior is the certificate that was issued for the same request ID, or nil.
	Prior *PriorIssuance
	// KeyRefusal is the refusal that a guard for the key and this identity would return, or nil.
	KeyRefusal *pki.Refusal
	// SubjectRefusal is the refusal that a guard for the subject in the query and this identity would return, or nil.
	SubjectRefusal *pki.Refusal
	// NonceRefusal is the refusal that a guard for the nonces in the query would return, or nil.
	NonceRefusal *pki.Refusal
	// OrderRefusal is the refusal that a guard for the order in the query would return, or nil.
	OrderRefusal *pki.Refusal
	// Recovery is the state of a recovery. It is zero if the query has none.
	Recovery RecoveryState
	// Unexpired is the number of certificates of the identity, in any state, whose NotAfter is later than the query's At.
	// It is at most the query's MaxUnexpired. Certificates that ACME accounts have ordered do not count. If the query has an
	// order, only certificates of orders with the same Names count.
	Unexpired int
	// OrdersUnexpired is the number of those that ACME accounts have ordered, with whatever names. It is at most MaxUnexpired
	// of the query's order.
	OrdersUnexpired int
	// Caller is the identity of the caller in the query. It is zero if the query names none, or one that is not
	// registered.
	Caller pki.CallerIdentity
}

// Predecessor is the state of a certificate that a renewal request names.
type Predecessor struct {
	Status  pki.Status
	Profile string // of the certificate
	// Successor is the hash of the key in an earlier renewal of the certificate. It is zero if there was none.
	Successor          pki.KeyHash
	IssuedAt, NotAfter time.Time
	// Superseded is true if the renewal of the certificate revoked it. See pki.Guard.Supersedes.
	Superseded bool
	// SameKey is true if the certificate has the key of the query.
	SameKey bool
}

// RecoveryState is the state of a recovery that a query names.
type RecoveryState struct {
	// Newest is the newest certificate of the identity, which the new one succeeds.
	Newest pki.CertRef
	// Refusal is the refusal that a guard for the recovery would return, or nil.
	Refusal *pki.Refusal
}

// PriorIssuance is the certificate that was issued for an earlier request, and the hash of its key.
type PriorIssuance struct {
	Certificate ca.Certificate
	Key         pki.KeyHash
	// Supersedes is true if the certificate renewed the predecessor in the query, and this renewal revoked the predecessor.
	Supersedes bool
}

// MaxTokensCounted is the maximum number of tokens, newest first, that RevokeTokens reads to count the revoked ones.
const MaxTokensCounted = 10_000

// Store is the database of the registration authority. A method that changes a record writes the record and its log
// entry in one durable transaction. The transaction also checks that the actor may make the change now: a caller needs
// a good certificate, an enrolled identity, a role that permits the change, and for a registrar its labels on the
// identity (rules access.denied and access.label). A method that finds no record returns a [*pki.Refusal] of the class
// NotFound. Methods are safe for concurrent use.
type Store interface {
	IdentityStore
	TokenStore
	CertificateStore
}

// IdentityStore keeps identities.
type IdentityStore interface {
	// CreateIdentity registers an identity with revision 1. If the identity exists with the same kind, profile, labels,
	// names and roles, CreateIdentity returns its record. If it exists and differs, it is refused (rule
	// identity.exists).
	//
	// The subject of n is one of the attributes. If it is zero, an existing identity may have any. If the existing
	// identity has another subject, or another identity has this one, it is refused (rule identity.evidence_conflict).
	//
	// An existing identity keeps the rule that registered it, and is not counted again. If the rule of a new identity has
	// registered n.Total identities before, n is refused (rule policy.limit). All identities count that the rule has
	// registered, whatever their state is now, and concurrent calls never exceed the total.
	CreateIdentity(ctx context.Context, n Registration, by pki.Actor) (Identity, error)
	// UpdateIdentity replaces the profile, labels, names, roles and subject of an identity that is not retired, and
	// returns the new revision (log action identity.updated). The kind, state, rule and creation time do not change. If
	// the attributes are equal already, UpdateIdentity succeeds and changes nothing. If id.Revision is not zero and not
	// the revision on record, the update is refused (rule identity.revision). If another identity has the subject, the
	// update is refused (rule identity.evidence_conflict). The subject of a retired identity can be removed, so that
	// another identity can have it. An admin cannot take that role from itself (rule access.self). If an operator loses
	// the permission to create tokens, those that it has created are revoked.
	UpdateIdentity(ctx context.Context, id Identity, by pki.Actor, at time.Time) (Identity, error)
	Identity(ctx context.Context, id pki.SPIFFEID) (Identity, error)
	// Identities returns up to limit identities that match f at the given time, in the order of their IDs. The page starts
	// after the ID after. The second result is the ID after which the next page starts, and zero if there is none.
	//
	// Like every list of the store, it reads at most MaxLooked records. So any page can be short or empty, even if it is
	// not the last one.
	Identities(ctx context.Context, f IdentityFilter, at time.Time, after pki.SPIFFEID, limit int) ([]Identity, pki.SPIFFEID, error)
}

// TokenStore keeps enrollment tokens by the hash of their secret.
//
// The following changes permanently revoke all tokens that an identity has created, in the same transaction:
//   - suspending or retiring the identity
//   - revoking one of its certificates for keyCompromise or privilegeWithdrawn
//   - recording a bulk revocation that matches one of its certificates, for one of these reasons
type TokenStore interface {
	// CreateToken records a token and returns the record. If a token was created under the same request ID, and it is open
	// and was never presented, CreateToken revokes it and records t with its expiry. Any other repeat is refused
	// (rule request_id.reused).
	CreateToken(ctx context.Context, t Token) (Token, error)
	Token(ctx context.Context, id pki.TokenID) (Token, error)
	// BindToken durably binds a token to a request and key, if it is not bound yet. It returns the record of the token,
	// with the request and key that it is bound to. A revoked token is refused (rule token.revoked), and a token for
	// another key (rule token.key).
	//
	// A token with a pattern is also bound to the identity of b. If b.Register is set, BindToken registers the identity in
	// the same transaction, as CreateIdentity does. If the identity exists already, or is not in the revision of b,
	// BindToken refuses and changes nothing (rule identity.stale).
	BindToken(ctx context.Context, id pki.TokenID, b Binding) (Token, error)
	TokenInventory
}

// TokenInventory lists enrollment tokens and revokes them.
type TokenInventory interface {
	// Tokens returns up to limit tokens that match f at the given time, newest first, with their states at that time. The
	// page starts after the given position. The second result is the position after which the next page starts, and zero if
	// there is none.
	Tokens(ctx context.Context, f TokenFilter, at time.Time, after TokenPosition, limit int) ([]ListedToken, TokenPosition, error)
	// RevokeTokens revokes tokens (log action token.revoked). It returns how many of the newest MaxTokensCounted tokens
	// were open. If no token was open, RevokeTokens succeeds and changes nothing.
	RevokeTokens(ctx context.Context, r TokenRevocation) (int, error)
}

// CertificateStore reads the inventory of certificates.
type CertificateStore interface {
	Certificate(ctx context.Context, ref pki.CertRef) (Certificate, error)
	// CertificateBySerial returns the certificate with the serial number, of any issuing CA.
	CertificateBySerial(ctx context.Context, serial pki.Serial) (Certificate, error)
	// Certificates returns up to limit certificates that match f, newest first. The page starts after the given position.
	// The second result is the position after which the next page starts, and zero if there is none. Certificates refuses
	// a selection that names an issuing CA, identity or certificate that is not on record.
	Certificates(ctx context.Context, f CertificateFilter, after CertificatePosition, limit int) ([]Certificate, CertificatePosition, error)
	IssuanceStore
}

// IssuanceStore reads the records that decide about a request for a certificate. Most requests need only IssuanceState.
// A repeated renewal needs Renewed, too.
type IssuanceStore interface {
	// IssuanceState returns a consistent snapshot of the records that q selects. It refuses an identity that is not
	// registered, and a predecessor that was not delivered to the identity. The identity of the caller is also set with
	// a refusal. For an identity that is not registered, so are KeyRefusal, SubjectRefusal, NonceRefusal and OrderRefusal, which a
	// guard would return if it were.
	IssuanceState(ctx context.Context, q IssuanceQuery) (IssuanceState, error)
	// Renewed returns the newest certificate of the identity and key in q that was recorded after the predecessor in q, is
	// good, and has a NotAfter later than at. It returns nil if there is none.
	Renewed(ctx context.Context, q IssuanceQuery, at time.Time) (*PriorIssuance, error)
}
