package grpcapi

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/translog"
)

// unreadStream is a stream whose client reads a number of entries and then no more.
type unreadStream struct {
	grpc.ServerStream
	ctx  context.Context
	read int // number of entries that the client still reads
}

// Context implements grpc.ServerStream.
func (u *unreadStream) Context() context.Context { return u.ctx }

// Send implements grpc.ServerStreamingServer.
func (u *unreadStream) Send(*brevetv1.ListEntriesResponse) error {
	if u.read--; u.read >= 0 {
		return nil
	}
	<-u.ctx.Done()
	return u.ctx.Err()
}

func TestUnreadPageEndsItsStream(t *testing.T) {
	t.Parallel()
	epoch := translog.Epoch{1}
	archive, err := translog.OpenArchive(filepath.Join(t.TempDir(), "log"), epoch, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	synctest.Test(t, func(t *testing.T) {
		stopping := make(chan struct{})
		l := &Log{Archive: archive, stopping: stopping}
		page := []translog.Sequenced{{Index: 1}, {Index: 2}, {Index: 3}}
		if err := l.sendPage(&unreadStream{ctx: t.Context(), read: 3}, page); err != nil {
			t.Errorf("a page that is read ends with %v", err)
		}
		ctx, end := context.WithCancel(t.Context())
		defer end() // as grpc does with the stream's context
		if err := l.sendPage(&unreadStream{ctx: ctx, read: 2}, page); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("a page that is not read ends with %v", err)
		}
		broken := []translog.Sequenced{{Index: 1}, {Index: 2, Entry: []byte("no entry")}}
		if err := l.sendPage(&unreadStream{ctx: ctx, read: 2}, broken); err == nil || !strings.Contains(err.Error(), "decode log entry 2") {
			t.Errorf("a page with an entry that is not one ends with %v", err)
		}
		close(stopping)
		if err := l.sendPage(&unreadStream{ctx: ctx}, page); status.Code(err) != codes.Unavailable {
			t.Errorf("when the server stops, a page that is not read ends with %v", err)
		}
		if _, err := l.send(&unreadStream{ctx: ctx}, 1, 0); status.Code(err) != codes.Unavailable {
			t.Errorf("when the server stops, the next page ends with %v", err)
		}
	})
}
