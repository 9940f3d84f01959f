package serve

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/devca"
	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/internal/service"
)

// NewDev returns brevet dev, which creates a development CA and runs its server.
func NewDev() *cobra.Command {
	d := devca.CA{KeyLabel: devca.DefaultKeyLabel}
	cmd := &cobra.Command{
		Use: "dev", Short: "Run a whole CA for development, kept in one directory", Args: cobra.NoArgs,
		Long: "dev makes a private SoftHSM token, a root and an issuing CA in it, a store and an operator's credential, all in\n" +
			"one directory, and serves on this machine alone. Started again, it goes on with what is there. It never touches\n" +
			"your own SoftHSM configuration. Keys of a root and of an issuing CA in one token are for development only.\n\n" +
			"Its first policy accepts enrollment tokens over gRPC and EST, and ACME for names such as web.localhost. The server\n" +
			"validates these names on this machine alone: http-01 at port 5002, and tls-alpn-01 at port 5001.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if d.Dir == "" {
				home, err := client.StateHome()
				if err != nil {
					return err
				}
				d.Dir = home
			}
			dir, err := filepath.Abs(d.Dir)
			if err != nil {
				return err
			}
			d.Dir = dir
			if err := checkDev(d); err != nil {
				return err
			}
			if err := checkDomain(cmd, d); err != nil {
				return err
			}
			return runDev(cmd, d)
		},
	}
	d.Flags(cmd)
	cmd.Flags().StringVar(&d.TrustDomain, "trust-domain", devca.DefaultTrustDomain, "SPIFFE trust domain")
	return cmd
}

// checkDev checks the flags before certificates are issued that would contain wrong values for years.
func checkDev(d devca.CA) error {
	if err := ceremony.CheckTrustDomain(d.TrustDomain); err != nil {
		return cli.WrongFlag("--trust-domain", err)
	}
	for _, f := range []struct{ flag, address string }{{"--grpc", d.GRPC}, {"--http", d.HTTP}, {"--https", d.HTTPS}} {
		if f.flag == "--https" && f.address == "" {
			continue
		}
		_, port, err := net.SplitHostPort(f.address)
		if number, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || number == 0 {
			return cli.WrongUse(fmt.Sprintf("%s %q: write it like 127.0.0.1:7443", f.flag, f.address))
		}
	}
	return nil
}

// checkDomain refuses --trust-domain if the directory has a CA of another one.
func checkDomain(cmd *cobra.Command, d devca.CA) error {
	if !cmd.Flags().Changed("trust-domain") {
		return nil
	}
	have, err := d.Domain()
	if errors.Is(err, fs.ErrNotExist) { // there is no CA yet
		return nil
	}
	if err != nil || have == d.TrustDomain {
		return err
	}
	return cli.WrongFlag("--trust-domain", fmt.Errorf("the CA in %s has the trust domain %s: leave out the flag, or make another CA with --directory",
		d.Dir, have))
}

func runDev(cmd *cobra.Command, d devca.CA) error {
	if err := node.MakeDirectory(d.Dir); err != nil {
		return err
	}
	if err := d.Ensure(cmd.Context()); err != nil {
		return node.Stopped(cmd.Context(), fmt.Errorf("make the development CA: %w", err))
	}
	pin, err := hsm.ReadPINFile(filepath.Join(d.CeremonyDir(), "pin"))
	if err != nil {
		return err
	}
	c, err := d.Config()
	if err != nil {
		return err
	}
	return node.Stopped(cmd.Context(), serveDev(cmd, d, c, pin))
}

// serveDev opens the CA and runs its server.
func serveDev(cmd *cobra.Command, d devca.CA, c node.Config, pin hsm.PIN) (err error) {
	ctx := cmd.Context()
	log := service.NewLog(cmd.ErrOrStderr(), c.Log.Format, c.Log.Level)
	defer log.Close()
	service.OnHangup(ctx, service.Hangups(), func() {
		log.WarnContext(ctx, "nothing is reloaded: a development CA has no configuration file, and its flags wait for a restart")
	})
	d.WarnMoved(ctx, log.Logger)
	n, err := d.Open(ctx, c, pin, log.Logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	listeners, err := c.OpenListeners(ctx)
	if err != nil {
		return err
	}
	s, err := n.Server(ctx, listeners)
	if err != nil {
		return errors.Join(err, listeners.Close())
	}
	return d.Serve(cmd, s)
}
