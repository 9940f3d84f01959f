package server_test

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// atEnd returns a request to follow the log from the first entry that will be added.
func atEnd(t *testing.T, w *servertest.World) *brevetv1.ListEntriesRequest {
	t.Helper()
	head := servertest.Must(w.Operator.GetHead(t.Context(), &brevetv1.GetHeadRequest{}))(t).GetPosition()
	return &brevetv1.ListEntriesRequest{Start: &brevetv1.LogPosition{Epoch: head.GetEpoch(), Index: head.GetIndex() + 1}, Follow: true}
}

// A stream that follows the log gets each new entry, also in decoded form, and ends when the server stops.
func TestFollowersGetNewEntries(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	req := atEnd(t, w)
	stream := servertest.Must(w.Operator.ListEntries(t.Context(), req))(t)
	for _, path := range []string{"device/1", "device/2"} {
		id := w.Register(t, "device", path)
		for {
			e := servertest.Must(stream.Recv())(t)
			if string(e.GetPosition().GetEpoch()) != string(req.GetStart().GetEpoch()) || e.GetPosition().GetIndex() != req.GetStart().GetIndex() {
				t.Fatalf("the entry is at %v, want %v", e.GetPosition(), req.GetStart())
			}
			req.Start.Index++
			if attributes := e.GetEntry().GetIdentityAttributes(); attributes != nil {
				if "spiffe://"+e.GetEntry().GetIdentity() != id || attributes.GetProfile() != "device" || attributes.GetRevision() != 1 {
					t.Errorf("the entry is %v", e.GetEntry())
				}
				break
			}
		}
	}
	limited := servertest.Must(w.Operator.ListEntries(t.Context(), &brevetv1.ListEntriesRequest{Limit: 1, Follow: true}))(t)
	servertest.Must(limited.Recv())(t)
	if e, err := limited.Recv(); err == nil {
		t.Errorf("a follower of one entry got another one: %v", e)
	}
	w.StopServer(t)
	for {
		if _, err := stream.Recv(); err != nil {
			if status.Code(err) != codes.Unavailable {
				t.Errorf("when the server stops, a follower gets %v", err)
			}
			break
		}
	}
	w.Serve(t, servertest.Options{}) // for the final checks
}

// A caller may have four streams that follow the log. When the server refuses a fifth one, other callers can still
// follow the log.
func TestFollowersAreFew(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	const each = 4
	for range each {
		stream := servertest.Must(w.Operator.ListEntries(t.Context(), &brevetv1.ListEntriesRequest{Follow: true}))(t)
		servertest.Must(stream.Recv())(t) // the stream has started
	}
	more := servertest.Must(w.Operator.ListEntries(t.Context(), &brevetv1.ListEntriesRequest{Follow: true}))(t)
	_, err := more.Recv()
	servertest.Refused(t, err, codes.ResourceExhausted, pki.RuleOverloaded)
	servertest.Must(servertest.Must(w.Operator.ListEntries(t.Context(), &brevetv1.ListEntriesRequest{}))(t).Recv())(t)
	other := servertest.Must(w.NewOperator(t, "other").ListEntries(t.Context(), &brevetv1.ListEntriesRequest{Follow: true}))(t)
	servertest.Must(other.Recv())(t)
}

// An operator with two keys may have no more streams that follow the log than an operator with one key.
func TestFollowersCountForAllKeys(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	bob := w.NewOperator(t, "bob")
	renewed := w.Renewed(t, bob, servertest.Key(t))
	follow := func(h *servertest.Holder) error {
		_, err := servertest.Must(h.ListEntries(t.Context(), &brevetv1.ListEntriesRequest{Follow: true}))(t).Recv()
		return err
	}
	for range 2 {
		servertest.Refused(t, follow(bob), codes.OK, "")
		servertest.Refused(t, follow(renewed), codes.OK, "")
	}
	servertest.Refused(t, follow(bob), codes.ResourceExhausted, pki.RuleOverloaded)
	servertest.Refused(t, follow(renewed), codes.ResourceExhausted, pki.RuleOverloaded)
}

// When an operator is suspended, its stream that follows the log ends, even if there are no new entries.
func TestIdleFollowersAreAuthorizedAgain(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	bob := w.NewOperator(t, "bob")
	stream := servertest.Must(bob.ListEntries(t.Context(), &brevetv1.ListEntriesRequest{Follow: true}))(t)
	servertest.Must(stream.Recv())(t)
	w.Suspend(t, bob.ID)
	for {
		if _, err := stream.Recv(); err != nil {
			servertest.Refused(t, err, codes.PermissionDenied, pki.RuleRevoked)
			return
		}
	}
}

// The server refuses a position with the epoch of another log. It accepts a position without an epoch.
func TestPositionsOfAnotherLogAreRefused(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	list := func(p *brevetv1.LogPosition) error {
		_, err := servertest.Must(w.Operator.ListEntries(t.Context(), &brevetv1.ListEntriesRequest{Start: p, Limit: 1}))(t).Recv()
		return err
	}
	epoch := servertest.Must(w.Operator.GetHead(t.Context(), &brevetv1.GetHeadRequest{}))(t).GetPosition().GetEpoch()
	servertest.Refused(t, list(&brevetv1.LogPosition{Epoch: epoch, Index: 2}), codes.OK, "")
	servertest.Refused(t, list(&brevetv1.LogPosition{Index: 2}), codes.OK, "")
	servertest.Refused(t, list(&brevetv1.LogPosition{Epoch: make([]byte, len(epoch)), Index: 2}), codes.FailedPrecondition, pki.RuleLogEpoch)
	servertest.Refused(t, list(&brevetv1.LogPosition{Epoch: []byte("old"), Index: 2}), codes.InvalidArgument, pki.RuleRequest)
}
