package authz

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// Caller is the caller of an operation, as its client certificate proves it. It is zero for callers without one.
type Caller struct {
	ID          pki.SPIFFEID
	Certificate pki.CertRef
	Key         pki.KeyHash
	// Past means that the certificate is expired, revoked, superseded or not on record, so that its key may be in other
	// hands. The log then names the identity, but the rate limit counts the call for the address and not the identity.
	Past bool
}

// Actor returns the caller for the log.
func (c Caller) Actor() pki.Actor { return pki.ActorCaller(c.ID, c.Certificate) }

func (c Caller) isOperator() bool { return c.ID.IsOperator() }

// Statuses returns the status of every certificate on record, from memory. It is safe for concurrent use.
type Statuses interface {
	Status(ref pki.CertRef) (pki.Status, bool)
}

// Identities reads the committed state of a caller's identity. It returns a [pki.Refusal] if there is no such identity.
// It is safe for concurrent use.
type Identities interface {
	Identity(ctx context.Context, id pki.SPIFFEID) (ra.Identity, error)
}

// Config holds what an Authorizer depends on. All fields are required.
type Config struct {
	TrustDomain   string
	Roots         *x509.CertPool
	Intermediates *x509.CertPool
	Statuses      Statuses
	Identities    Identities
	Clock         func() time.Time
}

// Authorizer authenticates and authorizes callers, and refuses others with a typed error. It is safe for concurrent
// use.
type Authorizer struct {
	config Config
	chains chainCache
}

// New returns an Authorizer.
func New(c Config) *Authorizer { return &Authorizer{config: c} }

// Authorize checks a call at the time when its message is used. It checks what Authenticate checks. If the operation
// needs an identity or an operator, it also reads the caller's identity from the store, and requires that it is
// enrolled. Renew is excepted: it checks the identity together with the data that it decides by.
func (a *Authorizer) Authorize(ctx context.Context, op Operation, client *Client) (Caller, error) {
	c, err := a.Authenticate(op, client)
	if need := access[op]; err != nil || need != Operators && need != Identity {
		return c, err
	}
	id, err := a.config.Identities.Identity(ctx, c.ID)
	if err != nil {
		return c, err
	}
	if refusal := id.ID.CheckEnrolled(id.State); refusal != nil {
		return c, refusal
	}
	return c, nil
}

// Authenticate checks a call against the table and, unless Anybody may call, verifies the caller's certificate. It
// reads memory only. The client is nil if it sent no certificate. If Authenticate refuses a certificate that
// nevertheless identifies the caller, it returns the caller together with the refusal.
func (a *Authorizer) Authenticate(op Operation, client *Client) (Caller, error) {
	need := access[op]
	switch {
	case need == Anybody:
		return Caller{}, nil
	case need == Nobody:
		return Caller{}, ErrUnserved
	case client == nil:
		return Caller{}, pki.NoCertificate()
	}
	c, err := a.verify(client, need == Renewing)
	if err == nil && need == Operators && !c.isOperator() {
		err = pki.Refuse(pki.RuleAccess, "call with an operator's certificate", "%s is not an operator", c.ID)
	}
	return c, err
}

// verify checks chain, validity, purpose, identity and revocation of a client's certificate (RFC 5280 §6). The TLS
// handshake has proved possession of the key.
//
// If verify refuses a certificate that identifies the caller, it returns the caller with the refusal. Otherwise it
// returns the zero Caller. If the operation is a renewal, a superseded certificate passes: the registration authority
// decides whether to repeat the response, and issues nothing.
func (a *Authorizer) verify(client *Client, renewing bool) (Caller, error) {
	leaf, now := client.leaf, a.config.Clock()
	if refusal := pki.CheckValidity(leaf.NotBefore, leaf.NotAfter, now); refusal != nil {
		return a.callerAt(client, leaf.NotAfter), refusal
	}
	v, err := a.chainOf(client, now)
	if err != nil {
		return Caller{}, err
	}
	c := v.caller
	st, known := a.config.Statuses.Status(c.Certificate)
	switch {
	case !known:
		c.Past = true
		return c, c.Certificate.NotOnRecord()
	case renewing && st.State == pki.Revoked && st.Reason == pki.Superseded:
		c.Past = true
	case st.State != pki.Good:
		c.Past = true
		return c, c.Certificate.CheckStatus(st)
	}
	return c, nil
}

// callerAt verifies an expired certificate as of its validity, to attribute a refusal in the log. It returns the zero
// Caller, marked as past, if the chain does not verify.
func (a *Authorizer) callerAt(client *Client, at time.Time) Caller {
	v, _ := a.chainOf(client, at)
	v.caller.Past = true
	return v.caller
}
