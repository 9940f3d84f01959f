package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/brevet-pki/brevet/enroll"
)

// state is the agent's state in one word, as the status command prints it.
type state string

// The states. With the first two the exit code is 0.
const (
	stateOK           state = "ok"            // the certificate is valid, and nothing has failed since it was issued
	stateRetrying     state = "retrying"      // the last renewal failed; the certificate is valid, and the agent will retry
	stateReloadFailed state = "reload_failed" // the reload command has not yet succeeded with this certificate
	stateRefused      state = "refused"       // the server refuses to renew the certificate
	stateOverdue      state = "overdue"       // the time of the next renewal or retry has passed
	stateExpired      state = "expired"
	stateDamaged      state = "damaged"      // reading the credential failed
	stateUnreadable   state = "unreadable"   // this user has no permission to read the credential
	stateNotEnrolled  state = "not_enrolled" // there is no credential
)

// report is the output of the status command. If the credential cannot be read, the fields that come from it are empty.
type report struct {
	State state `json:"state"`
	// Problem says what is wrong, and NextStep how to correct it. Both are empty if State is ok.
	Problem  string `json:"problem,omitempty"`
	NextStep string `json:"next_step,omitempty"`
	// AgentRunning is nil if the user has no permission to see whether the agent runs.
	AgentRunning *bool     `json:"agent_running,omitempty"`
	Identity     string    `json:"identity,omitempty"`
	Serial       string    `json:"serial,omitempty"`
	Issuer       string    `json:"issuer,omitempty"`
	NotBefore    time.Time `json:"not_before,omitzero"`
	NotAfter     time.Time `json:"not_after,omitzero"`
	// RenewAt is the time of the agent's next renewal or retry. It is zero if no agent has recorded one.
	RenewAt        time.Time       `json:"renew_at,omitzero"`
	LastError      *enroll.Failure `json:"last_error,omitempty"`
	RenewalFailure *enroll.Failure `json:"renewal_failure,omitempty"`
	ReloadFailure  *enroll.Failure `json:"reload_failure,omitempty"`
	ReloadAt       time.Time       `json:"reload_at,omitzero"` // when the agent runs the reload command again
	Server         string          `json:"server,omitempty"`
	Directory      string          `json:"directory"`
	// Evidence lists the configuration keys of the kinds of evidence that the agent enrolls with.
	Evidence []string `json:"evidence,omitempty"`
}

func statusCommand(args []string, s streams) error {
	set, flags, err := parseFlags("status", args)
	if err != nil {
		return err
	}
	asJSON, err := wantsJSON(flags)
	if err != nil {
		return err
	}
	r := set.report(time.Now())
	if asJSON {
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

// report reads the directory and determines the state.
func (set settings) report(now time.Time) report {
	r := report{Server: set.Server, Directory: set.StateDir, Evidence: set.kinds(set.TokenFile != "")}
	running, err := enroll.Running(set.StateDir)
	if err == nil {
		r.AgentRunning = &running
	}
	recorded, _ := enroll.ReadStatus(set.StateDir) // without a status file, the status is empty
	pair, err := enroll.ReadPair(set.StateDir)
	if err != nil {
		r.RenewAt, r.LastError = recorded.RenewAt, recorded.Failure
		r.withoutPair(err)
		return r
	}
	r.Identity, r.Serial, r.Issuer = pair.ID().String(), pair.Serial(), pair.Certificate.Issuer.String()
	r.NotBefore, r.NotAfter = pair.Certificate.NotBefore, pair.Certificate.NotAfter
	if r.Server == "" {
		r.Server = pair.Origin.Server
	}
	if recorded.Serial == r.Serial {
		r.RenewAt, r.LastError, r.RenewalFailure = recorded.RenewAt, recorded.Failure, recorded.RenewalFailure
	}
	r.ReloadFailure, r.ReloadAt = recorded.ReloadFailure, recorded.ReloadAt
	r.judge(pair.Expired(now), recorded.Overdue(pair, running, now))
	return r
}

// withoutPair sets the state of a directory whose credential cannot be read.
func (r *report) withoutPair(err error) {
	r.Problem = err.Error()
	switch {
	case errors.Is(err, enroll.ErrNoCredential):
		r.State, r.NextStep = stateNotEnrolled, "get an enrollment token from an operator, then run brevet-agent enroll"
		if r.enrollsWithoutToken() {
			r.NextStep = "start the agent, or run brevet-agent enroll; brevet-agent doctor checks its evidence"
		}
		if r.LastError != nil {
			r.Problem += "; the agent's last try " + failedAt(r.LastError)
			r.NextStep = orElse(r.LastError.Hint, "see to what failed; the agent, or brevet-agent enroll, tries again")
		}
	case errors.Is(err, fs.ErrPermission):
		r.State, r.NextStep = stateUnreadable, "run this as the user of the agent, or as root"
	default:
		r.State, r.NextStep = stateDamaged, r.enrollAgain()
	}
}

// enrollsWithoutToken reports whether the agent has evidence, and no token is part of it.
func (r *report) enrollsWithoutToken() bool {
	return len(r.Evidence) > 0 && !slices.Contains(r.Evidence, "token_file")
}

// enrollAgain returns the next step if only a new enrollment helps.
func (r *report) enrollAgain() string {
	if r.enrollsWithoutToken() {
		return "start the agent, which enrolls again; its policy rule must have replace"
	}
	return "enroll again with a new token, which an operator makes with --replace"
}

// judge sets the state of a credential that was read. If several states apply, it sets the most urgent one.
func (r *report) judge(expired bool, overdue time.Time) {
	failed := r.LastError
	switch {
	case expired:
		r.State, r.Problem = stateExpired, "the certificate expired at "+stamp(r.NotAfter)
		if f := r.RenewalFailure; f != nil {
			r.Problem += "; its last renewal " + failedAt(f)
		} else if failed != nil {
			r.Problem += "; the agent's last try " + failedAt(failed)
		}
		r.NextStep = "let the agent run, which recovers if the policy allows it; otherwise " + r.enrollAgain()
	case !overdue.IsZero():
		r.State, r.Problem = stateOverdue, "the renewal is overdue since "+stamp(overdue)
		if failed != nil {
			r.Problem += "; the last try " + failedAt(failed)
		}
		r.NextStep = r.overdueStep()
	case failed != nil && failed.Final:
		r.State, r.Problem = stateRefused, r.lastTry()+failedAt(failed)
		r.NextStep = orElse(failed.Hint, "ask an operator")
	case r.ReloadFailure != nil:
		r.State, r.Problem = stateReloadFailed, fmt.Sprintf("the reload command %s, %d in a row, so programs may use an older certificate", failedAt(r.ReloadFailure), r.ReloadFailure.Tries)
		r.NextStep = "read what it wrote to the agent's standard error, or run it by hand; the agent runs it again"
	case failed != nil:
		r.State, r.Problem = stateRetrying, r.lastTry()+failedAt(failed)
		r.NextStep = "none while the agent tries again, in time before the certificate expires"
	default:
		r.State = stateOK
	}
}

// lastTry names the last request while the certificate is valid. After a refused renewal it can be an enrollment.
func (r *report) lastTry() string {
	if f := r.RenewalFailure; f != nil && f.Error != r.LastError.Error {
		return "the last try "
	}
	return "the last renewal "
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
	line("evidence", strings.Join(r.Evidence, ", "))
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

// stamp formats a time. It returns "" for the zero time.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
