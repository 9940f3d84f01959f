package operator

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/output"
)

// NewLogin returns brevet login, which exchanges a token for an operator's credential.
func NewLogin() *cobra.Command {
	var tokenFile string
	cmd := &cobra.Command{
		Use: "login --token-file FILE", Short: "Exchange an operator's one-time token for a credential", Args: cobra.NoArgs,
		Long: "login enrolls you as an operator. The token comes from a file that only you can read, or from standard input (-).\n\n" +
			"With --context, the credential belongs to that context. If the context does not exist, login makes it: the token\n" +
			"says which CA it is. If it exists, a token of another CA is refused before it is sent.",
		Example: "  brevet login --token-file alice.token\n  brevet login --context fleet --token-file alice.token",
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := output.New(cmd)
			if err != nil {
				return err
			}
			target, err := client.FindTarget(cmd, true)
			if err != nil {
				return err
			}
			token, err := enroll.ReadTokenFile(tokenFile, cmd.InOrStdin())
			if err != nil {
				return err
			}
			if target.Context != nil {
				if err := target.Context.CheckToken(target.Name, token); err != nil {
					return err
				}
			}
			pair, err := enrollOperator(cmd, target, token)
			if err != nil {
				return err
			}
			if target.Name != "" && target.Context == nil {
				if err := recordContext(target, pair); err != nil {
					return fmt.Errorf("you are enrolled, and the context is not recorded: %w: then run brevet context add %s --directory %s",
						err, target.Name, target.Directory)
				}
			}
			return printLogin(p, target, pair)
		},
	}
	client.Flags(cmd)
	output.Flag(cmd)
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "file that contains the enrollment token, or - for standard input")
	_ = cmd.MarkFlagRequired("token-file")
	return cmd
}

// enrollOperator exchanges the token for a credential in the target's directory.
func enrollOperator(cmd *cobra.Command, target client.Target, token enroll.Token) (*enroll.Pair, error) {
	agent, closeDir, err := client.OperatorAgent(cmd, target.Directory, target.Server, nil)
	if err != nil {
		return nil, err
	}
	defer closeDir()
	ctx, cancel := context.WithTimeout(cmd.Context(), client.CallTimeout)
	defer cancel()
	if err := agent.Enroll(ctx, token); err != nil {
		return nil, client.Advise(err)
	}
	return agent.Pair(), nil
}

// recordContext adds the context of a new credential.
func recordContext(target client.Target, pair *enroll.Pair) error {
	dir, err := filepath.Abs(target.Directory)
	if err != nil {
		return err
	}
	server := target.Server
	if server == "" {
		server = pair.Origin.Server
	}
	_, err = addContext(target.Name, client.NewContext(server, dir, pair))
	return err
}

// loginRecord is a new credential as --output json prints it.
type loginRecord struct {
	ID        string    `json:"id"`
	Serial    string    `json:"serial"`
	NotAfter  time.Time `json:"not_after"`
	Server    string    `json:"server"`
	Context   string    `json:"context,omitempty"`
	Directory string    `json:"directory"`
}

func printLogin(p *output.Printer, target client.Target, pair *enroll.Pair) error {
	notAfter := pair.Certificate.NotAfter
	r := loginRecord{
		ID: pair.ID().String(), Serial: pair.Serial(), NotAfter: notAfter.UTC(), Server: pair.Origin.Server, Context: target.Name, Directory: target.Directory,
	}
	if target.Server != "" {
		r.Server = target.Server
	}
	return p.Sentence(r, fmt.Sprintf("You are %s until %s; commands renew this by themselves while it lasts.\nNext: brevet identity list",
		pair.ID(), notAfter.Local().Format(time.RFC1123)))
}
