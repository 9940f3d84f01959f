package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/brevet-pki/brevet/internal/manual"
)

// Exit codes.
const (
	exitFailed = 1 // the command failed, although its command line and configuration were correct
	exitUsage  = 2 // the command line or the configuration is wrong
)

// New adds the commands to the root command of a binary, and returns the root command. It also adds help, version and
// the hidden command that writes the manual.
func New(root *cobra.Command, version string, commands ...*cobra.Command) *cobra.Command {
	root.SilenceErrors, root.SilenceUsage = true, true
	root.Version = version
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(commands...)
	root.AddCommand(newManual(), newVersion())
	root.SetHelpCommand(newHelp())
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if name := cmd.Flags().Arg(0); cmd.HasSubCommands() && name != "" {
			return notCommand(cmd, name) // the flag belongs to a command that does not exist
		}
		var unknown *pflag.NotExistError
		if errors.As(err, &unknown) {
			if instead := movedFlag(cmd, unknown.GetSpecifiedName()); instead != "" {
				return WrongUse(fmt.Sprintf("%s takes no --%s any more: use %s", cmd.CommandPath(), unknown.GetSpecifiedName(), instead))
			}
		}
		return err
	})
	mark(root)
	return root
}

// Run executes a command line and returns the exit code. The first SIGINT or SIGTERM cancels the context of the
// command.
func Run(root *cobra.Command) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process, even if it waits at a prompt
	return execute(ctx, root, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}

func execute(ctx context.Context, root *cobra.Command, args []string, in io.Reader, out, errOut io.Writer) int {
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(standardOutput{out})
	root.SetErr(errOut)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(errOut, root.Name()+": "+err.Error())
	var failed *failure
	if errors.As(err, &failed) {
		return exitFailed
	}
	var wrong *Usage
	if !errors.As(err, &wrong) { // an error of cobra does not name the next step
		fmt.Fprintf(errOut, "See %s --help.\n", cmd.CommandPath())
	}
	return exitUsage
}

// standardOutput wraps the errors of writes to standard output. When they occur, the command may already have changed
// something.
type standardOutput struct{ io.Writer }

func (o standardOutput) Write(b []byte) (int, error) {
	n, err := o.Writer.Write(b)
	if err != nil {
		err = fmt.Errorf("writing to standard output failed; what the command did before is in effect, so look before you repeat it: %w", err)
	}
	return n, err
}

// mark makes each command read its environment variables. It makes errors about arguments name the expected arguments.
// It wraps every error that is not a *Usage in a *failure.
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
		err := readVariables(cmd)
		if err == nil {
			err = inner(cmd, args)
		}
		var wrong *Usage
		if err == nil || errors.As(err, &wrong) {
			return err
		}
		return &failure{err}
	}
}

// wantCommand returns the error for a command line that names no command.
func wantCommand(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return notCommand(cmd, args[0])
	}
	cmd.SetOut(cmd.ErrOrStderr())
	return errors.Join(cmd.Help(), WrongUse("name one of these commands"))
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

// newManual returns the hidden command that writes the man pages and completions of the binary, for a package to
// install.
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
	var format string
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			root := cmd.Root()
			if err := CheckFormat(format); err != nil {
				return err
			}
			if format == "json" {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(struct {
					Name    string `json:"name"`
					Version string `json:"version"`
				}{root.Name(), root.Version})
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), root.Name()+" "+root.Version)
			return err
		},
	}
	OutputFlag(cmd, &format)
	return cmd
}

// OutputFlag adds the flag that sets the format of a command's output.
func OutputFlag(cmd *cobra.Command, format *string) {
	cmd.Flags().StringVarP(format, "output", "o", "text", "format of the output: text, or json with one object per line for each record")
	TakeVariables(cmd.Flags(), "output")
}

// CheckFormat returns a [*Usage] unless the value of --output is text or json.
func CheckFormat(format string) error {
	if format != "text" && format != "json" {
		return WrongUse(fmt.Sprintf("--output %q: use text or json", format))
	}
	return nil
}
