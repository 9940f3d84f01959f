package server

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/translog"
)

// logs serves brevet.v1.LogService.
type logs struct {
	brevetv1.UnimplementedLogServiceServer
	records   translog.Records
	sequencer *translog.Sequencer
	archive   *translog.Archive
}

// syncPatience bounds how long a reader waits for what is not archived yet: on a full disk that would be for ever.
const syncPatience = 5 * time.Second

// logPage is how many entries are read at a time; a read transaction stays short, however long the stream.
const logPage = 256

// ListEntries serves the RPC of that name in brevet.v1.LogService.
func (s *logs) ListEntries(req *brevetv1.ListEntriesRequest, out grpc.ServerStreamingServer[brevetv1.ListEntriesResponse]) error {
	ctx := out.Context()
	if err := s.sync(ctx); err != nil {
		return err
	}
	next, left := max(req.GetFrom(), 1), req.GetLimit()
	for {
		page := uint64(logPage)
		if req.GetLimit() > 0 {
			page = min(page, left)
		}
		if page == 0 {
			return nil
		}
		entries, err := s.records.Entries(ctx, next, int(page))
		if broken := new(translog.ChainError); errors.As(err, &broken) {
			return status.Error(codes.DataLoss, broken.Error()+": restore the store from a backup, and find out who changed it")
		}
		if err != nil || len(entries) == 0 {
			return err
		}
		for _, e := range entries {
			if err := out.Send(&brevetv1.ListEntriesResponse{Index: e.Index, Entry: e.Entry, Chain: e.Chain[:]}); err != nil {
				return err
			}
			next = e.Index + 1
			left--
		}
	}
}

// GetHead serves the RPC of that name in brevet.v1.LogService.
func (s *logs) GetHead(ctx context.Context, _ *brevetv1.GetHeadRequest) (*brevetv1.GetHeadResponse, error) {
	if err := s.sync(ctx); err != nil {
		return nil, err
	}
	head := s.archive.Head()
	return &brevetv1.GetHeadResponse{Size: head.Size, Chain: head.Chain[:]}, nil
}

// sync waits until what was committed so far is in the log and the archive.
func (s *logs) sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, syncPatience)
	defer cancel()
	return s.sequencer.Sync(ctx)
}
