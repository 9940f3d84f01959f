// Command brevet-agent gets a machine its certificate and keeps it fresh. It exits with 0, with 1 when a command
// failed, and with 2 when it was used wrongly: an unknown flag, or a configuration that does not hold.
//
// It refuses to take a token from its command line or its environment, where other users could read it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/brevet-pki/brevet/cmd/internal/config"
)

// version is set when the binary is built.
var version = "dev"

const usage = `usage: brevet-agent <command> [flags]

  run     WHERE [--token-file FILE]  get a certificate, and renew it until stopped
  enroll  WHERE [--token-file FILE]  spend an enrollment token, from FILE or, with -, from standard input
  status  WHERE [--output json]      show what this machine holds, and what comes next
  version                            show the version

WHERE is --config FILE, or --directory DIR where the directory of the credential is all there is to say.
`

// misuse is an error of whoever typed the command or wrote the configuration.
type misuse struct{ error }

func (m misuse) Unwrap() error { return m.error }

func misusef(format string, args ...any) error { return misuse{fmt.Errorf(format, args...)} }

// streams are what a command reads and writes.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := execute(ctx, os.Args[1:], streams{os.Stdin, os.Stdout, os.Stderr})
	stop()
	os.Exit(code)
}

// execute runs one command and returns the exit code.
func execute(ctx context.Context, args []string, s streams) int {
	err := command(ctx, args, s)
	var wrong misuse
	var setting *config.Error
	switch {
	case err == nil:
		return 0
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(s.out, usage)
		return 0
	case errors.As(err, &wrong), errors.As(err, &setting):
		fmt.Fprintln(s.err, "brevet-agent:", err)
		return 2
	default:
		fmt.Fprintln(s.err, "brevet-agent:", err)
		return 1
	}
}

func command(ctx context.Context, args []string, s streams) error {
	if len(args) == 0 {
		return misusef("name a command: run, enroll, status or version (brevet-agent help explains them)")
	}
	name, rest := args[0], args[1:]
	switch name {
	case "run":
		return runCommand(ctx, rest, s)
	case "enroll":
		return enrollCommand(ctx, rest, s)
	case "status":
		return statusCommand(rest, s)
	case "version":
		if _, err := parseFlags(flag.NewFlagSet(name, flag.ContinueOnError), rest); err != nil {
			return err
		}
		_, err := fmt.Fprintln(s.out, "brevet-agent", version)
		return err
	case "help", "-h", "-help", "--help":
		return flag.ErrHelp
	default:
		return misusef("%q is no command: use run, enroll, status or version", name)
	}
}

// parseFlags parses a command's flags, and loads the settings where there is a --config among them.
func parseFlags(flags *flag.FlagSet, args []string) (settings, error) {
	flags.SetOutput(io.Discard) // the error says it all
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return settings{}, err
	case err != nil:
		return settings{}, misusef("%s: %w (brevet-agent help explains the flags)", flags.Name(), err)
	case flags.NArg() > 0:
		return settings{}, misusef("%s takes no argument %q (brevet-agent help explains the flags)", flags.Name(), flags.Arg(0))
	}
	file, dir := flags.Lookup("config"), flags.Lookup("directory")
	if file == nil {
		return settings{}, nil
	}
	switch {
	case file.Value.String() != "" && dir.Value.String() != "":
		return settings{}, misusef("%s takes --config or --directory, not both: the configuration names its directory", flags.Name())
	case file.Value.String() != "":
		return loadSettings(file.Value.String())
	case dir.Value.String() != "":
		set := defaultSettings()
		set.Directory = dir.Value.String()
		return set, nil
	}
	return settings{}, misusef("%s needs --config FILE or --directory DIR", flags.Name())
}

// whereFlags returns the flags of a command that works on a credential.
func whereFlags(command string) *flag.FlagSet {
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	flags.String("config", "", "")
	flags.String("directory", "", "")
	return flags
}
