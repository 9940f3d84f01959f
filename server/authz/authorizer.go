package authz

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// Caller is the caller of an operation, as its client certificate proves it. A caller without a client certificate is
// the zero Caller.
type Caller struct {
	ID          pki.SPIFFEID
	Certificate pki.CertRef
	Key         pki.KeyHash
	NotAfter    time.Time // of the certificate
	// Past means that the certificate is not valid now, is revoked or on hold, or is not known to be on record. A thief may
	// have its key. The log still names the identity, but rate limits count the call for the client's address.
	Past bool
	// unconfirmed means that memory lacks the certificate. Another server may have issued it a moment ago.
	unconfirmed bool
}

// Actor returns the caller in the form in which log entries name it.
func (c Caller) Actor() pki.Actor { return pki.ActorCaller(c.ID, c.Certificate) }

func (c Caller) isOperator() bool { return c.ID.IsOperator() }

// Statuses returns the statuses of certificates from memory. It is safe for concurrent use.
type Statuses interface {
	// Status returns the status of a certificate. It returns false if memory lacks the certificate.
	Status(ref pki.CertRef) (pki.Status, bool)
	// IsStale reports whether memory may lack a change that another server made too long ago.
	IsStale() bool
}

// Identities reads the committed state of a caller's identity. It returns a [pki.Refusal] if there is no such identity.
// It is safe for concurrent use.
type Identities interface {
	Identity(ctx context.Context, id pki.SPIFFEID) (ra.Identity, error)
}

// Certificates reads the committed record of a certificate. It returns a [pki.Refusal] of the class NotFound if there is
// none. It is safe for concurrent use.
type Certificates interface {
	Certificate(ctx context.Context, ref pki.CertRef) (ra.Certificate, error)
}

// Config holds what an Authorizer depends on. All fields are required.
type Config struct {
	TrustDomain   string
	Roots         *x509.CertPool
	Intermediates *x509.CertPool
	Statuses      Statuses
	Identities    Identities
	Certificates  Certificates
	Clock         func() time.Time
}

// Authorizer authenticates callers, and checks which operations they may call. Its refusals are [pki.Refusal]s. It is
// safe for concurrent use.
type Authorizer struct {
	config Config
	chains chainCache
}

// New returns an Authorizer.
func New(c Config) *Authorizer { return &Authorizer{config: c} }

// Authorize checks a call after its message has arrived and before the message takes effect. First it does what
// Authenticate does. If Identity or Operators may call the operation, Authorize also reads the caller's identity from
// the store, and requires the state enrolled. Operators also need a role with the permission. For Renew, Authorize does
// not read the identity: [ra.Registrar.Renew] reads it together with the other data for its decision, as
// [ra.Registrar.Issue] does for each issue request of a stream.
func (a *Authorizer) Authorize(ctx context.Context, op Operation, client *Client) (Caller, error) {
	c, err := a.Authenticate(op, client)
	if err == nil && c.unconfirmed {
		c, err = a.confirm(ctx, c, access[op].Callers == Renewing)
	}
	need := access[op]
	if err != nil || need.Callers != Operators && need.Callers != Identity {
		return c, err
	}
	id, err := a.config.Identities.Identity(ctx, c.ID)
	if err != nil {
		return c, err
	}
	if refusal := id.ID.CheckEnrolled(id.State); refusal != nil {
		return c, refusal
	}
	if need.Callers != Operators {
		return c, nil
	}
	if refusal := id.ID.CheckPermission(id.Roles, need.Permission); refusal != nil {
		return c, refusal
	}
	return c, nil
}

// ErrStale is the refusal of a call that depends on statuses, by a server whose statuses are too old.
var ErrStale error = pki.Refuse(pki.RuleStale, "repeat the request later, or send it to another server",
	"this server has not been able to read for too long what the others have changed")

// Authenticate checks a call against the table and, unless Anybody may call, verifies the caller's certificate. It
// reads memory only, and does not refuse a certificate that memory lacks, because another server may just have issued it.
// The client is nil if it sent no certificate. If Authenticate refuses a certificate that nevertheless identifies the
// caller, it returns the caller together with the refusal.
func (a *Authorizer) Authenticate(op Operation, client *Client) (Caller, error) {
	need := access[op].Callers
	switch {
	case need == Anybody && access[op].ReadsStatuses && a.config.Statuses.IsStale():
		return Caller{}, ErrStale
	case need == Anybody:
		return Caller{}, nil
	case need == Nobody:
		return Caller{}, ErrNoOperation
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
// If verify refuses a certificate that nevertheless identifies the caller, it returns the caller with the refusal. If
// the certificate identifies no caller, the returned Caller has no ID. For a renewal, verify accepts a superseded
// certificate: the registration authority then issues nothing, and may repeat the response of an earlier renewal.
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
	c.Past, c.unconfirmed = st.State != pki.Good, !known
	switch {
	case a.config.Statuses.IsStale(): // a certificate that is on hold in memory may be good, too
		return c, ErrStale
	case !known, renewing && isSuperseded(st):
		return c, nil
	default:
		return c, orNil(c.Certificate.CheckStatus(st))
	}
}

// confirm checks the status of a certificate in the store, because memory lacks it. It does not remember a certificate that
// the store lacks, because another server may record it a moment later. A call costs one more read of the store than that
// of a known certificate. Until then it counted for the client's address.
func (a *Authorizer) confirm(ctx context.Context, c Caller, renewing bool) (Caller, error) {
	record, err := a.config.Certificates.Certificate(ctx, c.Certificate)
	if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule.Class() == pki.NotFound {
		return c, c.Certificate.NotOnRecord()
	}
	if err != nil {
		return c, err
	}
	c.Past, c.unconfirmed = record.Status.State != pki.Good, false
	if renewing && isSuperseded(record.Status) {
		return c, nil // as in verify
	}
	return c, orNil(c.Certificate.CheckStatus(record.Status))
}

func isSuperseded(s pki.Status) bool { return s.State == pki.Revoked && s.Reason == pki.Superseded }

// orNil returns an error that is nil if the refusal is.
func orNil(refusal *pki.Refusal) error {
	if refusal == nil {
		return nil
	}
	return refusal
}

// callerAt verifies a certificate that is not valid now as of another time. If the certificate verifies at that time,
// the log can name the caller that is refused. If it does not, the returned Caller has no ID.
func (a *Authorizer) callerAt(client *Client, at time.Time) Caller {
	v, _ := a.chainOf(client, at)
	v.caller.Past = true
	return v.caller
}
