package authz

import (
	"context"
	"crypto/x509"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// A Caller is who makes a call, as the client certificate proves it. It is zero for callers without one.
type Caller struct {
	ID          pki.SPIFFEID
	Certificate pki.CertRef
	Key         pki.KeyHash
	// Past says that the certificate is expired, revoked, superseded or not on record. Somebody else may have its key by
	// now. So the log names the identity, and the call counts for its address and not for the identity.
	Past bool
}

// Actor returns the caller as the log names it.
func (c Caller) Actor() pki.Actor { return pki.ActorCaller(c.ID, c.Certificate) }

func (c Caller) isOperator() bool { return strings.HasPrefix(c.ID.Path(), OperatorPath) }

// Statuses knows the status of every certificate that may call: a responder's memory. It is safe for concurrent use.
type Statuses interface {
	Status(ref pki.CertRef) (pki.Status, bool)
}

// Identities reads the identity of a caller as it is committed at the time of the call. It returns a pki.Refusal if there
// is none. It is safe for concurrent use.
type Identities interface {
	Identity(ctx context.Context, id pki.SPIFFEID) (ra.Identity, error)
}

// Config holds what an Authorizer decides by. All fields are needed.
type Config struct {
	TrustDomain   string
	Roots         *x509.CertPool
	Intermediates *x509.CertPool
	Statuses      Statuses
	Identities    Identities
	Clock         func() time.Time
}

// An Authorizer lets callers in, or refuses them with a typed error. It is safe for concurrent use.
type Authorizer struct {
	config Config
	chains chainCache
}

// New returns an Authorizer.
func New(c Config) *Authorizer { return &Authorizer{config: c} }

// Authorize checks a call when its message is used. It checks what Authenticate checks. If the operation needs an identity
// or an operator, it also reads the caller's identity, which must be enrolled, whatever the certificate says. Renew checks
// the identity itself, in the read that it decides by.
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

// Authenticate checks one call against the table and, if its row asks for it, the caller's certificate. It reads memory
// only. The client is nil if it sent no certificate. If Authenticate refuses a certificate that still proves who calls, it
// returns that caller with the refusal.
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

// verify checks chain, time, purpose, identity and revocation of a client's certificate (RFC 5280 §6). The TLS handshake
// has proved that the client holds its key. The caller beside a refusal is who it is all the same; it is zero if the
// certificate proves nothing, and did not while it was valid. For a renewal a superseded certificate passes too: the
// registration authority decides whether it gets a response, and gives it nothing else.
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

// callerAt verifies an expired certificate as of a time of its validity, to attribute a refusal in the log. It returns the
// zero Caller, marked as past, if the chain does not verify.
func (a *Authorizer) callerAt(client *Client, at time.Time) Caller {
	v, _ := a.chainOf(client, at)
	v.caller.Past = true
	return v.caller
}
