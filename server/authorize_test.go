package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/servertest"
)

// If an RPC's headers arrive before its caller's certificate is revoked, and its message arrives after that, the server
// refuses the RPC.
func TestRevocationReachesOpenCalls(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	revoked, suspended := w.NewOperator(t, "bob"), w.NewOperator(t, "carol")
	type opened struct {
		name   string
		stream grpc.ClientStream
		finish func() error
	}
	var calls []opened
	for name, m := range listServed(t, w) {
		if rpcs[name].anybody || rpcs[name].identities {
			continue
		}
		for _, operator := range []*servertest.Holder{revoked, suspended} {
			path := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
			stream := servertest.Must(operator.Conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, path))(t)
			calls = append(calls, opened{operator.ID + " " + name, stream, func() error {
				if err := stream.SendMsg(dynamicpb.NewMessage(m.Input())); err != nil && !errors.Is(err, io.EOF) {
					return err
				}
				if err := stream.CloseSend(); err != nil {
					return err
				}
				return stream.RecvMsg(dynamicpb.NewMessage(m.Output()))
			}})
		}
	}
	// The server reads the headers on a connection in order, so after this RPC it has read those of all calls.
	for _, operator := range []*servertest.Holder{revoked, suspended} {
		servertest.Must(operator.GetHead(t.Context(), &brevetv1.GetHeadRequest{}))(t)
	}
	w.Revoke(t, revoked.Certificate, "keyCompromise")
	w.Suspend(t, suspended.ID)
	for _, c := range calls {
		t.Run(c.name, func(t *testing.T) { servertest.Refused(t, c.finish(), codes.PermissionDenied, pki.RuleRevoked) })
	}
	if len(calls) < 30 {
		t.Errorf("%d calls were open: the test misses some RPCs", len(calls))
	}
}

// fixedState is a store that returns a fixed state for the identity with the SPIFFE ID id.
type fixedState struct {
	ra.Store
	id    string
	state pki.IdentityState
}

func (s *fixedState) wrap(stores server.Stores) server.Stores {
	s.Store = stores.RA
	stores.RA = s
	return stores
}

// Identity implements ra.Store.
func (s *fixedState) Identity(ctx context.Context, id pki.SPIFFEID) (ra.Identity, error) {
	have, err := s.Store.Identity(ctx, id)
	if id.String() == s.id {
		have.State = s.state
	}
	return have, err
}

// IssuanceState implements ra.Store.
func (s *fixedState) IssuanceState(ctx context.Context, q ra.IssuanceQuery) (ra.IssuanceState, error) {
	have, err := s.Store.IssuanceState(ctx, q)
	if q.Caller.String() == s.id {
		have.Caller.State = s.state
	}
	return have, err
}

// An operator whose identity is suspended or retired is refused, though its certificate is good.
func TestOperatorsNeedTheirIdentity(t *testing.T) {
	t.Parallel()
	for _, state := range []pki.IdentityState{pki.Suspended, pki.Retired} {
		t.Run(state.String(), func(t *testing.T) {
			t.Parallel()
			s := &fixedState{state: state}
			w := servertest.New(t, ground, servertest.Options{Wrap: s.wrap})
			bob := w.NewOperator(t, "bob")
			methods := listServed(t, w)
			w.StopServer(t)
			s.id = bob.ID
			w.Serve(t, servertest.Options{Wrap: s.wrap})
			holder := w.Holder(t, bob.Certificate.Raw, bob.Key)
			for name, m := range methods {
				if r := rpcs[name]; !r.anybody && !r.identities {
					servertest.Refused(t, invoke(t, holder.Conn, m), codes.FailedPrecondition, pki.RuleIdentityState)
				}
			}
			w.Status(t, bob.Certificate, "good")
			servertest.Must(w.Operator.GetHead(t.Context(), &brevetv1.GetHeadRequest{}))(t)
		})
	}
}

// A stream of log entries ends soon after the certificate of its reader is revoked. The server sends at most 100 more
// entries, in addition to those in buffers.
func TestRevocationEndsALogStream(t *testing.T) {
	t.Parallel()
	const identities = 600
	w := servertest.New(t, ground, servertest.Options{})
	bob := w.NewOperator(t, "bob")
	size := 0
	for n := range identities {
		w.Register(t, "device", fmt.Sprintf("device/%d/%s", n, strings.Repeat("x", 200)), func(r *brevetv1.CreateIdentityRequest) {
			r.Spec.Labels = map[string]string{"a": strings.Repeat("y", 200)}
		})
	}
	reader := w.Holder(t, bob.Certificate.Raw, bob.Key)
	stream := servertest.Must(reader.ListEntries(t.Context(), &brevetv1.ListEntriesRequest{}))(t)
	servertest.Must(stream.Recv())(t)
	w.Revoke(t, bob.Certificate, "keyCompromise")
	got := 1
	for {
		e, err := stream.Recv()
		if err != nil {
			servertest.Refused(t, err, codes.PermissionDenied, pki.RuleRevoked)
			break
		}
		got++
		size += len(e.GetEncoded())
	}
	if got >= identities {
		t.Errorf("the stream sent %d entries after its reader was revoked, of %d bytes", got, size)
	}
}
