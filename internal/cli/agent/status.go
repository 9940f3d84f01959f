package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"text/tabwriter"
	"time"

	"github.com/brevet-pki/brevet/enroll"
)

// state is the one word for what the status command found.
type state string

// The states; the first two are in order, with exit code 0.
const (
	stateOK           state = "ok"            // the certificate is valid, and nothing failed since it was obtained
	stateRetrying     state = "retrying"      // the last renewal failed, the certificate is valid, and the next try is to come
	stateReloadFailed state = "reload_failed" // the reload command has not succeeded with this certificate yet
	stateRefused      state = "refused"       // the server refuses to renew the certificate
	stateOverdue      state = "overdue"       // the time to renew, or to try again, has passed
	stateExpired      state = "expired"
	stateDamaged      state = "damaged"      // the credential does not load
	stateUnreadable   state = "unreadable"   // the caller must not read the credential
	stateNotEnrolled  state = "not_enrolled" // there is no credential yet
)

// report is what the status command prints. Where there is no credential that loads, what is read from it is left out.
type report struct {
	State state `json:"state"`
	// Problem says what is wrong, and NextStep what to do about it; empty where State is ok.
	Problem  string `json:"problem,omitempty"`
	NextStep string `json:"next_step,omitempty"`
	// AgentRunning is nil if the user has no permission to see whether the agent runs.
	AgentRunning *bool     `json:"agent_running,omitempty"`
	Identity     string    `json:"identity,omitempty"`
	Serial       string    `json:"serial,omitempty"`
	Issuer       string    `json:"issuer,omitempty"`
	NotBefore    time.Time `json:"not_before,omitzero"`
	NotAfter     time.Time `json:"not_after,omitzero"`
	// RenewAt is when the agent renews, or tries again; unset where no agent has said.
	RenewAt        time.Time       `json:"renew_at,omitzero"`
	LastError      *enroll.Failure `json:"last_error,omitempty"`
	RenewalFailure *enroll.Failure `json:"renewal_failure,omitempty"`
	ReloadFailure  *enroll.Failure `json:"reload_failure,omitempty"`
	ReloadAt       time.Time       `json:"reload_at,omitzero"` // when the reload command runs again
	Server         string          `json:"server,omitempty"`
	Directory      string          `json:"directory"`
}

func statusCommand(args []string, s streams) error {
	set, flags, err := parseFlags("status", args)
	if err != nil {
		return err
	}
	output := value(flags, "output")
	if output != "text" && output != "json" {
		return misusef("status: --output %q is not a format: use text or json", output)
	}
	r := set.report(time.Now())
	if output == "json" {
		encoder := json.NewEncoder(s.out)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(r)
	} else {
		err = r.print(s.out)
	}
	if err != nil || r.State == stateOK || r.State == stateRetrying {
		return err
	}
	return fmt.Errorf("%s: %s", r.Problem, r.NextStep)
}

// report reads what the directory holds and judges it.
func (set settings) report(now time.Time) report {
	r := report{Server: set.Server, Directory: set.StateDir}
	running, err := enroll.Running(set.StateDir)
	if err == nil {
		r.AgentRunning = &running
	}
	said, _ := enroll.ReadStatus(set.StateDir) // an agent that has said nothing yet leaves nothing to show
	pair, err := enroll.ReadPair(set.StateDir)
	if err != nil {
		r.RenewAt, r.LastError = said.RenewAt, said.Failure
		r.withoutPair(err)
		return r
	}
	r.Identity, r.Serial, r.Issuer = pair.ID().String(), pair.Serial(), pair.Certificate.Issuer.String()
	r.NotBefore, r.NotAfter = pair.Certificate.NotBefore, pair.Certificate.NotAfter
	if r.Server == "" {
		r.Server = pair.Origin.Server
	}
	if said.Serial == r.Serial {
		r.RenewAt, r.LastError, r.RenewalFailure = said.RenewAt, said.Failure, said.RenewalFailure
	}
	r.ReloadFailure, r.ReloadAt = said.ReloadFailure, said.ReloadAt
	r.judge(pair.Expired(now), said.Overdue(pair, running, now))
	return r
}

// withoutPair judges a directory whose credential cannot be read.
func (r *report) withoutPair(err error) {
	r.Problem = err.Error()
	switch {
	case errors.Is(err, enroll.ErrNoCredential):
		r.State, r.NextStep = stateNotEnrolled, "get an enrollment token from an operator, then run brevet-agent enroll"
		if r.LastError != nil {
			r.Problem += "; the agent's last try " + failedAt(r.LastError)
			r.NextStep = orElse(r.LastError.Hint, "see to what failed; the agent, or brevet-agent enroll, tries again")
		}
	case errors.Is(err, fs.ErrPermission):
		r.State, r.NextStep = stateUnreadable, "run this as the user of the agent, or as root"
	default:
		r.State, r.NextStep = stateDamaged, "enroll again with a new token, which an operator makes with --replace"
	}
}

// judge sets the state of a credential that loads, by the most urgent of what is wrong with it.
func (r *report) judge(expired bool, overdue time.Time) {
	failed := r.LastError
	switch {
	case expired:
		r.State, r.Problem = stateExpired, "the certificate expired at "+stamp(r.NotAfter)
		if f := r.lastCause(); f != nil {
			r.Problem += "; its last renewal " + failedAt(f)
		}
		r.NextStep = "enroll again with a new token, which an operator makes with --replace"
	case !overdue.IsZero():
		r.State, r.Problem = stateOverdue, "the renewal is overdue since "+stamp(overdue)
		if failed != nil {
			r.Problem += "; the last try " + failedAt(failed)
		}
		r.NextStep = r.overdueStep()
	case failed != nil && failed.Final:
		r.State, r.Problem = stateRefused, "the last renewal "+failedAt(failed)
		r.NextStep = orElse(failed.Hint, "ask an operator")
	case r.ReloadFailure != nil:
		r.State, r.Problem = stateReloadFailed, fmt.Sprintf("the reload command %s, %d in a row, so programs may use an older certificate", failedAt(r.ReloadFailure), r.ReloadFailure.Tries)
		r.NextStep = "read what it wrote to the agent's standard error, or run it by hand; the agent runs it again"
	case failed != nil:
		r.State, r.Problem = stateRetrying, "the last renewal "+failedAt(failed)
		r.NextStep = "none while the agent tries again, in time before the certificate expires"
	default:
		r.State = stateOK
	}
}

// lastCause returns why the certificate was not renewed, as far as it is known.
func (r *report) lastCause() *enroll.Failure {
	if r.RenewalFailure != nil {
		return r.RenewalFailure
	}
	return r.LastError
}

func (r *report) overdueStep() string {
	switch {
	case r.AgentRunning == nil:
		return "look whether the agent runs, and at its log"
	case *r.AgentRunning:
		return "look at the log of the agent, which runs: a disk that is full or read-only keeps it from renewing"
	}
	return "start the agent, which does not run: systemctl start brevet-agent, or brevet-agent run"
}

func (r *report) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, text string) {
		if text != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, text)
		}
	}
	line("state", string(r.State))
	line("problem", r.Problem)
	line("next step", r.NextStep)
	line("agent", r.agent())
	line("identity", r.Identity)
	line("serial", r.Serial)
	line("issuer", r.Issuer)
	line("valid from", stamp(r.NotBefore))
	line("valid until", stamp(r.NotAfter))
	if r.LastError == nil {
		line("renews", orElse(stamp(r.RenewAt), "unknown: no agent has said"))
		line("last error", "none")
	} else {
		line("tries again", stamp(r.RenewAt))
		line("last error", counted(r.LastError))
	}
	if f := r.RenewalFailure; f != nil && (r.LastError == nil || f.Error != r.LastError.Error) {
		line("renewal", counted(f))
	}
	if r.ReloadFailure != nil {
		line("reload", counted(r.ReloadFailure))
		line("runs again", stamp(r.ReloadAt))
	}
	line("server", r.Server)
	line("files", r.Directory+"/current")
	return t.Flush()
}

func (r *report) agent() string {
	switch {
	case r.AgentRunning == nil:
		return "unknown"
	case *r.AgentRunning:
		return "running"
	}
	return "not running"
}

func failedAt(f *enroll.Failure) string { return fmt.Sprintf("failed at %s: %s", stamp(f.At), f) }

func counted(f *enroll.Failure) string {
	return fmt.Sprintf("%s, %d in a row: %s", stamp(f.At), f.Tries, f)
}

func orElse(text, other string) string {
	if text == "" {
		return other
	}
	return text
}

// stamp formats a time, and the zero time as nothing.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
