package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/enroll/tpm"
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
	agent, done, err := set.agent(log, s.err)
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

// agent locks the state directory and returns the agent for it. The reload command writes to output if output is a
// file. The caller must call done at the end.
func (set settings) agent(log *slog.Logger, output io.Writer) (agent *enroll.Agent, done func(), err error) {
	client, err := enroll.NewClient(set.Server)
	if err != nil {
		return nil, nil, err
	}
	attestation, err := set.attestation(client)
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
	if set.Key.TPM != "" {
		dir.KeepKeysIn(tpm.New(set.Key.TPM))
	}
	file, _ := output.(*os.File)
	agent, err = enroll.NewAgent(enroll.Config{
		Directory: dir, Authority: client, Token: set.token, Attestation: attestation, Identity: set.Identity, Lifetime: set.Lifetime, KeyType: set.Key.Type,
		Reload: set.Reload, ReloadOutput: file, Log: log,
	})
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
	token, err := set.tokenToSpend(value(flags, "token-file"), s.in)
	if err != nil {
		return err
	}
	log := set.logger(s.err)
	agent, done, err := set.agent(log, s.err)
	if err != nil {
		return err
	}
	defer done()
	if p := agent.Pair(); p != nil && p.Origin.Token == token.Secret.ID().String() && !p.Expired(time.Now()) {
		s.printResult(log, "enrolled with this token already: "+set.describe(p))
		return nil
	}
	if err := agent.Enroll(ctx, token); err != nil {
		if _, refused := pki.AsRefusal(err); !refused && pki.IsTemporary(err) {
			return fmt.Errorf("%w: try again, with the same token and directory", err)
		}
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

// tokenToSpend reads the token from the file in --token-file, or from the configured file.
func (set settings) tokenToSpend(file string, in io.Reader) (enroll.Token, error) {
	if file != "" {
		return enroll.ReadTokenFile(file, in)
	}
	if set.TokenFile == "" {
		return enroll.Token{}, misusef("enroll needs a token: give --token-file FILE, --token-file - for standard input, or set token_file")
	}
	return enroll.ReadTokenFile(set.TokenFile, in)
}

func (set settings) describe(p *enroll.Pair) string {
	return fmt.Sprintf("%s, serial %s, valid until %s, in %s",
		p.ID(), p.Serial(), stamp(p.Certificate.NotAfter), filepath.Join(set.StateDir, "current"))
}
