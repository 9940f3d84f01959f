package server_test

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// update returns a request to change attributes of an identity, based on the revision of id.
func update(id *brevetv1.Identity, spec *brevetv1.IdentitySpec, paths ...string) *brevetv1.UpdateIdentityRequest {
	return &brevetv1.UpdateIdentityRequest{Id: id.GetId(), Spec: spec, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}, Revision: id.GetRevision()}
}

func TestUpdateIdentity(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	path := w.Register(t, "device", "device/1", labelled("site", "north"))
	read := func() *brevetv1.Identity {
		return servertest.Must(w.Operator.GetIdentity(t.Context(), &brevetv1.GetIdentityRequest{Id: path}))(t).GetIdentity()
	}
	before := read()
	spec := &brevetv1.IdentitySpec{Profile: "server", Labels: map[string]string{"site": "south"}, Names: servertest.Names([]string{"pump.example"}, nil)}

	after := servertest.Must(w.Operator.UpdateIdentity(t.Context(), update(before, spec, "labels")))(t).GetIdentity()
	if after.GetRevision() != before.GetRevision()+1 || after.GetLabels()["site"] != "south" || after.GetProfile() != "device" || len(after.GetNames()) != 0 {
		t.Errorf("after an update of the labels: %v", after)
	}
	_, err := w.Operator.UpdateIdentity(t.Context(), update(before, spec, "labels"))
	servertest.Refused(t, err, codes.Aborted, pki.RuleIdentityRevision)
	early := update(after, spec, "names")
	early.Revision++
	_, err = w.Operator.UpdateIdentity(t.Context(), early)
	servertest.Refused(t, err, codes.Aborted, pki.RuleIdentityRevision)

	after = servertest.Must(w.Operator.UpdateIdentity(t.Context(), update(after, spec, "profile", "names")))(t).GetIdentity()
	if after.GetProfile() != "server" || len(after.GetNames()) != 1 || after.GetNames()[0].GetDns() != "pump.example" {
		t.Errorf("after an update of profile and names: %v", after)
	}
	same := servertest.Must(w.Operator.UpdateIdentity(t.Context(), update(after, spec, "profile", "names", "labels")))(t).GetIdentity()
	if same.GetRevision() != after.GetRevision() {
		t.Errorf("an update without a change makes revision %d of %d", same.GetRevision(), after.GetRevision())
	}
	for name, c := range map[string]struct {
		req  *brevetv1.UpdateIdentityRequest
		code codes.Code
		rule pki.Rule
	}{
		"of nothing":             {update(after, spec), codes.InvalidArgument, pki.RuleRequest},
		"of the kind":            {update(after, spec, "kind"), codes.InvalidArgument, pki.RuleRequest},
		"without a revision":     {&brevetv1.UpdateIdentityRequest{Id: path, Spec: spec, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}}}, codes.InvalidArgument, pki.RuleRequest},
		"of an unknown identity": {update(&brevetv1.Identity{Id: "device/none", Revision: 1}, spec, "labels"), codes.NotFound, pki.RuleIdentity},
		"of the server itself":   {update(&brevetv1.Identity{Id: "brevet/server", Revision: 1}, spec, "labels"), codes.PermissionDenied, pki.RuleReserved},
		"to an unknown profile":  {update(after, &brevetv1.IdentitySpec{Profile: "none"}, "profile"), codes.InvalidArgument, pki.RuleProfile},
		"to a profile of others": {update(after, &brevetv1.IdentitySpec{Profile: "operator"}, "profile"), codes.PermissionDenied, pki.RuleAccess},
		"to names of no host":    {update(after, &brevetv1.IdentitySpec{Names: servertest.Names([]string{"*.example"}, nil)}, "names"), codes.InvalidArgument, pki.RuleNames},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.Operator.UpdateIdentity(t.Context(), c.req)
			servertest.Refused(t, err, c.code, c.rule)
		})
	}
	if have := read(); have.GetRevision() != after.GetRevision() {
		t.Errorf("after updates that were refused: %v", have)
	}
}

// An operator changes an identity while its certificate is signed. The request succeeds nevertheless: it is decided again.
func TestUpdateDuringARequest(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.Wrap})
	renews, issued := w.Enrolled(t, "device", "device/renews"), w.Register(t, "device", "device/issued")
	order := servertest.Order(t, issued, servertest.Key(t))
	order.Registration = nil // it would have to repeat the attributes
	for name, c := range map[string]struct {
		id      string
		request func() error
	}{
		"renewal": {renews.ID, func() error {
			_, err := renews.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
			return err
		}},
		"issue request": {issued, func() error {
			stream, err := w.Operator.IssueCertificates(t.Context())
			if err == nil {
				err = stream.Send(order)
			}
			if err != nil {
				return err
			}
			answer, err := stream.Recv()
			if err != nil {
				return err
			}
			return servertest.FailureOf(answer)
		}},
	} {
		arrived, release := store.HoldRecords()
		ended := make(chan error, 1)
		go func() { ended <- c.request() }()
		<-arrived
		w.Update(t, c.id, &brevetv1.IdentitySpec{Labels: map[string]string{"site": "south"}}, "labels")
		release()
		if err := <-ended; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestHoldOneCertificate puts one of an identity's two certificates on hold and takes it off hold again. The other
// certificate stays good.
func TestHoldOneCertificate(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	one := w.Enrolled(t, "device", "device/1")
	other := w.Renewed(t, one, servertest.Key(t))
	hold := func() (*brevetv1.HoldCertificateResponse, error) {
		return w.Operator.HoldCertificate(t.Context(), &brevetv1.HoldCertificateRequest{Serial: servertest.SerialBytes(one.Certificate), Comment: "looking for it"})
	}
	unhold := func() (*brevetv1.UnholdCertificateResponse, error) {
		return w.Operator.UnholdCertificate(t.Context(), &brevetv1.UnholdCertificateRequest{
			Serial: servertest.SerialBytes(one.Certificate), IssuerId: pki.IssuerOf(w.Issuing).Bytes(), Comment: "found",
		})
	}
	for i, affected := range []int64{1, 0} {
		held := servertest.Must(hold())(t)
		if held.GetCertificate().GetState() != brevetv1.CertificateState_CERTIFICATE_STATE_HOLD || held.GetAffected().GetValid() != affected {
			t.Errorf("after hold %d: %v", i+1, held)
		}
	}
	w.Status(t, one.Certificate, "certificateHold")
	w.Status(t, other.Certificate, "good")
	for i, affected := range []int64{1, 0} {
		good := servertest.Must(unhold())(t)
		if good.GetCertificate().GetState() != brevetv1.CertificateState_CERTIFICATE_STATE_GOOD || good.GetAffected().GetValid() != affected {
			t.Errorf("after unhold %d: %v", i+1, good)
		}
	}
	w.Status(t, one.Certificate, "good")

	w.Suspend(t, one.ID)
	_, err := unhold()
	servertest.Refused(t, err, codes.FailedPrecondition, pki.RuleIdentityState)
	w.Resume(t, one.ID)
	w.Revoke(t, one.Certificate, "superseded")
	_, err = hold()
	servertest.Refused(t, err, codes.FailedPrecondition, pki.RuleAlreadyRevoked)
	_, err = w.Operator.HoldCertificate(t.Context(), &brevetv1.HoldCertificateRequest{Serial: make([]byte, 20), Comment: "none"})
	servertest.Refused(t, err, codes.InvalidArgument, pki.RuleRequest)
}

// TestListBulkRevocations lists bulk revocations page by page. A page token is valid only for the filter with which it
// was returned.
func TestListBulkRevocations(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	var want []string
	for _, site := range []string{"north", "south", "east"} {
		w.Enrolled(t, "device", "device/"+site, labelled("site", site))
		bulk := bulkRevoke(t, w, &brevetv1.CertificateSelection{Label: &brevetv1.Label{Name: "site", Value: site}}, "superseded")
		awaitApplied(t, w, bulk.GetId())
		want = append([]string{bulk.GetId()}, want...)
	}
	var got []string
	req := &brevetv1.ListBulkRevocationsRequest{PageSize: 2, States: []brevetv1.BulkRevocationState{brevetv1.BulkRevocationState_BULK_REVOCATION_STATE_DONE}}
	for {
		page := servertest.Must(w.Operator.ListBulkRevocations(t.Context(), req))(t)
		for _, b := range page.GetBulkRevocations() {
			got = append(got, b.GetId())
			if b.GetTotal() != 1 || b.GetCreatedBy() != w.Operator.ID || b.GetComment() != "stolen" {
				t.Errorf("listed is %v", b)
			}
		}
		if req.PageToken = page.GetNextPageToken(); req.GetPageToken() == "" {
			break
		}
		other := &brevetv1.ListBulkRevocationsRequest{PageSize: 3, PageToken: req.GetPageToken()}
		_, err := w.Operator.ListBulkRevocations(t.Context(), other)
		servertest.Refused(t, err, codes.InvalidArgument, pki.RuleRequest)
		req.PageSize = 1 // the page size may change from page to page
	}
	if len(got) != len(want) {
		t.Fatalf("listed were %q, want %q", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("listed were %q, want %q", got, want)
		}
	}
	for _, refused := range []*brevetv1.ListBulkRevocationsRequest{{PageSize: -1}, {PageToken: "77"}, {PageToken: "_"}, {States: []brevetv1.BulkRevocationState{0}}} {
		_, err := w.Operator.ListBulkRevocations(t.Context(), refused)
		servertest.Refused(t, err, codes.InvalidArgument, pki.RuleRequest)
	}
}
