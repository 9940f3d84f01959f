package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

// movedPrefix marks the annotations of a command that name the replacement of a flag.
const movedPrefix = "moved:"

// MovedFlags has a command refuse flags that it does not take any more. Each name has the flag or command to use instead.
func MovedFlags(cmd *cobra.Command, instead map[string]string) {
	if cmd.Annotations == nil {
		cmd.Annotations = map[string]string{}
	}
	for name, text := range instead {
		cmd.Annotations[movedPrefix+name] = text
	}
}

// movedFlag returns what replaces a flag of a command or of one above it, or "".
func movedFlag(cmd *cobra.Command, name string) string {
	for ; cmd != nil; cmd = cmd.Parent() {
		if instead := cmd.Annotations[movedPrefix+name]; instead != "" {
			return instead
		}
	}
	return ""
}

// MovedCommand returns a hidden command that refuses every use and names what to run instead.
func MovedCommand(name, instead string) *cobra.Command {
	return &cobra.Command{
		Use: name, Hidden: true, Args: cobra.ArbitraryArgs, DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return WrongUse(fmt.Sprintf("%s has been replaced: run %s", cmd.CommandPath(), instead))
		},
	}
}
