package ra

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// CA signs and records certificates: a *ca.Authority. It is safe for concurrent use.
type CA interface {
	// Draft returns the certificate that Issue would sign for the request, or a refusal. It changes nothing.
	Draft(req ca.Request) (*ca.Draft, error)
	Issue(ctx context.Context, d *ca.Draft) (ca.Certificate, error)
	// CheckNames refuses names that the name constraints of the current CA exclude.
	CheckNames(id pki.SPIFFEID, n ca.Names) error
}

// Superseder revokes the certificates of an identity that enrolls again. It is safe for concurrent use.
type Superseder interface {
	// Supersede revokes every unexpired certificate of the identity as superseded. After it has returned, the OCSP responder
	// of this process reports none of them as good.
	Supersede(ctx context.Context, id pki.SPIFFEID, by pki.Actor) error
}

// Auditor records refusals. It is safe for concurrent use.
type Auditor interface {
	// Record writes a refusal to the log if its caller is known. It returns err, marked so that a second Record has no
	// effect. If err is not a refusal, Record returns it unchanged. If the write fails, Record logs the failure.
	Record(ctx context.Context, by pki.Actor, id pki.SPIFFEID, err error) error
	// RecordEvidence is like Record, for a request with evidence. It writes the refusal to the log even if the caller
	// is not known.
	RecordEvidence(ctx context.Context, by pki.Actor, id pki.SPIFFEID, e pki.EvidenceRecord, err error) error
	// RecordOnce is like Record, but writes only one refusal for each certificate.
	RecordOnce(ctx context.Context, by pki.Actor, id pki.SPIFFEID, certificate pki.Serial, err error) error
}

// Config configures a Registrar. All fields are required.
type Config struct {
	TrustDomain string
	Store       Store
	CA          CA
	Superseder  Superseder
	// Revision returns the newest revision of the policy.
	Revision func() Revision
	// Retired lists the issuing CAs that no longer issue certificates. Their certificates can be renewed at any time.
	Retired []pki.IssuerID
	Clock   func() time.Time
	Auditor Auditor
}

// Registrar is the registration authority. It is safe for concurrent use.
type Registrar struct {
	trustDomain string
	store       Store
	ca          CA
	superseder  Superseder
	revision    func() Revision
	retired     []pki.IssuerID
	clock       func() time.Time
	auditor     Auditor
	perIdentity *keyedMutex
}

// New returns a Registrar.
func New(c Config) *Registrar {
	return &Registrar{c.TrustDomain, c.Store, c.CA, c.Superseder, c.Revision, c.Retired, c.Clock, c.Auditor, newKeyedMutex()}
}

// EnrollRequest asks for an identity's first certificate.
type EnrollRequest struct {
	RequestID pki.RequestID
	// Derived means that the ID is a digest of the evidence and the key, because the protocol has no ID. While the
	// certificate for the ID is good, the request repeats an earlier one. After that, it is a new request.
	Derived  bool
	Evidence []pki.Evidence // one piece, or two of different kinds
	CSR      []byte         // PKCS #10, DER
	Lifetime time.Duration
	// Identity is the identity that the request names. It is zero if the request names none.
	Identity pki.SPIFFEID
	// Label is the label of EST that selects among the rules, and empty over gRPC.
	Label string
	// Linked is true if the CSR names the connection that it came on (RFC 7030 §3.5), and the caller has checked this.
	Linked bool
	// From is the address that the request came from. It is the zero Addr for requests of this process.
	From netip.Addr
}

// RenewRequest asks for the successor of a certificate. The caller of Renew must have verified that the client has the
// private key of the predecessor, and that the predecessor was issued to Identity by this CA, is within its validity
// period and allows client authentication. Renew checks the revocation status.
type RenewRequest struct {
	RequestID   pki.RequestID
	Derived     bool // as in EnrollRequest: the ID is a digest of predecessor and key
	Identity    pki.SPIFFEID
	Predecessor pki.CertRef
	CSR         []byte
	Lifetime    time.Duration
	// Evidence proves that the key of the CSR is in hardware. Its kind is zero if there is none. Renew reads it only if
	// the terms of the enrollment require it.
	Evidence pki.Evidence
	// Door is the protocol of the request. The profile of the predecessor must allow renewals at it.
	Door pki.Door
	// Before is the predecessor in DER if the names in the CSR must be those of the predecessor, as in EST. If it is nil,
	// they must be those of the identity. The new certificate always has those of the identity.
	Before []byte
	// Label and Linked are as in EnrollRequest. The label selects no rules.
	Label  string
	Linked bool
	// From is the address that the request came from. It is the zero Addr for requests of this process.
	From netip.Addr
	// Superseded is true if the certificate to renew is known to be superseded already. Then Renew can only repeat an
	// earlier response, so it does not wait for the identity's other requests.
	Superseded bool
}

// Enroll issues a certificate to a caller that proves an identity with evidence. It implements steps 1 and 2 of "The life
// of a certificate" in docs/code-map.md.
func (r *Registrar) Enroll(ctx context.Context, e EnrollRequest) (ca.Certificate, error) {
	a, cert, err := r.enroll(ctx, e)
	return cert, r.auditor.RecordEvidence(ctx, a.by, a.id, a.evidence, err)
}

func (r *Registrar) enroll(ctx context.Context, e EnrollRequest) (a attempt, cert ca.Certificate, err error) {
	// The evidence is verified before the signature of the CSR, so that a caller without evidence costs little.
	c, malformed := readCSR(e.CSR)
	rev := r.revision()
	if malformed == nil {
		malformed = rev.useLabel(&c, e.Label, e.Linked)
	}
	claims, err := rev.identify(ctx, e, c.keyHash, r.clock())
	a = attempted(e, claims)
	if err == nil {
		err = malformed
	}
	if err == nil {
		err = c.verify()
	}
	if err != nil {
		return a, cert, err
	}
	g, err := r.grant(rev, claims, e.Label)
	a.id, a.evidence.Rule, a.evidence.Policy = g.Identity, g.Rule, g.Revision
	if !g.Subject.IsZero() {
		a.evidence.Subject = g.Subject
	}
	if err == nil && !e.Identity.IsZero() && e.Identity != g.Identity {
		err = pki.Refuse(pki.RuleEvidenceMismatch, "name the identity of the evidence, or none", "the evidence does not prove the identity that the request names")
	}
	if err != nil {
		return a, cert, err
	}
	// Without the lock, the second of two concurrent enrollments would supersede the certificate of the first, even if it is
	// a repeat of the same request.
	done, err := r.perIdentity.take(ctx, g.Identity)
	if err != nil {
		return a, cert, err
	}
	defer done()
	cert, err = repeatStale(func() (ca.Certificate, error) { return r.enrollAs(ctx, rev, g, claims, c, e) })
	return a, cert, err
}

// enrollAs makes every check that can refuse the request before it changes anything. Then it binds the evidence, counts
// the request for the rate of its rule, registers the identity, and revokes the certificates that the new one replaces.
// The guard of the certificate then fails only if other requests change the same records meanwhile.
func (r *Registrar) enrollAs(ctx context.Context, rev Revision, g Grant, claims Claims, c csr, e EnrollRequest) (ca.Certificate, error) {
	none := ca.Certificate{}
	guard := claims.guard()
	guard.Subject, guard.Terms = g.Subject, g.terms()
	q := IssuanceQuery{
		Identity: g.Identity, Request: e.RequestID, Key: c.keyHash, At: r.clock(), MaxUnexpired: operatorFactor * rev.Profiles.MaxUnexpired(),
		Subject: guard.Subject, Nonces: guard.Nonces, Recovery: guard.Recovery,
	}
	var register *Registration
	st, err := r.stateOf(ctx, e.Derived, &q, func(q IssuanceQuery) (st IssuanceState, err error) {
		st, register, err = r.stateForEnroll(ctx, rev, q, g)
		return st, err
	})
	if err != nil {
		return none, err
	}
	if st.Prior != nil {
		return answered(st.Prior, c.keyHash)
	}
	if st.SubjectRefusal != nil {
		return none, st.SubjectRefusal
	}
	if have := st.Identity.Subject; g.Chosen && !have.IsZero() && have != g.Subject {
		return none, g.Identity.EvidenceConflict() // the caller may not choose an identity of another device
	}
	if st.Recovery.Refusal != nil {
		return none, st.Recovery.Refusal
	}
	if claims.recovers() {
		if err := rev.checkDoor(claims.recovered(), pki.DoorGRPC); err != nil {
			return none, err
		}
		guard.Predecessor = st.Recovery.Newest
		if guard.Terms, err = st.Identity.Terms.And(guard.Terms); err != nil { // an old key frees from no term
			return none, err
		}
	}
	d, err := r.decide(rev, st, c, ca.Request{
		RequestID: q.Request, Lifetime: e.Lifetime, Actor: claims.actor(), Guard: guard, Evidence: claims.evidence(g),
	}, claims.provesHardware())
	if err != nil {
		return none, err
	}
	if err := claims.checkUsed(st.Identity); err != nil {
		return none, err
	}
	if err := checkReplaces(st.Identity, g, claims, q.At); err != nil {
		return none, err
	}
	if st.NonceRefusal != nil {
		return none, st.NonceRefusal
	}
	binding := Binding{Request: q.Request, Key: c.keyHash, Identity: st.Identity, At: q.At}
	if g.Chosen {
		binding.Register, register = register, nil
	}
	if err := rev.bind(ctx, e.Evidence, binding); err != nil {
		return none, err
	}
	undo, err := g.take()
	if err != nil {
		return none, err
	}
	// From here on, a canceled request does not stop the work. The lock is held until the outcome is recorded.
	cert, err := r.issueEnrolled(context.WithoutCancel(ctx), d, q, st.Identity, register, claims)
	if err != nil {
		undo()
	}
	return cert, err
}

// issueEnrolled issues the certificate of an enrollment. It first registers the identity, unless register is nil, and
// revokes the certificates that the new one replaces. The caller holds the lock of the identity.
func (r *Registrar) issueEnrolled(
	ctx context.Context, d *ca.Draft, q IssuanceQuery, id Identity, register *Registration, claims Claims,
) (ca.Certificate, error) {
	if register != nil {
		if _, err := r.store.CreateIdentity(ctx, *register, claims.actor()); err != nil {
			return ca.Certificate{}, err
		}
	}
	if id.State == pki.Enrolled && !claims.recovers() {
		// The old certificates are revoked before the new one is issued, so that two holders never both have a good one.
		if err := r.superseder.Supersede(ctx, id.ID, claims.actor()); err != nil {
			return ca.Certificate{}, fmt.Errorf("supersede the certificates of %s: %w", id.ID, err)
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

// renew holds the lock of the identity, as enroll does. So concurrent repeats of one request cost one signature.
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
	return repeatStale(func() (ca.Certificate, error) { return r.renewAs(ctx, c, n) })
}

func (r *Registrar) renewAs(ctx context.Context, c csr, n RenewRequest) (ca.Certificate, error) {
	none, rev := ca.Certificate{}, r.revision()
	if err := rev.useLabel(&c, n.Label, n.Linked); err != nil {
		return none, err
	}
	if err := c.checkBefore(n.Before); err != nil {
		return none, err
	}
	q := IssuanceQuery{
		Identity: n.Identity, Predecessor: n.Predecessor, Request: n.RequestID, Key: c.keyHash, At: r.clock(),
		MaxUnexpired: rev.Profiles.MaxUnexpired(),
	}
	st, err := r.stateOf(ctx, n.Derived, &q, func(q IssuanceQuery) (IssuanceState, error) { return r.store.IssuanceState(ctx, q) })
	if err != nil {
		return none, err
	}
	old := st.Predecessor
	if err := rev.checkDoor(old.Profile, n.Door); err != nil {
		return none, err
	}
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
	if old.Successor == c.keyHash { // the device has lost the response and the request ID
		if a, err := r.store.Renewed(ctx, q, r.clock()); err != nil || a != nil {
			return a.certificate(), err
		}
	}
	proof, err := r.proveHardware(ctx, rev, st, n, c.keyHash)
	if err != nil {
		return none, err
	}
	d, err := r.decide(rev, st, c, ca.Request{
		RequestID: q.Request, Lifetime: n.Lifetime, Actor: pki.ActorCaller(n.Identity, n.Predecessor), Evidence: proof.evidence(Grant{}),
		Guard: pki.Guard{Predecessor: n.Predecessor, Renewed: old.Successor == c.keyHash, Nonces: proof.guard().Nonces},
	}, old.SameKey || proof.provesHardware())
	if err != nil {
		return none, err
	}
	cert, err := r.issue(ctx, d, q)
	if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule == pki.RuleMaxUnexpired { // concurrent requests were recorded first
		err = r.tooEarly(n.Predecessor, old)
	}
	return cert, err
}

// certificate returns the certificate of a, and the zero value if a is nil.
func (a *PriorIssuance) certificate() ca.Certificate {
	if a == nil {
		return ca.Certificate{}
	}
	return a.Certificate
}

// repeatSuperseded answers Renew if the predecessor is no longer good. It never issues a certificate.
//
// If the renewal of the predecessor revoked it, the device may have lost the response. In this case repeatSuperseded
// returns the same certificate again, provided that the request ID and the key are the same. Otherwise it refuses.
func repeatSuperseded(st IssuanceState, key pki.KeyHash, predecessor pki.CertRef) (ca.Certificate, error) {
	old := st.Predecessor
	if old.Superseded && old.Status.Reason == pki.Superseded { // the reason has not changed since
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

// issue signs and records the certificate. If a concurrent request with the same ID, or a concurrent renewal of the
// predecessor with the same key, was recorded first, issue returns the certificate of that request.
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
		if serr != nil { // with the refusal, the caller would discard a request ID that has a certificate
			return ca.Certificate{}, serr
		}
		if st.Prior != nil {
			return answered(st.Prior, q.Key)
		}
	}
	return cert, err
}

// answered returns the certificate that was issued for the same request ID. It refuses if that was for another key.
func answered(a *PriorIssuance, key pki.KeyHash) (ca.Certificate, error) {
	if a.Key != key {
		return ca.Certificate{}, pki.Refuse(pki.RuleRequestIDReused, "generate a new request ID for a new key",
			"the request ID was used for another key")
	}
	return a.Certificate, nil
}

// decide applies the policy. It returns the certificate that the identity may have for the key, or a refusal. The
// caller sets the fields of req that depend on the kind of request: the actor, the lifetime and some guards. decide
// sets the others. The guards are the conditions that are checked again when the certificate is recorded. inHardware is
// true if it is proven that the key is in hardware.
func (r *Registrar) decide(rev Revision, st IssuanceState, c csr, req ca.Request, inHardware bool) (*ca.Draft, error) {
	id := st.Identity
	if refusal := id.ID.CheckMayHold(id.State); refusal != nil {
		return nil, refusal
	}
	if id.ID.TrustDomain() != r.trustDomain {
		return nil, pki.Refuse(pki.RuleTrustDomain, "use an identity of "+r.trustDomain, "%s is of another trust domain", id.ID)
	}
	p, err := rev.Profiles.Profile(id.Profile)
	if err != nil {
		return nil, err
	}
	if !p.Permits(id.Kind) {
		return nil, refuseKind(id, id.Profile)
	}
	if req.Guard.Order.IsZero() { // Registrar.Order compares the CSR with the order
		if err := c.checkContent(id); err != nil {
			return nil, err
		}
	}
	if req.IssuingCA, err = issueFor(id); err != nil {
		return nil, err
	}
	req.Identity, req.Profile, req.Key = id.ID, p, c.key
	req.Names = ca.Names{DNS: id.DNSNames, IPs: id.IPAddresses}
	req.Guard.Identity, req.Guard.Revision, req.Guard.Key = id.ID, id.Revision, c.keyHash
	req.Guard.Supersedes = (p.RenewalRevokes() || req.Guard.LosesPredecessor()) && !req.Guard.Predecessor.IsZero()
	req.Guard.MaxUnexpired = r.bound(st, p, req)
	if err := checkRenewalLifetime(p, req); err != nil {
		return nil, err
	}
	terms := id.Terms
	if req.Guard.Enrolls {
		terms = req.Guard.Terms
	}
	if err := applyTerms(terms, p, inHardware, &req); err != nil {
		return nil, err
	}
	d, err := r.ca.Draft(req)
	if err == nil && st.KeyRefusal != nil {
		err = st.KeyRefusal
	}
	if err == nil {
		err = r.checkBound(st, req)
	}
	return d, err
}
