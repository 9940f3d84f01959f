package client

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

func TestAnErrorHasOneNextStep(t *testing.T) {
	busy, err := status.New(codes.ResourceExhausted, "busy").WithDetails(&brevetv1.Refusal{
		Rule: string(pki.RuleOverloaded), Detail: "there is no room", Hint: "try again in 3s",
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		status *status.Status
		want   string
	}{
		{busy, "ca:7443 refuses: there is no room; try again in 3s [server.overloaded]"},
		{status.New(codes.Unavailable, "not now"), "ca:7443 answers Unavailable: not now: see whether the server runs there (--server names another address) and what it logs, then try again"},
		{status.New(codes.Internal, "a bug"), "ca:7443 answers Internal: a bug"},
	} {
		if got := Advise(enroll.CallError("ca:7443", c.status.Err())); got.Error() != c.want {
			t.Errorf("%v, want %s", got, c.want)
		}
	}
}
