// Command brevet is the certificate authority: the server process, and the operator's command line that speaks gRPC to
// it. Ceremonies, which touch root keys and the store itself, are offline commands of the same binary.
//
// It refuses secrets on the command line and in the environment: PINs and tokens come from files, systemd credentials,
// standard input or a terminal.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/internal/manual"
)

// version is set by the linker (-X main.version=…).
var version = "dev"

// Exit codes.
const (
	exitFailed = 1 // the command was right and did not succeed
	exitUsage  = 2 // the command was wrong
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second one ends what does not heed the first, such as waiting for somebody to type
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run executes a command line and returns the exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(standardOutput{out})
	root.SetErr(errOut)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(errOut, "brevet: "+trimPrefixes(err.Error()))
	var failed *failure
	if errors.As(err, &failed) {
		return exitFailed
	}
	var wrong *usage
	if !errors.As(err, &wrong) { // it comes from cobra, and names no next step
		fmt.Fprintf(errOut, "See %s --help.\n", cmd.CommandPath())
	}
	return exitUsage
}

// failure is an error of a command that was given rightly. What is no failure is wrong use.
type failure struct{ err error }

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// standardOutput marks errors of writing, which come after what the command did.
type standardOutput struct{ io.Writer }

// Write implements io.Writer.
func (o standardOutput) Write(b []byte) (int, error) {
	n, err := o.Writer.Write(b)
	if err != nil {
		err = fmt.Errorf("standard output takes nothing, and what the command did before is in effect: look before repeating it: %w", err)
	}
	return n, err
}

// usage is an error that more careful typing avoids, found while a command runs.
type usage struct{ text string }

func (u *usage) Error() string { return u.text }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "brevet",
		Short:         "An internal certificate authority for machines",
		Long:          "Brevet gives every machine an identity: a short-lived X.509 certificate, signed by a key that never\nleaves its token, renewed by itself, and taken back within a second.",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		newDev(), newServe(), newCeremony(), newLogin(), newToken(), newIdentity(), newCert(), newCRL(), newLog(), newStore(), newBench(), newManual(), newVersion(),
	)
	root.SetHelpCommand(newHelp())
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if name := cmd.Flags().Arg(0); cmd.HasSubCommands() && name != "" {
			return notCommand(cmd, name) // whose flag it would have been
		}
		return err
	})
	mark(root)
	return root
}

// mark makes a failure of every error that a command returns, but of a *usage, and has commands say what they take.
func mark(c *cobra.Command) {
	for _, sub := range c.Commands() {
		mark(sub)
	}
	if c.HasSubCommands() {
		c.Args, c.RunE = cobra.ArbitraryArgs, wantCommand
		return
	}
	takes, inner := c.Args, c.RunE
	c.Args = func(cmd *cobra.Command, args []string) error {
		if takes(cmd, args) == nil {
			return nil
		}
		return fmt.Errorf("the arguments do not fit: write %s", strings.TrimSuffix(cmd.UseLine(), " [flags]"))
	}
	c.RunE = func(cmd *cobra.Command, args []string) error {
		err := inner(cmd, args)
		var wrong *usage
		if err == nil || errors.As(err, &wrong) {
			return err
		}
		return &failure{err}
	}
}

// wantCommand answers a command line that ends before it names a command.
func wantCommand(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return notCommand(cmd, args[0])
	}
	cmd.SetOut(cmd.ErrOrStderr())
	return errors.Join(cmd.Help(), &usage{"name one of these commands"})
}

func notCommand(of *cobra.Command, name string) error {
	of.SuggestionsMinimumDistance = 2
	text := fmt.Sprintf("%q is not a command of %s", name, of.CommandPath())
	if near := of.SuggestionsFor(name); len(near) > 0 {
		text += ": did you mean " + strings.Join(near, " or ") + "?"
	}
	return errors.New(text)
}

func newHelp() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND…]", Short: "Help about any command",
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil {
				return err
			}
			if len(rest) > 0 {
				return notCommand(about, rest[0])
			}
			return about.Help()
		},
	}
}

// newManual is for whoever makes a package.
func newManual() *cobra.Command {
	return &cobra.Command{
		Use: "manual DIRECTORY", Short: "Write man pages and completions", Args: cobra.ExactArgs(1), Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			date, err := manual.Date()
			if err != nil {
				return err
			}
			return manual.Write(cmd.Root(), args[0], date)
		},
	}
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "brevet "+version)
			return err
		},
	}
}
