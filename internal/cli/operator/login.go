package operator

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/internal/cli/client"
)

// NewLogin returns brevet login, which trades a token for an operator's credential.
func NewLogin() *cobra.Command {
	cmd := &cobra.Command{
		Use: "login --token-file FILE", Short: "Trade an operator's one-time token for a credential", Args: cobra.NoArgs,
		Long: "login enrolls this person as an operator. The token comes from a file that only you can read, or from standard input (-).",
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := client.OperatorDir(cmd)
			if err != nil {
				return err
			}
			path, err := cmd.Flags().GetString("token-file")
			if err != nil {
				return err
			}
			token, err := enroll.ReadTokenFile(path, cmd.InOrStdin())
			if err != nil {
				return err
			}
			server, err := client.ServerFlag(cmd)
			if err != nil {
				return err
			}
			agent, closeDir, err := client.OperatorAgent(cmd, dir, server, nil)
			if err != nil {
				return err
			}
			defer closeDir()
			ctx, cancel := context.WithTimeout(cmd.Context(), client.CallTimeout)
			defer cancel()
			if err := agent.Enroll(ctx, token); err != nil {
				return client.Advise(err)
			}
			p := agent.Pair()
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "You are %s until %s; commands renew this by themselves while it lasts.\nNext: brevet identity create device/1 --kind device\n",
				p.ID(), p.Certificate.NotAfter.Local().Format(time.RFC1123))
			return err
		},
	}
	client.Flags(cmd)
	cmd.Flags().String("token-file", "", "file with the token, or - for standard input")
	_ = cmd.MarkFlagRequired("token-file")
	return cmd
}
