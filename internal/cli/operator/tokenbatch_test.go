package operator

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// downClient calls a server that does not run.
type downClient struct{ brevetv1.TokenServiceClient }

func (downClient) CreateToken(context.Context, *brevetv1.CreateTokenRequest, ...grpc.CallOption) (*brevetv1.CreateTokenResponse, error) {
	return nil, status.Error(codes.Unavailable, "connection refused")
}

// TestBatchWithoutAServer creates more tokens than there are workers. The command says soon that the server does not
// respond, and ends after the time that it says.
func TestBatchWithoutAServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		b := &batch{
			tokenFile: &tokenFile{}, client: downClient{}, template: &brevetv1.CreateTokenRequest{}, progress: newProgress(&out, "line7.csv"),
		}
		start := time.Now()
		err := b.run(t.Context(), 3*batchWorkers)
		if took := time.Since(start); status.Code(err) != codes.Unavailable || took > maxServerAbsence+time.Second {
			t.Errorf("after %s: %v", took, err)
		}
		if want := "the server does not answer, trying for 2 minutes\n"; out.String() != want {
			t.Errorf("the command has printed %q, want %q", out.String(), want)
		}
	})
}
