package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

// movedPrefix is the prefix of the annotations of a command that name the replacement of a flag.
const movedPrefix = "moved:"

// MovedFlags makes a command refuse flags that were removed. For each flag, instead names the flag or command to use.
func MovedFlags(cmd *cobra.Command, instead map[string]string) {
	if cmd.Annotations == nil {
		cmd.Annotations = map[string]string{}
	}
	for name, text := range instead {
		cmd.Annotations[movedPrefix+name] = text
	}
}

// movedFlag returns the replacement of a flag that was removed from a command or one of its parents, or "".
func movedFlag(cmd *cobra.Command, name string) string {
	for ; cmd != nil; cmd = cmd.Parent() {
		if instead := cmd.Annotations[movedPrefix+name]; instead != "" {
			return instead
		}
	}
	return ""
}

// MovedCommand returns a hidden command that always fails, with an error that names the replacement.
func MovedCommand(name, instead string) *cobra.Command {
	return &cobra.Command{
		Use: name, Hidden: true, Args: cobra.ArbitraryArgs, DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return WrongUse(fmt.Sprintf("%s has been replaced: run %s", cmd.CommandPath(), instead))
		},
	}
}
