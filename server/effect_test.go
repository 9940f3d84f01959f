package server_test

import (
	"context"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

// waitingStore is a store in which the changes of one operator wait before their transaction starts. At that time, the
// server has authorized the operator, except for the check in the transaction.
type waitingStore struct {
	of      string        // the operator's SPIFFE ID
	arrived chan struct{} // gets a value for each change that waits
	release chan struct{} // closed by the test to let the changes continue
}

func (s *waitingStore) wait(by pki.Actor) {
	if by.String() == s.of {
		s.arrived <- struct{}{}
		<-s.release
	}
}

func (s *waitingStore) wrap(stores server.Stores) server.Stores {
	stores.RA, stores.Revocation = waitingRecords{stores.RA, s}, waitingRevocations{stores.Revocation, s}
	return stores
}

type waitingRecords struct {
	ra.Store
	*waitingStore
}

func (r waitingRecords) CreateIdentity(ctx context.Context, n ra.Registration, by pki.Actor) (ra.Identity, error) {
	r.wait(by)
	return r.Store.CreateIdentity(ctx, n, by)
}

func (r waitingRecords) CreateToken(ctx context.Context, t ra.Token) (ra.Token, error) {
	r.wait(t.CreatedBy)
	return r.Store.CreateToken(ctx, t)
}

type waitingRevocations struct {
	revocation.Store
	*waitingStore
}

func (r waitingRevocations) Apply(ctx context.Context, o revocation.Change) (revocation.ChangeResult, error) {
	r.wait(o.Actor)
	return r.Store.Apply(ctx, o)
}

func (r waitingRevocations) CreateBulk(ctx context.Context, o revocation.BulkRequest) (revocation.BulkRevocation, []pki.StatusChange, error) {
	r.wait(o.Actor)
	return r.Store.CreateBulk(ctx, o)
}

// TestCallsUnderWayEndWithTheirCaller revokes an operator's certificate while the operator's changes are authorized and
// not yet in the store. The changes must fail.
func TestCallsUnderWayEndWithTheirCaller(t *testing.T) {
	t.Parallel()
	store := &waitingStore{arrived: make(chan struct{}), release: make(chan struct{})}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.wrap})
	robbed := w.NewOperator(t, "robbed")
	device := w.Enrolled(t, "device", "device/1")
	store.of = robbed.ID
	seen := len(w.Entries(t, 0))
	calls := map[string]func(ctx context.Context) error{
		"CreateIdentity": func(ctx context.Context) error {
			_, err := robbed.CreateIdentity(ctx, &brevetv1.CreateIdentityRequest{Id: "mallory", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_OPERATOR, Roles: []brevetv1.OperatorRole{brevetv1.OperatorRole_OPERATOR_ROLE_ADMIN}}})
			return err
		},
		"CreateToken": func(ctx context.Context) error {
			_, err := robbed.CreateToken(ctx, &brevetv1.CreateTokenRequest{Identity: device.ID, Replace: true})
			return err
		},
		"SuspendIdentity": func(ctx context.Context) error {
			_, err := robbed.SuspendIdentity(ctx, &brevetv1.SuspendIdentityRequest{Id: device.ID})
			return err
		},
		"RetireIdentity": func(ctx context.Context) error {
			_, err := robbed.RetireIdentity(ctx, &brevetv1.RetireIdentityRequest{Id: w.Operator.ID})
			return err
		},
		"RevokeCertificate": func(ctx context.Context) error {
			_, err := robbed.RevokeCertificate(ctx, &brevetv1.RevokeCertificateRequest{Serial: servertest.SerialBytes(device.Certificate)})
			return err
		},
		"RevokeCertificates": func(ctx context.Context) error {
			_, err := robbed.CreateBulkRevocation(ctx, &brevetv1.CreateBulkRevocationRequest{Selection: &brevetv1.CertificateSelection{Profile: "device"}})
			return err
		},
	}
	answers := make(map[string]chan error, len(calls))
	for name, call := range calls {
		answer := make(chan error, 1)
		answers[name] = answer
		go func() { answer <- call(t.Context()) }()
		<-store.arrived
	}
	w.Revoke(t, robbed.Certificate, "keyCompromise")
	close(store.release)
	for name, answer := range answers {
		t.Log(name)
		servertest.Refused(t, <-answer, codes.PermissionDenied, pki.RuleRevoked)
	}
	for _, e := range w.Entries(t, seen) {
		if e.Actor.String() == robbed.ID && e.Action != translog.RequestRefused {
			t.Errorf("the revoked operator has made a change: %+v", e)
		}
	}
	w.Status(t, device.Certificate, "good")
}

// TestIssueRequestsEndWithTheirOperator retires an operator after the server has decided to issue the certificates that
// the operator requested, and before they are recorded. No certificate may be issued.
func TestIssueRequestsEndWithTheirOperator(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.Wrap})
	factory := w.NewOperator(t, "factory")
	reqs := issueRequests(t, "device", 30)
	stream := servertest.Must(factory.IssueCertificates(t.Context()))(t)
	arrived, release := store.HoldRecords()
	for _, req := range reqs {
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
	}
	<-arrived
	store.AwaitDecided(60) // a read and a registration for each request
	w.Retire(t, factory.ID)
	release()
	answers, err := servertest.Deliver(t, stream)
	if err != nil {
		servertest.Refused(t, err, codes.PermissionDenied, pki.RuleRevoked)
	}
	delivered, _ := onRecord(t, w)
	for _, req := range reqs {
		der, err := answers.Of(req)
		if len(der) > 0 || delivered[string(req.GetRequestId())] > 0 {
			t.Errorf("%s has a certificate, although its operator was retired before", req.GetIdentity())
		}
		if rule := servertest.RuleOf(err); rule != pki.RuleRevoked {
			t.Errorf("%s: %v, want a refusal by %s", req.GetIdentity(), err, pki.RuleRevoked)
		}
	}
}
