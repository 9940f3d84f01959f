package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/brevet-pki/brevet/enroll"
)

// report is what the status command prints.
type report struct {
	Identity  string    `json:"identity"`
	Serial    string    `json:"serial"`
	Issuer    string    `json:"issuer"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Expired   bool      `json:"expired"`
	// RenewAt is when the agent renews, or tries again; unset where no agent has said.
	RenewAt   time.Time       `json:"renew_at,omitzero"`
	LastError *enroll.Failure `json:"last_error,omitempty"`
	Server    string          `json:"server,omitempty"`
	Directory string          `json:"directory"`
}

func statusCommand(args []string, s streams) error {
	set, flags, err := parseFlags("status", args)
	if err != nil {
		return err
	}
	output := value(flags, "output")
	if output != "text" && output != "json" {
		return misusef("status: --output %q is no format: use text or json", output)
	}
	said, _ := enroll.ReadStatus(set.Directory) // an agent that has said nothing yet leaves nothing to show
	pair, err := enroll.ReadPair(set.Directory)
	if errors.Is(err, enroll.ErrNoCredential) {
		return notEnrolled(err, said)
	}
	if err != nil {
		return err
	}
	r := set.report(pair, said, time.Now())
	if output == "json" {
		encoder := json.NewEncoder(s.out)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(r)
	} else {
		err = r.print(s.out)
	}
	if err == nil && r.Expired {
		return fmt.Errorf("the certificate ended at %s: enroll again with a new token", stamp(r.NotAfter))
	}
	return err
}

func notEnrolled(err error, said enroll.Status) error {
	if f := said.Failure; f != nil {
		return fmt.Errorf("%w; the agent's last try failed at %s: %s%s", err, stamp(f.At), f.Error, inBrackets(f))
	}
	return fmt.Errorf("%w: get an enrollment token from an operator, then run brevet-agent enroll", err)
}

func (set settings) report(p *enroll.Pair, said enroll.Status, now time.Time) report {
	r := report{
		Identity: p.ID().String(), Serial: p.Serial(), Issuer: p.Certificate.Issuer.String(),
		NotBefore: p.Certificate.NotBefore, NotAfter: p.Certificate.NotAfter, Expired: p.Expired(now),
		Server: set.Server, Directory: set.Directory,
	}
	if r.Server == "" {
		r.Server = p.Origin.Server
	}
	if said.Serial == r.Serial {
		r.RenewAt, r.LastError = said.RenewAt, said.Failure
	}
	return r
}

func (r report) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(t, name+"\t"+format+"\n", args...) }
	line("identity", "%s", r.Identity)
	line("serial", "%s", r.Serial)
	line("issuer", "%s", r.Issuer)
	line("valid from", "%s", stamp(r.NotBefore))
	line("valid until", "%s", stamp(r.NotAfter))
	switch {
	case r.RenewAt.IsZero():
		line("renews", "nobody has said: is the agent running?")
	case r.LastError != nil:
		line("tries again", "%s", stamp(r.RenewAt))
	default:
		line("renews", "%s", stamp(r.RenewAt))
	}
	if f := r.LastError; f != nil {
		line("last error", "%s, %d in a row: %s%s", stamp(f.At), f.Tries, f.Error, inBrackets(f))
		if f.Fix != "" {
			line("next step", "%s", f.Fix)
		}
	} else {
		line("last error", "none")
	}
	line("server", "%s", r.Server)
	line("files", "%s/current", r.Directory)
	return t.Flush()
}

func inBrackets(f *enroll.Failure) string {
	if f.Rule == "" {
		return ""
	}
	return " [" + string(f.Rule) + "]"
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
