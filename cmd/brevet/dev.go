package main

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/internal/service"
)

func newDev() *cobra.Command {
	d := dev{key: devIssuingKey}
	cmd := &cobra.Command{
		Use: "dev", Short: "Run a whole CA for development, kept in one directory", Args: cobra.NoArgs,
		Long: "dev makes a private SoftHSM token, a root and an issuing CA in it, a store and an operator's credential, all in\n" +
			"one directory, and serves on this machine alone. Started again, it goes on with what is there. It never touches\n" +
			"your own SoftHSM configuration. Keys of a root and of an issuing CA in one token are for development only.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if d.dir == "" {
				home, err := stateHome()
				if err != nil {
					return err
				}
				d.dir = home
			}
			dir, err := filepath.Abs(d.dir)
			if err != nil {
				return err
			}
			d.dir = dir
			if err := checkDev(d); err != nil {
				return err
			}
			return runDev(cmd, d)
		},
	}
	d.flags(cmd)
	cmd.Flags().StringVar(&d.trustDomain, "trust-domain", devTrustDomain, "SPIFFE trust domain of a new CA")
	return cmd
}

// checkDev looks at the flags before anything is made of them: certificates would carry what is wrong in them for years.
func checkDev(d dev) error {
	if err := ceremony.CheckTrustDomain(d.trustDomain); err != nil {
		return usageError("--trust-domain: " + trimPrefixes(err.Error()))
	}
	for _, f := range []struct{ flag, address string }{{"--grpc", d.grpc}, {"--http", d.http}} {
		_, port, err := net.SplitHostPort(f.address)
		if number, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || number == 0 {
			return usageError(fmt.Sprintf("%s %q: write it like 127.0.0.1:7443", f.flag, f.address))
		}
	}
	return nil
}

func runDev(cmd *cobra.Command, d dev) error {
	if err := makeDirectory(d.dir); err != nil {
		return err
	}
	if err := d.ensureCA(cmd.Context()); err != nil {
		return stopped(cmd.Context(), fmt.Errorf("make the development CA: %w", err))
	}
	pin, err := hsm.ReadPINFile(filepath.Join(d.ca(), "pin"))
	if err != nil {
		return err
	}
	c, err := d.config()
	if err != nil {
		return err
	}
	return stopped(cmd.Context(), serveDev(cmd, d, c, pin))
}

// serveDev opens the CA and runs its server.
func serveDev(cmd *cobra.Command, d dev, c Config, pin hsm.PIN) (err error) {
	ctx := cmd.Context()
	log := service.NewLog(cmd.ErrOrStderr(), c.Log.Format, c.Log.Level)
	defer log.Close()
	service.OnHangup(ctx, service.Hangups(), func() {
		log.WarnContext(ctx, "nothing is reloaded: a development CA has no configuration file, and its flags wait for a restart")
	})
	n, err := d.open(ctx, c, pin, log.Logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	listeners, err := c.listen(ctx)
	if err != nil {
		return err
	}
	s, err := n.server(ctx, listeners)
	if err != nil {
		return errors.Join(err, listeners.close())
	}
	return d.serve(cmd, s)
}
