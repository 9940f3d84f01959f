package storetest

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
)

// DelegateRequests passes requests for OCSP delegates between servers. It is server.DelegateRequests.
type DelegateRequests interface {
	PutDelegateRequest(ctx context.Context, d ra.DelegateRequest) error
	DelegateRequests(ctx context.Context, issuer pki.IssuerID) ([]ra.DelegateRequest, error)
	EndDelegateRequest(ctx context.Context, d ra.DelegateRequest, refusal *pki.Refusal) error
	DelegateRefusal(ctx context.Context, d ra.DelegateRequest) (*pki.Refusal, error)
}

func (w *world) delegateRequest(t *testing.T, server string) ra.DelegateRequest {
	t.Helper()
	return ra.DelegateRequest{
		Issuer: issuerA, Server: server, RequestID: w.requestID(t), CSR: []byte("csr"), Certificate: []byte("certificate"), Signature: []byte("signature"),
	}
}

func (w *world) mustHaveRequests(t *testing.T, want ...ra.DelegateRequest) {
	t.Helper()
	have, err := w.Delegates.DelegateRequests(context.Background(), issuerA)
	must(t, err)
	mustEqual(t, "the requests for delegates", have, want)
}

// delegateRequestsArePassedOn passes requests to the server that leads the CA. Each server has one at most.
func delegateRequestsArePassedOn(t *testing.T, first, second *world) {
	ctx := context.Background()
	q, other := second.delegateRequest(t, second.Server), first.delegateRequest(t, first.Server)
	must(t, second.Delegates.PutDelegateRequest(ctx, q))
	first.mustHaveRequests(t) // it does not lead
	first.mustLead(t, issuerA, true)
	first.mustHaveRequests(t, q)
	second.mustHaveRequests(t)
	must(t, first.Delegates.PutDelegateRequest(ctx, other))
	must(t, second.Delegates.PutDelegateRequest(ctx, q)) // a repeat
	first.mustHaveRequests(t, other, q)

	next := second.delegateRequest(t, second.Server)
	must(t, second.Delegates.PutDelegateRequest(ctx, next))
	must(t, first.Delegates.EndDelegateRequest(ctx, q, nil)) // it was replaced
	first.mustHaveRequests(t, other, next)
	must(t, first.Delegates.EndDelegateRequest(ctx, next, nil))
	first.mustHaveRequests(t, other)

	if err := second.Delegates.PutDelegateRequest(ctx, second.delegateRequest(t, "stranger")); err == nil {
		t.Error("a server that never opened the store has put a request")
	}
	large := second.delegateRequest(t, second.Server)
	large.CSR = make([]byte, 16<<10+1)
	if err := second.Delegates.PutDelegateRequest(ctx, large); err == nil {
		t.Error("a request of any size is stored")
	}
	time.Sleep(crl.LeaseTime + 200*time.Millisecond) // by the clock of the database
	first.mustHaveRequests(t)                        // it leads no longer
}

// refusalsArePassedBack has the server that leads the CA refuse a request. The server that waits reads why, until it repeats the
// request.
func refusalsArePassedBack(t *testing.T, first, second *world) {
	ctx := context.Background()
	q := second.delegateRequest(t, second.Server)
	mustHave := func(want *pki.Refusal) {
		t.Helper()
		have, err := second.Delegates.DelegateRefusal(ctx, q)
		must(t, err)
		mustEqual(t, "the refusal", have, want)
	}
	mustHave(nil) // there is no request
	must(t, second.Delegates.PutDelegateRequest(ctx, q))
	mustHave(nil)
	first.mustLead(t, issuerA, true)
	earlier := q
	earlier.RequestID = second.requestID(t)
	must(t, first.Delegates.EndDelegateRequest(ctx, earlier, pki.Refuse(pki.RuleRequest, "", "of a request that was replaced")))
	mustHave(nil)
	first.mustHaveRequests(t, q)

	refusal := pki.Refuse(pki.RuleRevoked, "start the server again", "the certificate is revoked")
	must(t, first.Delegates.EndDelegateRequest(ctx, q, refusal))
	mustHave(refusal)
	first.mustHaveRequests(t)
	must(t, second.Delegates.PutDelegateRequest(ctx, q)) // a repeat
	mustHave(nil)
	first.mustHaveRequests(t, q)

	long := &pki.Refusal{Rule: pki.Rule(strings.Repeat("a", 65)), Detail: strings.Repeat("a", 2049), Hint: strings.Repeat("\u00e9", 1025)}
	must(t, first.Delegates.EndDelegateRequest(ctx, q, long))
	have, err := second.Delegates.DelegateRefusal(ctx, q)
	must(t, err)
	if have == nil || len(have.Rule) > 64 || len(have.Detail) > 2048 || len(have.Hint) > 2048 {
		t.Errorf("the refusal is %v", have)
	}
}

// leadersAreListed lists the issuers that have a leader.
func leadersAreListed(t *testing.T, first, second *world) {
	must := func(want ...pki.IssuerID) {
		t.Helper()
		led, err := second.Exchange.Led(context.Background())
		must(t, err)
		mustEqual(t, "the issuers with a leader", led, want)
	}
	must()
	first.mustLead(t, issuerA, true)
	must(issuerA)
	time.Sleep(crl.LeaseTime + 200*time.Millisecond)
	must()
}

// enrollServer registers a server and issues its certificate.
func (w *world) enrollServer(t *testing.T, name string) ca.Record {
	t.Helper()
	id, err := pki.ServerID("fleet.example", name)
	must(t, err)
	return w.enrollAs(t, ra.Identity{ID: id, Kind: pki.Server, Profile: "server", CreatedAt: w.now})
}

// delegateOf returns the record of the first certificate of a server's OCSP delegate for a CA.
func (w *world) delegateOf(t *testing.T, issuer pki.IssuerID, name string, by pki.Actor) ca.Record {
	t.Helper()
	id, err := pki.VAID("fleet.example", issuer, name)
	must(t, err)
	have := w.create(t, ra.Identity{ID: id, Kind: pki.VA, Profile: "ocsp", CreatedAt: w.now})
	r := w.record(t, have.ID)
	r.Ref.Issuer, r.Profile, r.Actor = issuerA, have.Profile, by
	r.Guard.Identity, r.Guard.Revision = have.ID, have.Revision
	return r
}

// serversGetTheirDelegates commits records of OCSP delegates that servers request. A server gets those of its own delegates
// only, and only while its certificate and identity are good.
func serversGetTheirDelegates(t *testing.T, first, second *world) {
	own := second.enrollServer(t, second.Server)
	by := callerOf(own)
	first.issue(t, first.delegateOf(t, issuerA, second.Server, by))
	mustRefuse(t, first.commit(t, first.delegateOf(t, issuerA, first.Server, by)), pki.RuleAccess)
	mustRefuse(t, first.commit(t, first.delegateOf(t, issuerB, second.Server, by)), pki.RuleAccess) // of another CA than the signing one
	other := first.delegateOf(t, issuerA, second.Server, by)
	other.Profile = "server"
	mustRefuse(t, first.commit(t, other), pki.RuleAccess)
	device := first.record(t, first.register(t).ID)
	device.Actor = by
	mustRefuse(t, first.commit(t, device), pki.RuleAccess)
	mustRefuse(t, first.commit(t, first.delegateOf(t, issuerA, "stranger", callerOf(first.enrollServer(t, "stranger")))), pki.RuleAccess)
	mustRefuse(t, first.commit(t, first.delegateOf(t, issuerA, second.Server, by.Named())), pki.RuleUnauthenticated)
	mustRefuse(t, first.commit(t, first.delegateOf(t, issuerA, second.Server, callerOf(first.enrollNew(t)))), pki.RuleAccess)

	next := first.delegateOf(t, issuerA, second.Server, by)
	first.apply(t, revocation.Change{Action: revocation.Revoke, Reason: pki.KeyCompromise, Certificate: own.Ref})
	mustRefuse(t, first.commit(t, next), pki.RuleRevoked)
	first.apply(t, revocation.Change{Action: revocation.Revoke, Reason: pki.CessationOfOperation, Identity: own.Identity, State: pki.Retired})
	mustRefuse(t, first.commit(t, first.delegateOf(t, issuerA, second.Server, by)), pki.RuleRevoked)
}
