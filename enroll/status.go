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

// Status is what an agent says of itself, for people to read: nothing depends on it being current.
type Status struct {
	// Serial is the certificate that it speaks of, empty where there is none yet.
	Serial string `json:"serial,omitempty"`
	// RenewAt is when the certificate is renewed; where Failure is set, when the next try is.
	RenewAt time.Time `json:"renew_at,omitzero"`
	// Failure is why the last try failed, nil where it succeeded.
	Failure *Failure `json:"failure,omitempty"`
	// RenewalFailure is why the certificate was not renewed when that was tried last. It stays beside a later Failure,
	// such as that the certificate expired and there is no token, and goes with the next certificate.
	RenewalFailure *Failure `json:"renewal_failure,omitempty"`
	// Reloaded is the serial for which the reload command ran and succeeded last.
	Reloaded string `json:"reloaded,omitempty"`
	// ReloadFailure is why the reload command failed last, nil where it succeeded. It runs again at ReloadAt.
	ReloadFailure *Failure  `json:"reload_failure,omitempty"`
	ReloadAt      time.Time `json:"reload_at,omitzero"`
}

// Failure is the last of some tries that failed.
type Failure struct {
	At    time.Time `json:"at"`
	Tries int       `json:"tries"` // in a row
	Error string    `json:"error"`
	// Final says that the server refused and that the agent asks only now and then.
	Final bool `json:"final,omitempty"`
	// Rule and Fix are the server's: the name of the rule that was met, and the next step.
	Rule pki.Rule `json:"rule,omitempty"`
	Hint string   `json:"fix,omitempty"`
}

// String returns the error, and the rule in brackets where there is one.
func (f *Failure) String() string {
	if f.Rule == "" {
		return f.Error
	}
	return f.Error + " [" + string(f.Rule) + "]"
}

func failureOf(err error, tries int, now time.Time) *Failure {
	f := &Failure{At: now, Tries: tries, Error: err.Error(), Final: final(err)}
	if refusal, ok := pki.AsRefusal(err); ok {
		f.Error, f.Rule, f.Hint = refusal.Detail, refusal.Rule, refusal.Hint
	}
	return f
}

// Overdue returns the time by which the agent should have asked for the successor of a pair, or tried again, if that time
// has passed; the zero time if it has not. An agent that runs may take as long as one call does.
func (s Status) Overdue(p *Pair, running bool, now time.Time) time.Time {
	due := s.RenewAt
	if s.Serial != p.Serial() || due.IsZero() { // the agent could not write it, or none ran
		due = latestRenewal(p)
	}
	grace := time.Duration(0)
	if running {
		grace = deadline(p, due)
	}
	if now.After(due.Add(grace)) {
		return due
	}
	return time.Time{}
}

// ReadStatus reads what the agent of a directory last said. The error is fs.ErrNotExist where it has said nothing yet.
func ReadStatus(path string) (Status, error) {
	var s Status
	data, err := readFile(filepath.Join(path, statusName))
	if err != nil {
		return s, fmt.Errorf("enroll: read the agent's status: %w", err)
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("enroll: %s does not parse: %w", filepath.Join(path, statusName), err)
	}
	return s, nil
}

// Running reports whether an agent runs on a directory, which it keeps locked. It holds the lock itself for an instant.
func Running(path string) (bool, error) {
	f, err := os.Open(filepath.Join(path, lockName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("enroll: look for an agent: %w", err)
	}
	defer func() { _ = f.Close() }() // which unlocks
	switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("enroll: look for an agent: %w", err)
	}
	return false, nil
}

func (d *Directory) writeStatus(s Status) error {
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("enroll: encode the agent's status: %w", err)
	}
	if err := d.disk.replace(filepath.Join(d.path, statusName), append(data, '\n')); err != nil {
		return fmt.Errorf("enroll: write the agent's status: %w", err)
	}
	return nil
}
