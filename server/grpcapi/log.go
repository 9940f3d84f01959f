package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/translog"
)

// LogRecords reads the sequenced log, from the store and, where entries have left it, from the archive. It is safe for concurrent use.
type LogRecords interface {
	Entries(ctx context.Context, from uint64, limit int) ([]translog.Sequenced, error)
}

// Log serves brevet.v1.LogService.
type Log struct {
	brevetv1.UnimplementedLogServiceServer
	Records   LogRecords
	Sequencer *translog.Sequencer
	Archive   *translog.Archive
	// Readings limits how many reads of the store run at a time. Each page of the log takes a slot while it is read.
	Readings *admission.Queue
	// Followers limits how many streams follow the log.
	Followers *admission.Queue

	stopping <-chan struct{} // closed when the server stops
}

// Limits on streams of the log.
const (
	// syncTimeout is the maximum time that a reader waits until committed entries are archived. On a full disk they would
	// never be.
	syncTimeout = 5 * time.Second
	// logPage is the maximum number of entries that a stream reads at a time; translog.PageSize limits their total size.
	// Pages limit the duration of a read transaction, and the memory of a stream whose client does not read.
	logPage = 256
	// pageTimeout is the maximum time in which a client must read a page. After that the stream ends and frees its slot.
	pageTimeout = time.Minute
)

// errLogStopping is the error with which streams of the log end when the server stops.
var errLogStopping = status.Error(codes.Unavailable, "the server is stopping: read the log again from the entry after the last one")

type entryStream = grpc.ServerStreamingServer[brevetv1.ListEntriesResponse]

// ListEntries serves the RPC of that name in brevet.v1.LogService.
func (s *Log) ListEntries(req *brevetv1.ListEntriesRequest, out entryStream) error {
	next, err := s.start(req.GetStart())
	if err != nil {
		return err
	}
	if req.GetLimit() < 0 {
		return pki.Refuse(pki.RuleRequest, "send a limit of 0 or more", "limit is %d", req.GetLimit())
	}
	if req.GetFollow() {
		leave, err := s.Followers.Acquire(out.Context(), sourceOf(out.Context()).OfAllKeys())
		if err != nil {
			return err
		}
		defer leave()
	}
	if err := s.sync(out.Context()); err != nil {
		return err
	}
	left := uint64(req.GetLimit()) //nolint:gosec // not negative
	for {
		sent, err := s.send(out, next, left)
		next += sent
		if err != nil {
			return err
		}
		if req.GetLimit() > 0 {
			if left -= sent; left == 0 {
				return nil
			}
		}
		if sent > 0 {
			continue
		}
		if !req.GetFollow() {
			return nil
		}
		if err := s.await(out.Context(), next); err != nil {
			return err
		}
	}
}

// start returns the index of the first entry to send. It refuses a position in a log with another epoch.
func (s *Log) start(p *brevetv1.LogPosition) (uint64, error) {
	if p.GetIndex() < 0 {
		return 0, pki.Refuse(pki.RuleRequest, "send an index of 0 or more", "the index is %d", p.GetIndex())
	}
	if len(p.GetEpoch()) > 0 {
		epoch, err := translog.EpochFromBytes(p.GetEpoch())
		if err != nil {
			return 0, pki.Refuse(pki.RuleRequest, "send the epoch of GetHead or of an entry, or none", "the epoch has %d bytes", len(p.GetEpoch()))
		}
		if now := s.Archive.Epoch(); epoch != now {
			return 0, pki.Refuse(pki.RuleLogEpoch, "read the log from its beginning: after a restore its indexes mean other entries",
				"the position is of epoch %s, and the log has %s", epoch, now)
		}
	}
	return max(uint64(p.GetIndex()), 1), nil //nolint:gosec // not negative
}

// send sends a page of entries that starts at an index, and returns their number. The page has at most limit entries; 0
// means no limit. If the server is stopping, send returns an error.
func (s *Log) send(out entryStream, from, limit uint64) (sent uint64, err error) {
	select {
	case <-s.stopping: // before each page, because there may always be another one
		return 0, errLogStopping
	default:
	}
	page := uint64(logPage)
	if limit > 0 {
		page = min(page, limit)
	}
	entries, err := s.page(out.Context(), from, int(page))
	if broken := new(translog.ChainError); errors.As(err, &broken) {
		return 0, status.Error(codes.DataLoss, broken.Error()+": restore the store from a backup, and find out who changed it")
	}
	if altered := new(translog.CorruptError); errors.As(err, &altered) {
		return 0, status.Error(codes.DataLoss, altered.Error())
	}
	if cut := new(translog.TornError); errors.As(err, &cut) {
		return 0, status.Error(codes.DataLoss, cut.Error())
	}
	if err != nil || len(entries) == 0 {
		return 0, err
	}
	return uint64(len(entries)), s.sendPage(out, entries)
}

// page reads entries from the store. It holds a slot of the queue Readings only meanwhile, and not while the client
// reads the entries.
func (s *Log) page(ctx context.Context, from uint64, limit int) ([]translog.Sequenced, error) {
	leave, err := s.Readings.Acquire(ctx, sourceOf(ctx))
	if err != nil {
		return nil, err
	}
	defer leave()
	return s.Records.Entries(ctx, from, limit)
}

// message returns the response message with a log entry, which contains the entry both encoded and decoded.
func (s *Log) message(e translog.Sequenced) (*brevetv1.ListEntriesResponse, error) {
	entry := &brevetv1.LogEntry{}
	if err := proto.Unmarshal(e.Entry, entry); err != nil {
		return nil, fmt.Errorf("decode log entry %d: %w", e.Index, err)
	}
	return &brevetv1.ListEntriesResponse{Position: s.position(e.Index), Entry: entry, Encoded: e.Entry, Chain: e.Chain[:]}, nil
}

func (s *Log) position(index uint64) *brevetv1.LogPosition {
	epoch := s.Archive.Epoch()
	return &brevetv1.LogPosition{Epoch: epoch[:], Index: int64(index)} //nolint:gosec // an index is a count of entries
}

// sendPage decodes each entry and sends it. It returns an error if the client does not read the entries within
// pageTimeout, the caller's authorization ends or the server stops. The stream then ends, and so does its goroutine.
func (s *Log) sendPage(out entryStream, entries []translog.Sequenced) error {
	sent := make(chan error, 1)
	go func() {
		for _, e := range entries {
			m, err := s.message(e)
			if err == nil {
				err = out.Send(m)
			}
			if err != nil {
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
	case <-out.Context().Done():
		return out.Context().Err()
	case <-s.stopping:
		return errLogStopping
	case <-timeout.C:
		return status.Errorf(codes.DeadlineExceeded, "%d entries were not read within %s: ask again from the entry after the last one that was read",
			len(entries), pageTimeout)
	}
}

// await waits until the log has an entry with an index. It returns an error if ctx ends, or the server or its sequencer
// stops.
func (s *Log) await(ctx context.Context, index uint64) error {
	for {
		advanced, stopped := s.Sequencer.Advanced()
		if s.Archive.Head().Size >= index {
			return nil
		}
		select {
		case <-advanced:
		case <-s.stopping:
			return errLogStopping
		case <-stopped:
			return status.Error(codes.Unavailable, "the sequencer has stopped: follow the log again from the entry after the last one")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// GetHead serves the RPC of that name in brevet.v1.LogService.
func (s *Log) GetHead(ctx context.Context, _ *brevetv1.GetHeadRequest) (*brevetv1.GetHeadResponse, error) {
	if err := s.sync(ctx); err != nil {
		return nil, err
	}
	head := s.Archive.Head()
	return &brevetv1.GetHeadResponse{Position: s.position(head.Size), Chain: head.Chain[:]}, nil
}

// sync waits until all entries that are committed now have an index in the log and are in the archive.
func (s *Log) sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	return s.Sequencer.Sync(ctx)
}
