package enroll

import (
	"encoding/json"
	"fmt"
	"path/filepath"
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
	// Reloaded is the serial for which the reload command ran and succeeded last.
	Reloaded string `json:"reloaded,omitempty"`
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
	Fix  string   `json:"fix,omitempty"`
}

func failureOf(err error, tries int, now time.Time) *Failure {
	f := &Failure{At: now, Tries: tries, Error: err.Error(), Final: final(err)}
	if refusal, ok := pki.AsRefusal(err); ok {
		f.Error, f.Rule, f.Fix = refusal.Detail, refusal.Rule, refusal.Fix
	}
	return f
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
