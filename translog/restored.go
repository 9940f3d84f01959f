package translog

import (
	"fmt"
	"time"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// RestoredLog is the event of [LogRestored]. All tokens, external keys and orders that were open before it are void.
type RestoredLog struct {
	Epoch    Epoch // from this entry on
	Previous Epoch // of the entries before
	// Numbers are CRL numbers, at most one for each issuing CA, that are not smaller than any that the CA may have used.
	Numbers []CRLNumber
	// List is the SHA-256 of the list of what cannot be known, if the newest archive was missing, so that changes before this
	// entry are lost. Otherwise it is zero.
	List Hash
}

// WithoutArchive reports whether changes before this entry are lost.
func (r *RestoredLog) WithoutArchive() bool { return r.List != Hash{} }

func (r *RestoredLog) facts(f facts) {
	f["epoch"] = r.Epoch.String()
	f["previous_epoch"] = r.Previous.String()
	if r.WithoutArchive() {
		f["list"] = r.List.String()
	}
	for _, n := range r.Numbers {
		f["crl_number."+n.Issuer.Short()] = n.Number.String()
	}
}

func (r *RestoredLog) encode(m *brevetv1.LogEntry, _ time.Time) {
	event := &brevetv1.RestoredLog{Epoch: r.Epoch[:], PreviousEpoch: r.Previous[:]}
	if r.WithoutArchive() {
		event.List = r.List[:]
	}
	for _, n := range r.Numbers {
		event.CrlNumbers = append(event.CrlNumbers, &brevetv1.CRLNumber{IssuerId: n.Issuer.Bytes(), Number: n.Number.Bytes()})
	}
	m.Event = &brevetv1.LogEntry_RestoredLog{RestoredLog: event}
}

func (d *decoder) restored(m *brevetv1.RestoredLog) *RestoredLog {
	r := &RestoredLog{Epoch: value(d, m.GetEpoch(), EpochFromBytes), Previous: value(d, m.GetPreviousEpoch(), EpochFromBytes)}
	if len(m.GetList()) > 0 {
		r.List = d.hashOf(m.GetList())
	}
	for _, n := range m.GetCrlNumbers() {
		r.Numbers = append(r.Numbers, d.crlNumber(n))
	}
	return r
}

// AcceptedRestore is the event of [RestoreAccepted]: the acceptance of a restore without the newest archive.
type AcceptedRestore struct{ List Hash } // the List of the restore

func (a *AcceptedRestore) facts(f facts) { f["list"] = a.List.String() }

func (a *AcceptedRestore) encode(m *brevetv1.LogEntry, _ time.Time) {
	m.Event = &brevetv1.LogEntry_AcceptedRestore{AcceptedRestore: &brevetv1.AcceptedRestore{List: a.List[:]}}
}

// A Restore is an entry with the action [LogRestored], and its index.
type Restore struct {
	Index uint64
	RestoredLog
}

// Epochs verifies that each epoch of a log names the one before it. It must be used by one goroutine at a time.
type Epochs struct{ Restores []Restore }

// Add reads the next entry of the log. It returns a [*ChainError] if the entry begins an epoch and does not name the one
// before.
func (e *Epochs) Add(s Sequenced) error {
	entry, err := ParseEntry(s.Entry)
	if err != nil {
		return err
	}
	r, ok := entry.Event.(*RestoredLog)
	if !ok {
		return nil
	}
	if n := len(e.Restores); n > 0 && e.Restores[n-1].Epoch != r.Previous {
		return &ChainError{Index: s.Index, Detail: fmt.Sprintf("it continues the epoch %s, and the epoch before it is %s", r.Previous, e.Restores[n-1].Epoch)}
	}
	e.Restores = append(e.Restores, Restore{s.Index, *r})
	return nil
}

// End returns an error if the entries end with another epoch than the log has.
func (e *Epochs) End(epoch Epoch) error {
	if n := len(e.Restores); n > 0 && e.Restores[n-1].Epoch != epoch {
		return fmt.Errorf("the log has the epoch %s, and its last restore, entry %d, began the epoch %s: the two do not belong together",
			epoch, e.Restores[n-1].Index, e.Restores[n-1].Epoch)
	}
	return nil
}
