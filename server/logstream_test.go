package server_test

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// Clients open streams of the log, and send no message or read no entries. Other callers can still read records and the
// log.
func TestSilentStreamsDoNotBlockReads(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	for n := range 200 { // more entries than fit into a client's flow-control window and gRPC's buffers
		w.Register(t, "device", fmt.Sprintf("device/%d/%s", n, strings.Repeat("x", 1024)))
	}
	for n := range 2 {
		operator := w.NewOperator(t, fmt.Sprintf("silent%d", n))
		silent := w.Caller(t, operator.TLS(w), grpc.WithStaticStreamWindowSize(1<<16)) // a fixed window
		for range 4 {
			servertest.Must(silent.Conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, brevetv1.LogService_ListEntries_FullMethodName))(t)
			unread := servertest.Must(silent.ListEntries(t.Context(), &brevetv1.ListEntriesRequest{}))(t)
			servertest.Must(unread.Recv())(t) // the stream has started
		}
	}
	other := w.NewOperator(t, "other")
	for range 20 {
		servertest.Must(other.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{}))(t)
	}
	stream := servertest.Must(other.ListEntries(t.Context(), &brevetv1.ListEntriesRequest{Start: &brevetv1.LogPosition{Index: 150}}))(t)
	servertest.Must(stream.Recv())(t)
	awaitQueue(t, w, "readings", 0, 0) // a read may free its slot a moment after the response
	_, text := getOperations(t, w, "/metrics")
	if n := metric(t, text, `brevet_queue_active{queue="logs"}`); n < 8 {
		t.Errorf("%g log streams are active, want those that are not read", n)
	}
}

// A client with many watches of the server's health occupies only its share of the slots.
func TestWatchesShareTheirSlots(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	const each = 64
	c := healthv1.NewHealthClient(w.Caller(t, nil).Conn)
	for range each + 10 {
		servertest.Must(c.Watch(t.Context(), &healthv1.HealthCheckRequest{}))(t)
	}
	awaitQueue(t, w, "watches", each, 10)
	other := servertest.Must(healthv1.NewHealthClient(w.Caller(t, nil, from("127.0.0.2")).Conn).Watch(t.Context(), &healthv1.HealthCheckRequest{}))(t)
	servertest.Must(other.Recv())(t)
	servertest.Must(c.Check(t.Context(), &healthv1.HealthCheckRequest{}))(t)
}
