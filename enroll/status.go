package enroll

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Status describes an agent's state for operators. The agent works correctly even if the file is out of date.
type Status struct {
	// Serial is the serial number of the certificate that the status describes, empty if there is none.
	Serial string `json:"serial,omitempty"`
	// RenewAt is the time of the next renewal. If Failure is set, it is the time of the next try.
	RenewAt time.Time `json:"renew_at,omitzero"`
	// Failure is why the last try failed, or nil if it succeeded.
	Failure *Failure `json:"failure,omitempty"`
	// RenewalFailure is why the last renewal of the certificate failed. It is kept until there is a new certificate,
	// also if Failure later has another cause, such as an expired certificate without a token.
	RenewalFailure *Failure `json:"renewal_failure,omitempty"`
	// Reloaded is the serial number for which the reload command last succeeded.
	Reloaded string `json:"reloaded,omitempty"`
	// ReloadedBundle is the revision of the trust bundle for which the reload command last succeeded.
	ReloadedBundle string `json:"reloaded_bundle,omitempty"`
	// ReloadFailure is why the reload command last failed, or nil if it succeeded. The agent runs the command again at
	// ReloadAt.
	ReloadFailure *Failure  `json:"reload_failure,omitempty"`
	ReloadAt      time.Time `json:"reload_at,omitzero"`
}

// Failure describes the last failure of a task, and how many failures there were in a row.
type Failure struct {
	At    time.Time `json:"at"`
	Tries int       `json:"tries"` // number of consecutive failures
	Error string    `json:"error"`
	// Final reports that the server refused the request. The agent then retries only at long intervals.
	Final bool `json:"final,omitempty"`
	// Rule and Hint come from the server: the rule that the request violated, and what the operator can do.
	Rule pki.Rule `json:"rule,omitempty"`
	Hint string   `json:"hint,omitempty"`
}

// String returns the error, followed by the rule in brackets if there is one.
func (f *Failure) String() string {
	if f.Rule == "" {
		return f.Error
	}
	return f.Error + " [" + string(f.Rule) + "]"
}

// failureOf returns the Failure for an error after a number of consecutive failures.
func failureOf(err error, tries int, now time.Time) *Failure {
	f := &Failure{At: now, Tries: tries, Error: err.Error(), Final: final(err)}
	if refusal, ok := pki.AsRefusal(err); ok {
		f.Error, f.Rule, f.Hint = refusal.Detail, refusal.Rule, refusal.Hint
		if after := (*afterRecoveryError)(nil); errors.As(err, &after) {
			f.Error += after.cause()
		}
	}
	return f
}

// Overdue returns the time at which the agent should have renewed the pair or retried, if that time has passed.
// Otherwise it returns the zero time. For a running agent, it adds the timeout of one RPC.
func (s Status) Overdue(p *Pair, running bool, now time.Time) time.Time {
	due := s.RenewAt
	if s.Serial != p.Serial() || due.IsZero() { // no agent ran with this pair, or it could not write the status
		due = latestRenewal(p)
	}
	grace := time.Duration(0)
	if running {
		grace = timeoutFor(p, due)
	}
	if now.After(due.Add(grace)) {
		return due
	}
	return time.Time{}
}

// ReadStatus reads the status from an agent's directory. If there is none, the error wraps fs.ErrNotExist.
func ReadStatus(path string) (Status, error) {
	var s Status
	data, err := readFile(filepath.Join(path, statusName))
	if err != nil {
		return s, fmt.Errorf("read the agent's status: %w", err)
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("%s does not parse: %w", filepath.Join(path, statusName), err)
	}
	return s, nil
}

// Running reports whether an agent runs on a directory. It briefly tries to take the directory's lock.
func Running(path string) (bool, error) {
	f, err := os.Open(filepath.Join(path, lockName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for an agent: %w", err)
	}
	defer func() { _ = f.Close() }() // also releases the lock
	switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("look for an agent: %w", err)
	}
	return false, nil
}

func (d *Directory) writeStatus(s Status) error {
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode the agent's status: %w", err)
	}
	if err := d.disk.replace(filepath.Join(d.path, statusName), append(data, '\n')); err != nil {
		return fmt.Errorf("write the agent's status: %w", err)
	}
	return nil
}
