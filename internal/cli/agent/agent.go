// Package agent contains the commands of brevet-agent, which gets a certificate for a machine and renews it. It uses
// neither cobra nor cgo.
package agent

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/brevet-pki/brevet/internal/agentcli"
	"github.com/brevet-pki/brevet/internal/config"
	"github.com/brevet-pki/brevet/internal/memory"
)

// misuse is an error in the command line or the configuration. Its exit code is 2.
type misuse struct{ error }

func (m misuse) Unwrap() error { return m.error }

func misusef(format string, args ...any) error { return misuse{fmt.Errorf(format, args...)} }

// streams are standard input, standard output and standard error of a command.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// Run executes the command line of this process and returns the exit code: 0 for success, 1 for a command that failed,
// 2 for an error in the command line or the configuration. version is the version that the version command prints.
func Run(version string) int {
	memory.SetLimit()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process, even during a prompt
	return execute(ctx, version, os.Args[1:], streams{os.Stdin, os.Stdout, os.Stderr})
}

// execute runs one command and returns the exit code.
func execute(ctx context.Context, version string, args []string, s streams) int {
	err := command(ctx, version, args, s)
	var wrong misuse
	var setting *config.Error
	switch {
	case err == nil:
		return 0
	case errors.Is(err, flag.ErrHelp):
		agentcli.Help(s.out)
		return 0
	case errors.As(err, &wrong), errors.As(err, &setting):
		fmt.Fprintln(s.err, "brevet-agent:", err)
		return 2
	default:
		fmt.Fprintln(s.err, "brevet-agent:", err.Error()+ofDisk(err))
		return 1
	}
}

// ofDisk returns the next step after a write to a full or read-only disk, or "" for any other error.
func ofDisk(err error) string {
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return ": free some on its disk, and repeat the command"
	case errors.Is(err, syscall.EROFS):
		return ": make it writable, and repeat the command"
	}
	return ""
}

func command(ctx context.Context, version string, args []string, s streams) error {
	if len(args) == 0 {
		return misusef("name a command: %s", agentcli.Names())
	}
	name, rest := args[0], args[1:]
	switch name {
	case "run":
		return runCommand(ctx, rest, s)
	case "enroll":
		return enrollCommand(ctx, rest, s)
	case "status":
		return statusCommand(rest, s)
	case "doctor":
		return doctorCommand(ctx, rest, s)
	case "evidence":
		return evidenceCommand(rest, s)
	case "version":
		if _, _, err := parseFlags(name, rest); err != nil {
			return err
		}
		_, err := fmt.Fprintln(s.out, "brevet-agent", version)
		return err
	case agentcli.CompleteCommand:
		agentcli.Complete(s.out, rest)
		return nil
	case "help", "-h", "-help", "--help":
		return flag.ErrHelp
	default:
		return misusef("%q is no command: use %s", name, agentcli.Names())
	}
}

// parseFlags parses the flags of a command. If the command has the flag --config, parseFlags also loads the settings.
func parseFlags(name string, args []string) (settings, *flag.FlagSet, error) {
	c, _ := agentcli.Find(name)
	flags := c.FlagSet()
	flags.SetOutput(io.Discard) // the returned error contains the message
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return settings{}, flags, err
	case err != nil:
		return settings{}, flags, misusef("%s: %w (brevet-agent help explains the flags)", name, err)
	case flags.NArg() > 0:
		return settings{}, flags, misusef("%s takes no argument %q (brevet-agent help explains the flags)", name, flags.Arg(0))
	case flags.Lookup("config") == nil:
		return settings{}, flags, nil
	}
	file, values := value(flags, "config"), keyValues(name, flags)
	if file == "" && os.Getenv("BREVET_AGENT_STATE_DIR") == "" && value(flags, "directory") == "" {
		return settings{}, flags, misusef("%s needs --config FILE or --directory DIR", name)
	}
	set, err := loadSettings(file, values)
	if err == nil {
		err = config.Attribute(set.checkEvidence(set.TokenFile != ""), file, values)
	}
	return set, flags, err
}

func value(flags *flag.FlagSet, name string) string { return flags.Lookup(name).Value.String() }

// wantsJSON reports whether the flag --output says json.
func wantsJSON(flags *flag.FlagSet) (bool, error) {
	switch output := value(flags, "output"); output {
	case "json":
		return true, nil
	case "text":
		return false, nil
	default:
		return false, misusef("%s: --output %q is not a format: use text or json", flags.Name(), output)
	}
}

// keyValues returns the values of the flags that override configuration keys. The --token-file of the enroll command
// overrides no key.
func keyValues(command string, flags *flag.FlagSet) []config.Value {
	overridden := map[string]string{"directory": "state_dir"}
	switch command {
	case "run":
		overridden["token-file"] = "token_file"
	case "enroll":
		overridden["identity"] = "identity"
	}
	var values []config.Value
	flags.Visit(func(f *flag.Flag) {
		if key := overridden[f.Name]; key != "" {
			values = append(values, config.Value{Key: key, Text: f.Value.String(), Origin: config.FromFlag, Name: "--" + f.Name})
		}
	})
	return values
}
