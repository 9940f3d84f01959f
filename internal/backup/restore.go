package backup

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/files"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/translog"
)

// Log is the log of the store that is restored.
type Log interface {
	translog.Store
	// Replay appends entries that continue the sequenced log, and restores their records, in one durable transaction.
	Replay(ctx context.Context, entries []translog.Sequenced) error
}

// Store is the store that is restored.
//
//nolint:interfacebloat // one consumer, and the steps of one restore
type Store interface {
	// Begin durably keeps every server from using the store until End, and fences those that use it.
	Begin(ctx context.Context) error
	// Supply records the DER of a CA certificate, if the store has its fingerprint without it.
	Supply(ctx context.Context, der []byte) error
	// Lacking returns the fingerprints of the CA certificates without DER.
	Lacking(ctx context.Context) ([][sha256.Size]byte, error)
	// Numbers returns, for each CA on record, the highest CRL number that the store knows, and at least least.
	Numbers(ctx context.Context, least *big.Int) ([]translog.CRLNumber, error)
	// Merge records the revocations of a CRL. It returns the changes of certificates on record, and those of unknown ones.
	Merge(ctx context.Context, m rules.Merge) (known, unknown []pki.StatusChange, err error)
	// End voids what was open, appends the entry of the restore, and lets servers use the store. If the restore has a list,
	// an operator has to accept it first.
	End(ctx context.Context, r translog.RestoredLog, by pki.Actor, at time.Time) error
}

// Authorities are the CAs of the store that is restored.
type Authorities interface {
	Installed(ctx context.Context) ([]ca.InstalledCA, error)
}

// Points are the distribution points in certificates of the store that is restored.
type Points interface {
	Points(ctx context.Context) ([]crl.Point, error)
}

// A Restore restores a store from an older copy of it.
type Restore struct {
	Log          Log
	Store        Store
	Authorities  Authorities
	Points       Points
	Archive      string                 // path of the newest archive of the log; may be empty with CRLs, if the store has all entries
	Least        uint64                 // the number of entries of an older archive: one with fewer is not the newest
	Certificates []*x509.Certificate    // of CAs, for those that were installed after the copy was made
	CRLs         []*x509.RevocationList // the last ones, if the newest archive is lost; none if Archive is the newest
	// List writes the list of what cannot be known. It is called if there are CRLs, or if the archive is older than the store.
	// Without it, Run refuses such an archive.
	List     func(text []byte) error
	To       string // path of the archive that is written for the new epoch
	By       pki.Actor
	Now      time.Time
	Messages *slog.Logger
}

// A Result is what a restore did.
type Result struct {
	Previous, Epoch translog.Epoch
	Copied          uint64 // entries of the copy
	Replayed        uint64 // entries of the archive after them
	Numbers         []translog.CRLNumber
	List            translog.Hash // that an operator has to accept; zero for none
}

// batch is the number of entries that are replayed in one transaction.
const batch = 512

// LackingError means that the store has CA certificates without their DER.
type LackingError struct{ Fingerprints [][sha256.Size]byte }

// Error names the certificates and the next step.
func (e *LackingError) Error() string {
	var texts []string
	for _, f := range e.Fingerprints {
		texts = append(texts, fmt.Sprintf("%x", f))
	}
	return fmt.Sprintf("CA certificates were installed after the backup, and the log has only their fingerprints: give the file of each with --ca-certificate, "+
		"and run the command again. Their SHA-256: %s", strings.Join(texts, ", "))
}

// OlderArchiveError means that a store has more entries than the archive, which is therefore not the newest one. What happened
// after the last entry of the store is lost.
type OlderArchiveError struct {
	Path    string
	Entries uint64 // of the archive
	Last    uint64 // entry of the store
	At      time.Time
}

// Error says what the operator can do.
func (e *OlderArchiveError) Error() string {
	return fmt.Sprintf("the archive %s ends with entry %d, and the copy of the store with entry %d, of %s: it is not the newest archive, and revocations "+
		"since then may be only in a newer one, so give that with --archive; if there is none, add --list FILE, and --crl with the last CRL of each "+
		"issuing CA: servers start when an operator has accepted that list", e.Path, e.Entries, e.Last, e.At.UTC().Format(time.RFC3339))
}

// Run replays the entries of the archive that the store lacks, and ends the restore. It can be repeated after an error. It
// verifies the whole archive, and that the store's log is the beginning of it, before it changes records. If the archive is
// not the newest one, what happened after its last entry is lost: Run then merges the CRLs, and lists what cannot be known.
func (r *Restore) Run(ctx context.Context) (Result, error) {
	end, previous, err := r.measure(ctx)
	if err != nil {
		return Result{}, err
	}
	if end.Size < r.Least {
		return Result{}, fmt.Errorf("the archive %s has %d entries, and that of the backup %d: give the newest archive", r.Archive, end.Size, r.Least)
	}
	if err := r.Store.Begin(ctx); err != nil {
		return Result{}, err
	}
	result := Result{Previous: previous}
	_, _ = rand.Read(result.Epoch[:]) // never fails
	head, err := r.sequence(ctx)
	if err != nil {
		return result, err
	}
	result.Copied = head.Size
	if head.Size > end.Size { // its newest epoch began after the end of the archive, if an earlier run was interrupted
		if result.Previous, err = r.Log.Epoch(ctx); err != nil {
			return result, err
		}
	}
	known, err := r.known(ctx, head, end)
	if err != nil {
		return result, err
	}
	isOlder, err := r.isOlder(ctx, head, end)
	if err != nil {
		return result, err
	}
	to, err := translog.OpenArchive(r.To, result.Epoch, r.Messages)
	if err != nil {
		return result, err
	}
	err = r.replay(ctx, to, known, head.Size, end, previous, &result)
	if err == nil {
		err = r.end(ctx, to, isOlder || len(r.CRLs) > 0, &result)
	}
	return result, errors.Join(err, to.Close())
}

// measure verifies the archive, and returns its end and its epoch.
func (r *Restore) measure(ctx context.Context) (translog.Head, translog.Epoch, error) {
	if r.Archive == "" {
		epoch, err := r.Log.Epoch(ctx)
		return translog.Head{}, epoch, err
	}
	f, err := files.Open(r.Archive)
	if err != nil {
		return translog.Head{}, translog.Epoch{}, err
	}
	defer f.Close()
	head, epoch, _, err := translog.Measure(f)
	if err != nil {
		return head, epoch, fmt.Errorf("%w (archive %s)", err, r.Archive)
	}
	return head, epoch, nil
}

// sequence sequences the entries that the copy has without a place, and returns the end of its log.
func (r *Restore) sequence(ctx context.Context) (translog.Head, error) {
	for {
		more, err := r.Log.Sequence(ctx, batch)
		if err != nil {
			return translog.Head{}, err
		}
		if len(more) == 0 {
			return r.Log.Head(ctx)
		}
	}
}

// replay copies the archive to the new one, and replays the entries that the store lacks, which has so many. known is the head
// that both must have.
func (r *Restore) replay(ctx context.Context, to *translog.Archive, known translog.Head, have uint64, end translog.Head, epoch translog.Epoch, result *Result) error {
	if r.Archive == "" {
		return nil
	}
	f, err := files.Open(r.Archive)
	if err != nil {
		return err
	}
	defer f.Close()
	var epochs translog.Epochs
	page := translog.NewPage(batch)
	flush := func() error {
		entries := page.Entries
		page = translog.NewPage(batch)
		if err := to.Append(ctx, entries); err != nil {
			return err
		}
		after := slices.IndexFunc(entries, func(s translog.Sequenced) bool { return s.Index > have })
		if after < 0 {
			return nil
		}
		result.Replayed += uint64(len(entries) - after) //nolint:gosec // after is an index
		return r.Log.Replay(ctx, entries[after:])
	}
	read, err := translog.Read(f, func(s translog.Sequenced) error {
		if s.Index == known.Size && s.Chain != known.Chain {
			return r.differs(s.Index)
		}
		if s.Index == end.Size && s.Chain != end.Chain {
			return r.changed(end)
		}
		if err := epochs.Add(s); err != nil {
			return err
		}
		s.Entry = bytes.Clone(s.Entry)
		page.Add(s)
		if !page.IsFull() && s.Index < end.Size {
			return nil
		}
		return flush()
	})
	if torn := (*translog.TornError)(nil); errors.As(err, &torn) {
		r.Messages.Warn("the archive ends within an append, which is left out", "archive", r.Archive, "index", torn.Index)
		err = nil
	}
	if err == nil && read.Size < end.Size {
		err = r.changed(end)
	}
	if err == nil {
		err = epochs.End(epoch)
	}
	return err
}

// changed refuses an archive that no longer has what was verified. Another process copies it to the same path, for example.
func (r *Restore) changed(end translog.Head) error {
	return fmt.Errorf("the archive %s had %d entries when it was verified, and has changed meanwhile: let nothing write to it, and run the command again",
		r.Archive, end.Size)
}

// known returns the last head of the store that the archive must have. It returns an error if the archive is shorter than the
// log of the store, and the two differ, or if neither has some entries.
func (r *Restore) known(ctx context.Context, head, end translog.Head) (translog.Head, error) {
	if end.Size == 0 || end.Size >= head.Size {
		return head, nil
	}
	at, err := r.Log.Entries(ctx, end.Size, 1)
	if left := new(translog.RemovedError); errors.As(err, &left) {
		if end.Size+1 < left.First {
			return head, &translog.BehindError{Archive: end, First: left.First}
		}
		return r.Log.Checkpoint(ctx, end.Size)
	}
	if err != nil {
		return head, err
	}
	if len(at) == 0 || at[0].Chain != end.Chain {
		return head, r.differs(end.Size)
	}
	return end, nil
}

// isOlder reports whether the store has entries that the archive lacks, apart from those of a restore that was interrupted. If
// there is no way to tell the operator what cannot be known, it returns an [*OlderArchiveError].
func (r *Restore) isOlder(ctx context.Context, head, end translog.Head) (bool, error) {
	if r.Archive == "" || head.Size <= end.Size {
		return false, nil
	}
	last, at, err := r.lastEntry(ctx)
	if err != nil || last <= end.Size {
		return false, err
	}
	if r.List == nil {
		return true, &OlderArchiveError{Path: r.Archive, Entries: end.Size, Last: last, At: at}
	}
	r.Messages.Warn("the archive is older than the copy of the store, which has more entries", "archive", r.Archive, "entries", end.Size, "store", last)
	return true, nil
}

func (r *Restore) differs(index uint64) error {
	return fmt.Errorf("the archive %s and the copy of the store differ up to entry %d: they are of different servers, or of both sides of an earlier restore; "+
		"give the archive of the server whose backup this is", r.Archive, index)
}

// end supplies what the log does not have, begins the epoch, and completes the new archive. If entries are lost, it merges the
// CRLs and writes the list.
func (r *Restore) end(ctx context.Context, to *translog.Archive, areLost bool, result *Result) error {
	for _, cert := range r.Certificates {
		if err := r.Store.Supply(ctx, cert.Raw); err != nil {
			return err
		}
	}
	lacking, err := r.Store.Lacking(ctx)
	if err != nil {
		return err
	}
	if len(lacking) > 0 {
		return &LackingError{lacking}
	}
	if result.Numbers, err = r.Store.Numbers(ctx, big.NewInt(r.Now.UnixMilli())); err != nil {
		return err
	}
	if areLost {
		if err := r.merge(ctx, result); err != nil {
			return err
		}
	}
	event := translog.RestoredLog{Epoch: result.Epoch, Previous: result.Previous, Numbers: result.Numbers, List: result.List}
	if err := r.Store.End(ctx, event, r.By, r.Now); err != nil {
		return err
	}
	if _, err := r.sequence(ctx); err != nil {
		return err
	}
	return translog.NewSequencer(r.Log, to, r.Messages).Reconcile(ctx)
}
