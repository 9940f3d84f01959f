package rotation

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Store records rotations and finds their certificates. Its methods are safe for concurrent use. The change of a
// rotation and its log entry are one durable transaction.
type Store interface {
	Recorder
	Reader
}

// Recorder starts and ends rotations.
type Recorder interface {
	// CountRotation counts the certificates that a rotation would affect. It changes nothing.
	CountRotation(ctx context.Context, r Request) (Counts, error)
	// StartRotation makes a rotation durable. Everything that the selection names must be on record. It refuses a
	// rotation according to [Counts.Check] and [CheckOpen]. If the actor repeats a request ID, it changes nothing and
	// returns the rotation of the first request.
	StartRotation(ctx context.Context, r Request) (Rotation, error)
	// EndRotation ends a rotation, and returns it. If it has ended before, EndRotation changes nothing. If several servers
	// share the store, only the leader ends a rotation that no operator has stopped. To others, EndRotation returns an error
	// that wraps [pki.ErrNotLeader].
	EndRotation(ctx context.Context, e End) (Rotation, error)
}

// End is the end of a rotation.
type End struct {
	ID      int64
	Stopped bool // by an operator
	Final   Progress
	Actor   pki.Actor
	At      time.Time
}

// Reader reads rotations.
type Reader interface {
	// Rotation returns a rotation, or a refusal if it is not on record.
	Rotation(ctx context.Context, id int64) (Rotation, error)
	// Rotations returns a page of at most limit rotations, newest first. It also returns the start of the next page, or
	// zero if there is none. The page starts after the rotation with the ID after, or with the newest one if after is
	// zero.
	Rotations(ctx context.Context, after int64, limit int) ([]Rotation, int64, error)
	// OpenRotations returns the rotations that are open, oldest first.
	OpenRotations(ctx context.Context) ([]Rotation, error)
	Members
}

// Members reads the certificates that a rotation affects. If the labels of an identity have changed since the start of
// the rotation, the current ones count.
type Members interface {
	// RotationMembers calls visit with the certificates of a rotation that were not renewed, some thousands at a time. It
	// must not keep the slice.
	RotationMembers(ctx context.Context, id int64, visit func([]pki.CertRef) error) error
	// RotationProgress returns the progress of a rotation at the given time.
	RotationProgress(ctx context.Context, id int64, at time.Time) (Progress, error)
}
