package translog

import (
	"fmt"
	"strconv"
	"time"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// MaxRotation is the longest period of a rotation that an entry can have. Package rotation allows less.
const MaxRotation = 366 * 24 * time.Hour

// StartedRotation is the event of [RotationStarted].
type StartedRotation struct {
	ID        int64
	Selection pki.Selection
	Over      time.Duration // in whole milliseconds
	Comment   string
	Mark      int64 // the row ID of the newest certificate record; later ones are not affected
	Affected  int
}

// EndedRotation is the event of [RotationStopped] and [RotationCompleted].
type EndedRotation struct {
	ID      int64
	Renewed int // affected certificates that were renewed
	Due     int // affected certificates that were not
}

func (r *StartedRotation) facts(f facts) {
	f["rotation"] = strconv.FormatInt(r.ID, 10)
	f["over"] = r.Over.String()
	f.add("comment", r.Comment)
	f.addSelection(r.Selection)
	f.addNumber("affected", int64(r.Affected))
	f.addNumber("mark", r.Mark)
}

func (r *EndedRotation) facts(f facts) {
	f["rotation"] = strconv.FormatInt(r.ID, 10)
	f.addNumber("renewed", int64(r.Renewed))
	f.addNumber("due", int64(r.Due))
}

func (r *StartedRotation) encode(m *brevetv1.LogEntry, _ time.Time) {
	m.Event = &brevetv1.LogEntry_StartedRotation{StartedRotation: &brevetv1.StartedRotation{
		Id: r.ID, Selection: selectionMessage(r.Selection), Over: r.Over.Milliseconds(), Comment: r.Comment, Mark: r.Mark, Affected: int64(r.Affected),
	}}
}

func (r *EndedRotation) encode(m *brevetv1.LogEntry, _ time.Time) {
	m.Event = &brevetv1.LogEntry_EndedRotation{EndedRotation: &brevetv1.EndedRotation{
		Id: r.ID, Renewed: int64(r.Renewed), Due: int64(r.Due),
	}}
}

func (d *decoder) startedRotation(m *brevetv1.StartedRotation) *StartedRotation {
	r := &StartedRotation{
		ID: d.count(m.GetId()), Selection: d.selection(m.GetSelection(), nil), Comment: m.GetComment(), Mark: d.count(m.GetMark()),
		Affected: int(d.count(m.GetAffected())),
	}
	over := d.count(m.GetOver())
	if over == 0 || over > int64(MaxRotation/time.Millisecond) {
		d.fail(fmt.Errorf("a rotation cannot last %d ms", over))
	}
	r.Over = time.Duration(over) * time.Millisecond
	return r
}

func (d *decoder) endedRotation(m *brevetv1.EndedRotation) *EndedRotation {
	return &EndedRotation{ID: d.count(m.GetId()), Renewed: int(d.count(m.GetRenewed())), Due: int(d.count(m.GetDue()))}
}
