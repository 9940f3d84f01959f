package ra

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// IssueRequest is an operator's request for a certificate of an identity. The CSR proves possession of the key, so the
// operator either has the private key or was given the CSR.
type IssueRequest struct {
	RequestID pki.RequestID
	Name      string // of the identity, as NewIdentity has it
	CSR       []byte
	Lifetime  time.Duration
	// Register describes the identity to register if it does not exist yet. If Register is nil, the identity must exist.
	// Register.Name is ignored.
	Register *NewIdentity
	Actor    pki.Actor
}

// Issue issues a certificate for the identity that an operator names. It needs no evidence. If the queues for signing are
// full, Issue waits, where Enroll and Renew fail with server.overloaded.
//
// An identity that is only registered becomes enrolled, which makes its open tokens stale. An enrolled identity gets an
// additional certificate and keeps the others.
//
// Once Issue has decided to issue, it continues even if ctx is canceled. A repeat of the request then returns the recorded
// certificate.
func (r *Registrar) Issue(ctx context.Context, o IssueRequest) (ca.Certificate, error) {
	none := ca.Certificate{}
	id, err := r.ParseID(o.Name)
	if err != nil {
		return none, err
	}
	if id.Reserved() {
		return none, pki.Refuse(pki.RuleReserved, "request certificates of devices and workloads; an operator enrolls with a token", "%s is reserved", id)
	}
	c, err := parseCSR(o.CSR)
	if err != nil {
		return none, err
	}
	done, err := r.perIdentity.take(ctx, id)
	if err != nil {
		return none, err
	}
	defer done()
	return repeatStale(func() (ca.Certificate, error) { return r.issueAs(ctx, id, c, o) })
}

// issueAs decides about an issue request, and issues the certificate. The caller holds the lock of the identity.
func (r *Registrar) issueAs(ctx context.Context, id pki.SPIFFEID, c csr, o IssueRequest) (ca.Certificate, error) {
	none, rev := ca.Certificate{}, r.revision()
	q := IssuanceQuery{
		Identity: id, Request: o.RequestID, Key: c.keyHash, Caller: o.Actor.Caller().Identity, At: r.clock(),
		MaxUnexpired: operatorFactor * rev.Profiles.MaxUnexpired(),
	}
	st, register, err := r.stateForIssue(ctx, rev, q, o)
	if err != nil {
		return none, err
	}
	if st.Prior != nil {
		return answered(st.Prior, c.keyHash)
	}
	d, err := r.decide(rev, st, c, ca.Request{
		RequestID: o.RequestID, Lifetime: o.Lifetime, Actor: o.Actor, MayWait: true,
		Guard: pki.Guard{Enrolls: st.Identity.State == pki.Registered},
	}, false)
	if err != nil {
		return none, err
	}
	if register {
		if _, err := r.store.CreateIdentity(ctx, Registration{Identity: st.Identity}, o.Actor); err != nil {
			return none, err
		}
	}
	return r.issue(context.WithoutCancel(ctx), d, q)
}

// stateForIssue returns the state that the decision about o is based on. If the identity is to be registered, the state
// has its attributes, and register is true. stateForIssue refuses an operator who is not enrolled any more, and an
// identity that is registered with other attributes.
func (r *Registrar) stateForIssue(
	ctx context.Context, rev Revision, q IssuanceQuery, o IssueRequest,
) (st IssuanceState, register bool, err error) {
	st, err = r.store.IssuanceState(ctx, q)
	refusal, _ := pki.AsRefusal(err)
	if err == nil || refusal != nil {
		if refusal := checkOperator(o.Actor, st.Caller); refusal != nil {
			return st, false, refusal
		}
	}
	missing := refusal != nil && refusal.Rule == pki.RuleIdentity
	if refusal := o.checkLabels(st, missing); refusal != nil {
		return st, false, refusal
	}
	if o.Register == nil || st.Prior != nil || err != nil && !missing {
		return st, false, err
	}
	n := *o.Register
	if n.Kind != pki.Device && n.Kind != pki.Workload {
		return st, false, pki.Refuse(pki.RuleReserved, "use the kind device or workload", "an issue request cannot register an identity of the kind %s", n.Kind)
	}
	want, err := r.identityOf(rev, q.Identity, n)
	if err != nil {
		return st, false, err
	}
	if missing {
		st.Identity = want
		return st, true, nil
	}
	if want.Kind != st.Identity.Kind || !want.SameAttributes(st.Identity) {
		_, err = r.store.CreateIdentity(ctx, Registration{Identity: want}, o.Actor) // compares them
	}
	return st, false, err
}

// checkLabels refuses a registrar whose labels the identity lacks. An identity that is missing has the labels with
// which the request registers it.
func (o IssueRequest) checkLabels(st IssuanceState, missing bool) *pki.Refusal {
	labels := st.Identity.Labels
	if missing {
		if o.Register == nil {
			return nil // the request is refused anyway
		}
		labels = o.Register.Labels
	}
	return o.Actor.Caller().Identity.CheckLabels(st.Caller, labels)
}

// checkOperator refuses an actor that needs authorization, if the identity that it calls with is not enrolled, or has
// no role for issue requests. That identity is zero if it is not on record.
func checkOperator(by pki.Actor, identity pki.CallerIdentity) *pki.Refusal {
	if !by.NeedsAuthorization() {
		return nil
	}
	caller := by.Caller()
	if caller.IsZero() {
		return pki.NoCertificate()
	}
	if identity.State == 0 {
		return caller.Certificate.NotOnRecord()
	}
	if refusal := caller.Identity.CheckEnrolled(identity.State); refusal != nil {
		return refusal
	}
	return caller.Identity.CheckPermission(identity.Roles, pki.MayIssue)
}
