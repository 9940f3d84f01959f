package ra

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// IssueRequest asks, on an operator's word, for a certificate of an identity, for a key that its sender has made or was given.
type IssueRequest struct {
	RequestID pki.RequestID
	Name      string // of the identity, as NewIdentity has it
	CSR       []byte
	Lifetime  time.Duration
	// Register is what the identity is registered with where it does not exist yet; nil where it has to. The name in it
	// is not read.
	Register *NewIdentity
	Actor    pki.Actor
}

// Issue issues a certificate to whom an operator names. It takes no evidence but the operator's word, and it waits where
// Enroll and Renew would be told that the server is busy. An identity that is only registered is enrolled, which voids
// the tokens made for it; an enrolled one gets a further certificate, and keeps those it has.
//
// An order that has been decided is carried out, however long its caller listens: asked again, it is on record.
func (r *Registrar) Issue(ctx context.Context, o IssueRequest) (ca.Certificate, error) {
	none := ca.Certificate{}
	id, err := r.ParseID(o.Name)
	if err != nil {
		return none, err
	}
	if id.Reserved() {
		return none, pki.Refuse(pki.RuleReserved, "order for devices and workloads; an operator enrolls with a token", "%s is reserved", id)
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
	q := IssuanceQuery{Identity: id, Request: o.RequestID, Key: c.keyHash}
	st, err := r.stateForIssue(ctx, q, o, c)
	if err != nil {
		return none, err
	}
	if st.Prior != nil {
		return answered(st.Prior, c.keyHash)
	}
	d, err := r.decideIssue(ctx, st, c, o)
	if err != nil {
		return none, err
	}
	return r.issue(context.WithoutCancel(ctx), d, q)
}

func (r *Registrar) decideIssue(ctx context.Context, st IssuanceState, c csr, o IssueRequest) (*ca.Draft, error) {
	return r.decide(ctx, st, c, ca.Request{
		RequestID: o.RequestID, Lifetime: o.Lifetime, Actor: o.Actor, MayWait: true,
		Guard: pki.Guard{Enrolls: st.Identity.State == pki.Registered},
	})
}

// stateForIssue is what the decision about an order rests on, once its identity is registered as the order has it. For an
// order that asks for what it cannot have nobody is registered.
func (r *Registrar) stateForIssue(ctx context.Context, q IssuanceQuery, o IssueRequest, c csr) (IssuanceState, error) {
	st, err := r.store.IssuanceState(ctx, q)
	refusal, _ := pki.AsRefusal(err)
	missing := refusal != nil && refusal.Rule == pki.RuleIdentity
	if o.Register == nil || st.Prior != nil || err != nil && !missing {
		return st, err
	}
	n := *o.Register
	if n.Kind != pki.Device && n.Kind != pki.Workload {
		return st, pki.Refuse(pki.RuleReserved, "use the kind device or workload", "identities of the kind %s are not for ordering", n.Kind)
	}
	want, err := r.identityOf(q.Identity, n)
	if err != nil {
		return st, err
	}
	if !missing && want.Kind == st.Identity.Kind && want.SameAttributes(st.Identity) {
		return st, nil
	}
	if missing {
		if _, err := r.decideIssue(ctx, IssuanceState{Identity: want}, c, o); err != nil {
			return st, err
		}
	}
	if _, err := r.store.CreateIdentity(ctx, want, o.Actor); err != nil {
		return st, err
	}
	return r.store.IssuanceState(ctx, q)
}
