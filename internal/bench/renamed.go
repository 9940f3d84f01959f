package bench

import (
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/brevet-pki/brevet/internal/bench/pace"
	"github.com/brevet-pki/brevet/internal/cli"
)

// renamedAs annotates a flag that was renamed with its new name.
const renamedAs = "brevet_renamed_as"

// renamedFlag adds a hidden flag that [checkRenamed] refuses.
func renamedFlag(cmd *cobra.Command, name, now string) {
	cmd.Flags().String(name, "", "renamed: write --"+now)
	f := cmd.Flags().Lookup(name)
	f.Hidden, f.Annotations = true, map[string][]string{renamedAs: {now}}
}

// checkRenamed returns an error that names the new flag if a renamed flag is set.
func checkRenamed(cmd *cobra.Command) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if now := f.Annotations[renamedAs]; now != nil {
			err = cli.WrongUse(fmt.Sprintf("--%s was renamed: write --%s", f.Name, now[0]))
		}
	})
	return err
}

// renamedCommand returns a hidden command that fails with an error that names the new command.
func renamedCommand(name, now string) *cobra.Command {
	return &cobra.Command{
		Use: name, Short: "Renamed: run " + now, Hidden: true, DisableFlagParsing: true, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cli.WrongUse(fmt.Sprintf("%s was renamed: run %s %s", cmd.CommandPath(), cmd.Parent().CommandPath(), now))
		},
	}
}

// paceFlags adds the flags of a pace, with their earlier names.
func paceFlags(cmd *cobra.Command, p *pace.Pace) {
	p.Flags(cmd)
	renamedFlag(cmd, "token-rate", "hsm-rate")
	renamedFlag(cmd, "token-latency", "hsm-latency")
}
