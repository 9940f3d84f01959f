package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/server"
)

func newServe() *cobra.Command {
	cmd := &cobra.Command{
		Use: "serve", Short: "Run the server", Args: cobra.NoArgs,
		Long: "serve runs issuer, registration authority, validation authority and log in one process, until it gets\n" +
			"SIGTERM or SIGINT; it then finishes what is in flight. --check does everything but serve.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			check, err := cmd.Flags().GetBool("check")
			if err != nil {
				return err
			}
			return serve(cmd, c, check)
		},
	}
	configFlag(cmd)
	cmd.Flags().Bool("check", false, "open the token, the store and the archive, lint the profiles, listen, then stop and say so")
	return cmd
}

func serve(cmd *cobra.Command, c Config, check bool) (err error) {
	pin, err := c.pin()
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	n, err := openNode(ctx, c, pin, c.logger(cmd))
	if err != nil {
		return stopped(ctx, err)
	}
	defer func() { err = errors.Join(err, n.close()) }()
	return stopped(ctx, n.serve(ctx, cmd, check))
}

// stopped returns nil where a signal stopped the server while it started, and any other error as it is.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return server.Orderly(err)
}

func (n *node) serve(ctx context.Context, cmd *cobra.Command, check bool) error {
	listeners, err := n.config.listen(ctx)
	if err != nil {
		return err
	}
	s, err := n.server(ctx, listeners)
	if err != nil {
		return errors.Join(err, listeners.close())
	}
	if check {
		if err := errors.Join(s.Close(ctx), listeners.close(), n.config.CRL.lookForDirectories()); err != nil {
			return err
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "Everything needed to serve is in place.\nNext: brevet serve")
		return err
	}
	s.OnReady(func() { notify(daemon.SdNotifyReady) })
	defer context.AfterFunc(ctx, func() { notify(daemon.SdNotifyStopping) })()
	return s.Run(ctx)
}

// notify tells systemd, where it started the server and wants to know. Nobody is helped by hearing that it does not.
func notify(state string) { _, _ = daemon.SdNotify(false, state) }
