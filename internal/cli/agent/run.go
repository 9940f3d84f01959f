package agent

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
)

func runCommand(ctx context.Context, args []string, s streams) error {
	set, flags, err := parseFlags("run", args)
	if err != nil {
		return err
	}
	serviceLog := set.serviceLog(ctx, flags, s.err)
	defer serviceLog.Close()
	log := serviceLog.Logger
	agent, done, err := set.agent(log, s.err, set.TokenFile != "")
	if err != nil {
		return err
	}
	defer done()
	go agent.Watch(ctx, func(p *enroll.Pair) {
		if !p.Expired(time.Now()) {
			notify(log, daemon.SdNotifyReady)
		}
	})
	err = agent.Run(ctx)
	notify(log, daemon.SdNotifyStopping)
	return err
}

// notify sends a state to systemd if systemd started the agent and expects notifications.
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("notifying systemd failed", "state", state, "error", err)
	}
}

// agent locks the state directory and returns the agent for it. hasToken says whether the agent enrolls with a token.
// The reload command writes to output if output is a file. The caller must call done at the end.
func (set settings) agent(log *slog.Logger, output io.Writer, hasToken bool) (agent *enroll.Agent, done func(), err error) {
	if err := cmp.Or(set.checkEvidence(hasToken), set.checkServer(hasToken)); err != nil {
		return nil, nil, err
	}
	client, err := enroll.NewClient(set.Server)
	if err != nil {
		return nil, nil, err
	}
	dir, err := enroll.OpenDirectory(set.StateDir, log)
	if err != nil {
		return nil, nil, err
	}
	done = func() { _ = dir.Close() } // releases the lock, as does the end of the process
	if err := set.shareKey(dir); err != nil {
		done()
		return nil, nil, err
	}
	device := set.device()
	if set.Key.TPM != "" {
		dir.KeepKeysIn(device)
	}
	file, _ := output.(*os.File)
	c := enroll.Config{
		Directory: dir, Authority: client, Evidence: set.evidence(device), Bootstrap: set.bootstrap(), Identity: set.Identity, Lifetime: set.Lifetime,
		KeyType: set.Key.Type, Reload: set.Reload, ReloadOutput: file, Log: log,
	}
	if hasToken || c.Evidence == nil {
		c.Token = set.token
	}
	agent, err = enroll.NewAgent(c)
	if err != nil {
		done()
		return nil, nil, err
	}
	return agent, done, nil
}

func enrollCommand(ctx context.Context, args []string, s streams) error {
	set, flags, err := parseFlags("enroll", args)
	if err != nil {
		return err
	}
	file := value(flags, "token-file")
	hasToken := file != "" || set.TokenFile != ""
	if !hasToken && len(set.kinds(false)) == 0 {
		return misusef("enroll needs a token: give --token-file FILE, --token-file - for standard input, or set token_file; " +
			"or set factory_certificate, attestation or jwt")
	}
	var token enroll.Token
	if hasToken {
		if token, err = enroll.ReadTokenFile(cmp.Or(file, set.TokenFile), s.in); err != nil {
			return err
		}
	}
	log := set.logger(s.err)
	agent, done, err := set.agent(log, s.err, hasToken)
	if err != nil {
		return err
	}
	defer done()
	held := agent.Pair()
	if held != nil && held.Expired(time.Now()) {
		held = nil
	}
	again := "the same directory"
	switch {
	case !hasToken && held != nil:
		s.printResult(log, "enrolled already: "+set.describe(held))
		return nil
	case !hasToken:
		err = agent.Ensure(ctx)
	case held != nil && held.Origin.Token == token.Subject():
		s.printResult(log, "enrolled with this token already: "+set.describe(held))
		return nil
	default:
		again = "the same token and directory"
		err = agent.Enroll(ctx, token)
	}
	if _, refused := pki.AsRefusal(err); !refused && pki.IsTemporary(err) {
		return fmt.Errorf("%w: try again, with %s", err, again)
	}
	if err != nil {
		return err
	}
	s.printResult(log, "enrolled: "+set.describe(agent.Pair()))
	return nil
}

// printResult writes a line about the result to standard output. If that fails, it logs the line, and the
// command still succeeds.
func (s streams) printResult(log *slog.Logger, line string) {
	if _, err := fmt.Fprintln(s.out, line); err != nil {
		log.Warn("standard output takes nothing; the command succeeded", "output", line, "error", err)
	}
}

func (set settings) describe(p *enroll.Pair) string {
	return fmt.Sprintf("%s, serial %s, valid until %s, in %s",
		p.ID(), p.Serial(), stamp(p.Certificate.NotAfter), filepath.Join(set.StateDir, "current"))
}
