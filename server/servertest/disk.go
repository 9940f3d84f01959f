package servertest

import (
	"errors"
	"sync/atomic"
)

// Disk is the disk of a World. The zero value has free space.
type Disk struct {
	full, readOnly atomic.Bool
}

// Fill fills the disk, or frees it again.
func (d *Disk) Fill(full bool) { d.full.Store(full) }

// Protect makes the disk read-only, or writable again.
func (d *Disk) Protect(readOnly bool) { d.readOnly.Store(readOnly) }

// Sizes implements telemetry.Disk.
func (d *Disk) Sizes() map[string]int64 { return map[string]int64{"store": 3, "wal": 2, "archive": 1} }

// Free implements telemetry.Disk.
func (d *Disk) Free() (int64, error) {
	switch {
	case d.readOnly.Load():
		return 0, errors.New(Internals)
	case d.full.Load():
		return 1, nil
	}
	return 1 << 40, nil
}
