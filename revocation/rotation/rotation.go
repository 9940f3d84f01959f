package rotation

import (
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// The range of Request.Over.
const (
	MinOver = time.Second
	MaxOver = 90 * 24 * time.Hour
)

// MaxOpen is the maximum number of open rotations: each has one of the marks of a certificate.
const MaxOpen = 8

// Request requests a rotation of the certificates that the selection matches at the time of the request. It affects those
// that have not expired, are not revoked, and were not renewed yet.
type Request struct {
	pki.Selection
	// Over is the period over which the renewals are spread, in whole milliseconds.
	Over time.Duration
	// Confirm is the number of affected certificates that the caller confirms. A rotation on record has none.
	Confirm int
	Actor   pki.Actor
	Comment string
	At      time.Time
}

// Rotation is a rotation on record.
type Rotation struct {
	ID int64
	Request
	Affected int // certificates
	// EndedAt is zero while the rotation is open.
	EndedAt time.Time
	Stopped bool // by an operator
	// Final is the progress at the end; zero while the rotation is open.
	Final Progress
}

// Progress counts the affected certificates of a rotation.
type Progress struct {
	Renewed int // the identity got a newer certificate since the start
	Due     int // neither renewed nor expired nor revoked
}

// Gone returns the number of certificates that were not renewed, and that expired or were revoked.
func (r *Rotation) Gone(p Progress) int { return max(0, r.Affected-p.Renewed-p.Due) }

// State is the state of a rotation.
type State uint8

// A rotation is open until none of its certificates is due, or until an operator stops it.
const (
	Open State = iota + 1
	Completed
	Stopped
)

// State returns the state of the rotation.
func (r *Rotation) State() State {
	switch {
	case r.EndedAt.IsZero():
		return Open
	case r.Stopped:
		return Stopped
	default:
		return Completed
	}
}

// Counts are the numbers of certificates at the time of a request.
type Counts struct {
	Affected int
	Living   int // neither expired nor revoked
}

// NeedsConfirmation reports whether a rotation affects more than a tenth of the living certificates.
func (c Counts) NeedsConfirmation() bool { return 10*c.Affected > c.Living }

// Check returns a refusal if the rotation affects no certificate, or if the given number does not confirm that of the
// affected certificates. Zero is no confirmation, which is enough for a rotation that needs none. The number may differ by
// one percent, because certificates are renewed and expire after the caller has counted them.
func (c Counts) Check(confirm int) error {
	hint := fmt.Sprintf("check the selection, then confirm %d certificates", c.Affected)
	switch near := c.Affected / 100; {
	case c.Affected == 0:
		return pki.Refuse(pki.RuleNotFound, "look with brevet cert list for certificates that are good and not renewed",
			"the selection matches no certificate that could be rotated")
	case confirm == 0 && c.NeedsConfirmation():
		return pki.Refuse(pki.RuleUnconfirmed, hint, "the rotation affects %d of %d living certificates, more than a tenth", c.Affected, c.Living)
	case confirm != 0 && (confirm < c.Affected-near || confirm > c.Affected+near):
		return pki.Refuse(pki.RuleUnconfirmed, hint, "the rotation affects %d of %d living certificates, and %d were confirmed", c.Affected, c.Living, confirm)
	default:
		return nil
	}
}

// CheckOpen refuses a rotation if too many are open already.
func CheckOpen(open int) error {
	if open < MaxOpen {
		return nil
	}
	return pki.Refuse(pki.RuleOverloaded, "stop one that is no longer needed", "%d rotations are open", open)
}

// check returns a refusal if the request is invalid, whatever the store contains. Otherwise it returns nil.
func (r Request) check() error {
	if r.IsZero() {
		return pki.Refuse(pki.RuleRequest, "select by issuer, identity, key, profile, label or time of issue",
			"an empty selection would match all certificates")
	}
	if !r.LineageOf.IsZero() {
		return pki.Refuse(pki.RuleRequest, "select the identity of the certificate", "a rotation cannot select a lineage")
	}
	if err := r.Check(); err != nil {
		return err
	}
	if r.Over < MinOver || r.Over > MaxOver {
		return pki.Refuse(pki.RuleRequest, fmt.Sprintf("give a period between %v and %d days", MinOver, MaxOver/(24*time.Hour)),
			"a rotation cannot last %v", r.Over)
	}
	return pki.CheckText("the comment", r.Comment)
}
