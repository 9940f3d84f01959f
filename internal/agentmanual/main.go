// Command agentmanual writes the manual and the completions of brevet-agent from package agentcli. The agent itself
// does not contain cobra, to keep the binary small. `make packages` calls this command.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/internal/agentcli"
	"github.com/brevet-pki/brevet/internal/manual"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "agentmanual:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("name the directory to write to")
	}
	date, err := manual.Date()
	if err != nil {
		return err
	}
	return manual.Write(tree(), args[0], date)
}

// tree returns the agent's command line as a tree of cobra commands.
func tree() *cobra.Command {
	root := &cobra.Command{Use: "brevet-agent", Short: agentcli.Short}
	for _, c := range agentcli.Commands() {
		sub := &cobra.Command{Use: c.Name, Short: c.Short, Long: c.Long, Example: c.Example, Run: func(*cobra.Command, []string) {}}
		for _, f := range c.Flags {
			sub.Flags().String(f.Name, f.Default, "`"+f.Value+"`: "+f.Usage)
		}
		root.AddCommand(sub)
	}
	return root
}
