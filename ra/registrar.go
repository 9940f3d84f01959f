package ra

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// CA signs and records certificates: a *ca.Authority. It is safe for concurrent use.
type CA interface {
	// Draft returns what Issue will sign for the request, or the refusal of it, and changes nothing.
	Draft(req ca.Request) (*ca.Draft, error)
	Issue(ctx context.Context, d *ca.Draft) (ca.Certificate, error)
	Profile(name string) (*ca.Profile, error)
	// CheckNames refuses names that the current CA may not certify, whatever the profile.
	CheckNames(id pki.SPIFFEID, n ca.Names) error
}

// Superseder revokes the certificates of an identity that enrolls anew. It is safe for concurrent use.
type Superseder interface {
	// Supersede revokes every unexpired certificate of the identity as superseded. When it has returned, no responder
	// of this process calls one of them good.
	Supersede(ctx context.Context, id pki.SPIFFEID, by pki.Actor) error
}

// Auditor records refusals. It is safe for concurrent use.
type Auditor interface {
	// Record writes a refusal to the log if its caller is known. It returns the error, marked so that recording it again does
	// nothing. Other errors are returned as they are. A failure to write is logged, and not returned.
	Record(ctx context.Context, by pki.Actor, id pki.SPIFFEID, err error) error
	// RecordOnce does so once for a certificate. Later refusals about it are only marked.
	RecordOnce(ctx context.Context, by pki.Actor, id pki.SPIFFEID, certificate pki.Serial, err error) error
}

// Config is what a Registrar is made of. All fields are needed.
type Config struct {
	TrustDomain string
	Store       Store
	CA          CA
	Superseder  Superseder
	// Authenticators are the kinds of evidence that are accepted, and what checks each.
	Authenticators map[pki.EvidenceKind]Authenticator
	// Retired are the CAs from which nothing is issued any more. Their certificates are renewed at any time.
	Retired []pki.IssuerID
	Clock   func() time.Time
	Auditor Auditor
}

// Registrar is the registration authority. It is safe for concurrent use.
type Registrar struct {
	trustDomain    string
	store          Store
	ca             CA
	superseder     Superseder
	authenticators map[pki.EvidenceKind]Authenticator
	retired        []pki.IssuerID
	clock          func() time.Time
	auditor        Auditor
	perIdentity    *keyedMutex
}

// New returns a Registrar.
func New(c Config) *Registrar {
	return &Registrar{c.TrustDomain, c.Store, c.CA, c.Superseder, c.Authenticators, c.Retired, c.Clock, c.Auditor, newKeyedMutex()}
}

// EnrollRequest asks for an identity's first certificate.
type EnrollRequest struct {
	RequestID pki.RequestID
	Evidence  []pki.Evidence // one piece, or two of different kinds
	CSR       []byte         // PKCS #10 in DER
	Lifetime  time.Duration
}

// RenewRequest asks for the successor of a certificate whose holder has proved to have its key, and which the caller of
// Renew has found to be issued by this CA to this identity, for client authentication, in its time. Its status is looked
// at by Renew.
type RenewRequest struct {
	RequestID   pki.RequestID
	Identity    pki.SPIFFEID
	Predecessor pki.CertRef
	CSR         []byte
	Lifetime    time.Duration
	// Superseded says that the predecessor is known to be superseded: nothing will be issued, so the call waits for no turn.
	Superseded bool
}

// Enroll trades evidence for a certificate. Its steps are 1 and 2 of docs/code-map.md, "The life of a certificate".
func (r *Registrar) Enroll(ctx context.Context, e EnrollRequest) (ca.Certificate, error) {
	claim, cert, err := r.enroll(ctx, e)
	return cert, r.auditor.Record(ctx, claim.Actor, claim.Identity, err)
}

// NoteEvidence records the refusal of an enrollment that does not reach Enroll, as Enroll would.
func (r *Registrar) NoteEvidence(ctx context.Context, evidence []pki.Evidence, err error) error {
	claim, _ := r.identify(ctx, evidence) // zero if the evidence names no identity
	return r.auditor.Record(ctx, claim.Actor, claim.Identity, err)
}

func (r *Registrar) enroll(ctx context.Context, e EnrollRequest) (Claim, ca.Certificate, error) {
	none := ca.Certificate{}
	claim, err := r.identify(ctx, e.Evidence)
	if err != nil {
		return claim, none, err
	}
	c, err := parseCSR(e.CSR)
	if err != nil {
		return claim, none, err
	}
	// Of two enrollments at once, the second would supersede what the first was given, even if it repeats the first.
	done, err := r.perIdentity.take(ctx, claim.Identity)
	if err != nil {
		return claim, none, err
	}
	defer done()
	cert, err := r.enrollAs(ctx, claim, c, e)
	return claim, cert, err
}

func (r *Registrar) enrollAs(ctx context.Context, claim Claim, c csr, e EnrollRequest) (ca.Certificate, error) {
	none := ca.Certificate{}
	q := IssuanceQuery{Identity: claim.Identity, Request: e.RequestID, Key: c.keyHash}
	st, err := r.store.IssuanceState(ctx, q)
	if err != nil {
		return none, err
	}
	if st.Prior != nil {
		return answered(st.Prior, c.keyHash)
	}
	id := st.Identity
	d, err := r.decide(ctx, st, c, ca.Request{
		RequestID: e.RequestID, Lifetime: e.Lifetime, Actor: claim.Actor, Guard: pki.Guard{Enrolls: true, Token: claim.Token},
	})
	if err != nil {
		return none, err
	}
	if id.State == pki.Enrolled && !claim.Replace {
		return none, pki.Refuse(pki.RuleAlreadyEnrolled, "make a token with --replace, which revokes the certificates it has",
			"%s is enrolled already", id.ID)
	}
	if err := r.bind(ctx, e.Evidence, Binding{e.RequestID, c.keyHash, id, r.clock()}); err != nil {
		return none, err
	}
	// From here on the caller's patience ends nothing: the turn is over when it is known what was issued.
	ctx = context.WithoutCancel(ctx)
	if id.State == pki.Enrolled {
		// The old certificates go before the new one comes: at no time do two holders have a good one.
		if err := r.superseder.Supersede(ctx, id.ID, claim.Actor); err != nil {
			return none, fmt.Errorf("supersede the certificates of %s: %w", id.ID, err)
		}
	}
	return r.issue(ctx, d, q)
}

// Renew issues the next certificate to the holder of one.
func (r *Registrar) Renew(ctx context.Context, n RenewRequest) (ca.Certificate, error) {
	cert, err := r.renew(ctx, n)
	if e := (*tooEarlyError)(nil); errors.As(err, &e) {
		return cert, r.auditor.RecordOnce(ctx, pki.ActorIdentity(n.Identity), n.Identity, n.Predecessor.Serial, err)
	}
	return cert, r.auditor.Record(ctx, pki.ActorIdentity(n.Identity), n.Identity, err)
}

// renew takes turns by identity, as enroll does: a client that asks many times at once costs one signature.
func (r *Registrar) renew(ctx context.Context, n RenewRequest) (ca.Certificate, error) {
	c, err := parseCSR(n.CSR)
	if err != nil {
		return ca.Certificate{}, err
	}
	if n.Superseded {
		return r.renewAs(ctx, c, n)
	}
	done, err := r.perIdentity.take(ctx, n.Identity)
	if err != nil {
		return ca.Certificate{}, err
	}
	defer done()
	return r.renewAs(ctx, c, n)
}

func (r *Registrar) renewAs(ctx context.Context, c csr, n RenewRequest) (ca.Certificate, error) {
	none := ca.Certificate{}
	q := IssuanceQuery{n.Identity, n.Predecessor, n.RequestID, c.keyHash}
	st, err := r.store.IssuanceState(ctx, q)
	if err != nil {
		return none, err
	}
	old := st.Predecessor
	if old.Status.State != pki.Good {
		return repeatSuperseded(st, c.keyHash, n.Predecessor)
	}
	if st.Prior != nil {
		return answered(st.Prior, c.keyHash)
	}
	if old.renewedWithAnother(c.keyHash) {
		return none, n.Predecessor.Cloned()
	}
	if st.Identity.State != pki.Enrolled {
		return none, pki.Refuse(pki.RuleIdentityState, "ask an operator", "%s is %s", n.Identity, st.Identity.State)
	}
	if old.Successor == c.keyHash { // the device has lost the answer, and the request ID with it
		if a, err := r.store.Renewed(ctx, q, r.clock()); err != nil || a != nil {
			return a.certificate(), err
		}
	}
	d, err := r.decide(ctx, st, c, ca.Request{
		RequestID: n.RequestID, Lifetime: n.Lifetime, Actor: pki.ActorCaller(n.Identity, n.Predecessor),
		Guard: pki.Guard{Predecessor: n.Predecessor, Renewed: old.Successor == c.keyHash},
	})
	if err != nil {
		return none, err
	}
	cert, err := r.issue(ctx, d, q)
	if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule == pki.RuleMaxUnexpired { // others were faster
		err = r.tooEarly(n.Predecessor, old)
	}
	return cert, err
}

// certificate returns the certificate of an answer, and the zero value for none.
func (a *PriorIssuance) certificate() ca.Certificate {
	if a == nil {
		return ca.Certificate{}
	}
	return a.Certificate
}

// repeatSuperseded is what the holder of a certificate that is good no longer hears. Nothing is issued to it. One that its renewal has
// revoked may not have heard the answer, and hears it again under the same request ID, for the same key.
func repeatSuperseded(st IssuanceState, key pki.KeyHash, predecessor pki.CertRef) (ca.Certificate, error) {
	old := st.Predecessor
	if old.Superseded && old.Status.Reason == pki.Superseded { // and no other reason has followed
		if a := st.Prior; a != nil && a.Supersedes && a.Key == key {
			return a.Certificate, nil
		}
		if old.renewedWithAnother(key) {
			return ca.Certificate{}, predecessor.Cloned()
		}
	}
	return ca.Certificate{}, predecessor.CheckRenewable(old.Status)
}

func (p Predecessor) renewedWithAnother(key pki.KeyHash) bool {
	return !p.Successor.IsZero() && p.Successor != key
}

// issue has a certificate issued. Where the same request was being answered meanwhile, or the predecessor was renewed with
// the same key, the answer is the same.
func (r *Registrar) issue(ctx context.Context, d *ca.Draft, q IssuanceQuery) (ca.Certificate, error) {
	cert, err := r.ca.Issue(ctx, d)
	refusal, _ := pki.AsRefusal(err)
	if refusal != nil && refusal.Rule == pki.RuleIdentityStale && !q.Predecessor.IsZero() {
		if a, rerr := r.store.Renewed(ctx, q, r.clock()); rerr != nil || a != nil {
			return a.certificate(), rerr
		}
	}
	if refusal != nil && refusal.Rule == pki.RuleRequestIDReused {
		st, serr := r.store.IssuanceState(ctx, q)
		if serr != nil { // the refusal would have the caller forget a request that was answered
			return ca.Certificate{}, serr
		}
		if st.Prior != nil {
			return answered(st.Prior, q.Key)
		}
	}
	return cert, err
}

// IssuerLabel is the label of a validation authority's identity that names, in hexadecimal, the issuing CA it answers for.
const IssuerLabel = "issuer"

// issueFor returns the CA that a validation authority answers for, which has to be the one that certifies its key
// (RFC 6960 §4.2.2.2). Everybody else's certificates come from the current CA.
func issueFor(id Identity) (pki.IssuerID, error) {
	if id.Kind != pki.VA {
		return pki.IssuerID{}, nil
	}
	return pki.ParseIssuerID(id.Labels[IssuerLabel])
}

// answered repeats what the identity's request was answered with before.
func answered(a *PriorIssuance, key pki.KeyHash) (ca.Certificate, error) {
	if a.Key != key {
		return ca.Certificate{}, pki.Refuse(pki.RuleRequestIDReused, "draw a new request ID for a new key",
			"the request ID was used for another key")
	}
	return a.Certificate, nil
}

// decide is the policy: what this identity may have for this key now, and what must still hold when it is recorded. The
// request comes with what its caller has to say: who asks, for how long, and the guards of the kind of request.
func (r *Registrar) decide(ctx context.Context, st IssuanceState, c csr, req ca.Request) (*ca.Draft, error) {
	id := st.Identity
	if refusal := id.ID.CheckMayHold(id.State); refusal != nil {
		return nil, refusal
	}
	if id.ID.TrustDomain() != r.trustDomain {
		return nil, pki.Refuse(pki.RuleTrustDomain, "use an identity of "+r.trustDomain, "%s is of another trust domain", id.ID)
	}
	p, err := r.ca.Profile(id.Profile)
	if err != nil {
		return nil, err
	}
	if !p.Permits(id.Kind) {
		return nil, pki.Refuse(pki.RuleAccess, "give the identity a profile that its kind may hold",
			"profile %s is not for identities of the kind %s", id.Profile, id.Kind)
	}
	if err := c.checkContent(id); err != nil {
		return nil, err
	}
	if req.IssuingCA, err = issueFor(id); err != nil {
		return nil, err
	}
	req.Identity, req.Profile, req.Key = id.ID, id.Profile, c.key
	req.Names = ca.Names{DNS: id.DNSNames, IPs: id.IPAddresses}
	req.Guard.Identity, req.Guard.Revision, req.Guard.Key = id.ID, id.Revision, c.keyHash
	req.Guard.Supersedes = p.RenewalRevokes() && !req.Guard.Predecessor.IsZero()
	req.Guard.MaxUnexpired = r.bound(st, p, req)
	if err := checkRenewalLifetime(p, req); err != nil {
		return nil, err
	}
	d, err := r.ca.Draft(req)
	if err == nil && st.KeyRefusal != nil {
		err = st.KeyRefusal
	}
	if err == nil {
		err = r.checkBound(ctx, st, req)
	}
	return d, err
}
