package grpcapi

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/translog"
)

// LogRecords reads the sequenced log. It is safe for concurrent use.
type LogRecords interface {
	Entries(ctx context.Context, from uint64, limit int) ([]translog.Sequenced, error)
}

// Log serves brevet.v1.LogService.
type Log struct {
	brevetv1.UnimplementedLogServiceServer
	Records   LogRecords
	Sequencer *translog.Sequencer
	Archive   *translog.Archive
	// Readings bounds the pages that are read at once.
	Readings *admission.Queue
}

// syncPatience bounds how long a reader waits for what is not archived yet: on a full disk that would be for ever.
const syncPatience = 5 * time.Second

// logPage is how many entries are read at a time; a read transaction stays short, however long the stream.
const logPage = 256

// pageTimeout bounds how long a client may take to read a page: a stream that nobody reads ends, and gives up its place.
const pageTimeout = time.Minute

type entryStream = grpc.ServerStreamingServer[brevetv1.ListEntriesResponse]

// ListEntries serves the RPC of that name in brevet.v1.LogService.
func (s *Log) ListEntries(req *brevetv1.ListEntriesRequest, out entryStream) error {
	ctx := out.Context()
	if err := s.sync(ctx); err != nil {
		return err
	}
	if req.GetStartIndex() < 0 || req.GetLimit() < 0 {
		return pki.Refuse(pki.RuleRequest, "send start_index and limit of 0 or more", "start_index is %d and limit is %d", req.GetStartIndex(), req.GetLimit())
	}
	next, left := max(uint64(req.GetStartIndex()), 1), uint64(req.GetLimit()) //nolint:gosec // neither is negative
	for {
		page := uint64(logPage)
		if req.GetLimit() > 0 {
			page = min(page, left)
		}
		if page == 0 {
			return nil
		}
		entries, err := s.page(ctx, next, int(page))
		if broken := new(translog.ChainError); errors.As(err, &broken) {
			return status.Error(codes.DataLoss, broken.Error()+": restore the store from a backup, and find out who changed it")
		}
		if err != nil || len(entries) == 0 {
			return err
		}
		if err := sendPage(out, entries); err != nil {
			return err
		}
		next = entries[len(entries)-1].Index + 1
		left -= uint64(len(entries))
	}
}

// page reads entries, and has a place among the readings for no longer than that takes: not while a client reads them.
func (s *Log) page(ctx context.Context, from uint64, limit int) ([]translog.Sequenced, error) {
	leave, err := s.Readings.Acquire(ctx, sourceOf(ctx))
	if err != nil {
		return nil, err
	}
	defer leave()
	return s.Records.Entries(ctx, from, limit)
}

// sendPage sends entries, or returns an error when the client has not read them in time. What is being sent then ends with
// the stream.
func sendPage(out entryStream, entries []translog.Sequenced) error {
	sent := make(chan error, 1)
	go func() {
		for _, e := range entries {
			if err := out.Send(&brevetv1.ListEntriesResponse{
				Index: int64(e.Index), Entry: e.Entry, Chain: e.Chain[:], //nolint:gosec // counts entries
			}); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	timeout := time.NewTimer(pageTimeout)
	defer timeout.Stop()
	select {
	case err := <-sent:
		return err
	case <-timeout.C:
		return status.Errorf(codes.DeadlineExceeded, "%d entries were not read within %s: ask again from the entry after the last one that was read",
			len(entries), pageTimeout)
	}
}

// GetHead serves the RPC of that name in brevet.v1.LogService.
func (s *Log) GetHead(ctx context.Context, _ *brevetv1.GetHeadRequest) (*brevetv1.GetHeadResponse, error) {
	if err := s.sync(ctx); err != nil {
		return nil, err
	}
	head := s.Archive.Head()
	return &brevetv1.GetHeadResponse{Size: int64(head.Size), Chain: head.Chain[:]}, nil //nolint:gosec // counts entries
}

// sync waits until what was committed so far is in the log and the archive.
func (s *Log) sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, syncPatience)
	defer cancel()
	return s.Sequencer.Sync(ctx)
}
