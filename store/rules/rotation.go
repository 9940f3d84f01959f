package rules

import (
	"strconv"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/rotation"
	"github.com/brevet-pki/brevet/translog"
)

// RecordedRotation is the record of a rotation.
type RecordedRotation struct {
	rotation.Rotation
	// Mark is the row ID of the newest certificate at the start. Later certificates are not affected.
	Mark int64
}

// NoRotation refuses a rotation that is not on record.
func NoRotation(id int64) error {
	return pki.Refuse(pki.RuleNotFound, "list the rotations (brevet rotation list)", "rotation %s is not on record", strconv.FormatInt(id, 10))
}

// RotationEntry returns the entry of a new rotation.
func RotationEntry(r RecordedRotation) translog.Entry {
	return translog.Entry{
		Time: r.At, Actor: r.Actor, Action: translog.RotationStarted, Outcome: translog.Done, Identity: r.Identity,
		Event: &translog.StartedRotation{
			ID: r.ID, Selection: r.Selection, Over: r.Over, Comment: r.Comment, Mark: r.Mark, Affected: r.Affected,
		},
	}
}

// RotationEndEntry returns the entry of the end of a rotation.
func RotationEndEntry(r rotation.Rotation, e rotation.End) translog.Entry {
	action := translog.RotationCompleted
	if e.Stopped {
		action = translog.RotationStopped
	}
	return translog.Entry{
		Time: e.At, Actor: e.Actor, Action: action, Outcome: translog.Done, Identity: r.Identity,
		Event: &translog.EndedRotation{ID: e.ID, Renewed: e.Final.Renewed, Due: e.Final.Due},
	}
}

func recordedRotation(e translog.Entry, event *translog.StartedRotation) RecordedRotation {
	return RecordedRotation{
		Rotation: rotation.Rotation{
			ID: event.ID, Affected: event.Affected,
			Request: rotation.Request{Selection: event.Selection, Over: event.Over, Actor: e.Actor, Comment: event.Comment, At: e.Time},
		},
		Mark: event.Mark,
	}
}

func endOf(e translog.Entry, event *translog.EndedRotation) rotation.End {
	return rotation.End{
		ID: event.ID, Stopped: e.Action == translog.RotationStopped, At: e.Time, Actor: e.Actor,
		Final: rotation.Progress{Renewed: event.Renewed, Due: event.Due},
	}
}
