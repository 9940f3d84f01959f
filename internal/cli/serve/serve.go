package serve

import (
	"context"
	"errors"
	"fmt"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/internal/service"
	"github.com/brevet-pki/brevet/server"
)

// New returns brevet serve.
func New() *cobra.Command {
	cmd := &cobra.Command{
		Use: "serve", Short: "Run the server", Args: cobra.NoArgs,
		Long: "serve runs issuer, registration authority, validation authority and log in one process, until it gets\n" +
			"SIGTERM or SIGINT; it then finishes what is in flight. At SIGHUP it reads its configuration again. --check does\n" +
			"everything but serve, and shows the value of every key and where it comes from: file, environment, flag or default.\n\n" +
			"A variable such as BREVET_LOG_LEVEL overrides the key log.level of the file, and the flag --log-level overrides both.\n" +
			"Secrets are never read from the environment.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := node.Load(cmd)
			if err != nil {
				return err
			}
			check, err := cmd.Flags().GetBool("check")
			if err != nil {
				return err
			}
			if check {
				if err := c.Print(cmd.OutOrStdout()); err != nil {
					return err
				}
			}
			return serve(cmd, c.Config, check)
		},
	}
	node.ConfigFlag(cmd)
	node.KeyFlags(cmd)
	cmd.Flags().Bool("check", false, "print every configuration key with its origin, open the HSM, the store and the archive, lint the profiles, listen on the ports, then exit")
	return cmd
}

func serve(cmd *cobra.Command, c node.Config, check bool) (err error) {
	hangups := service.Hangups() // a SIGHUP during the start is handled when the server is ready
	log := service.NewLog(cmd.ErrOrStderr(), c.Log.Format, c.Log.Level)
	defer log.Close()
	pin, err := c.PIN()
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	n, err := node.Open(ctx, c, pin, log.Logger)
	if errors.Is(err, hsm.ErrPIN) { // exit code 2: a restart by the service manager would lock the HSM
		return cli.WrongArgument(err)
	}
	if err != nil {
		return node.Stopped(ctx, err)
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	if check {
		if err := n.CheckUnused(); err != nil {
			return err
		}
	}
	if err := n.Replaces(); err != nil {
		log.Warn("replacing another process that runs under this server's name", "error", err)
	}
	return serveNode(ctx, cmd, c, n, check, func(s *server.Server) {
		r := &reloader{current: c, load: func() (node.Config, error) { return node.LoadConfig(cmd) }, log: log, server: s}
		service.OnHangup(ctx, hangups, func() { r.reload(ctx) })
	})
}

// serveNode runs the server, and calls begun when the server is ready. If check is true, it only checks that the server
// could run.
func serveNode(ctx context.Context, cmd *cobra.Command, c node.Config, n *node.Node, check bool, begun func(*server.Server)) error {
	listeners, err := c.OpenListeners(ctx)
	if err != nil {
		return node.Stopped(ctx, err)
	}
	s, err := n.Server(ctx, listeners)
	if err != nil {
		return node.Stopped(ctx, errors.Join(err, listeners.Close()))
	}
	if check {
		if err := errors.Join(s.Close(ctx), listeners.Close(), c.CRL.LookForDirectories()); err != nil {
			return err
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "Everything needed to serve is in place.\nNext: brevet serve")
		return err
	}
	s.OnReady(func() {
		begun(s)
		notify(daemon.SdNotifyReady)
	})
	defer context.AfterFunc(ctx, func() { notify(daemon.SdNotifyStopping) })()
	return s.Run(ctx)
}

// notify sends a state to systemd, if systemd started the server and expects notifications. It ignores errors: the
// server runs without the notification.
func notify(state string) { _, _ = daemon.SdNotify(false, state) }
