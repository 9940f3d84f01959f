package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/pki"
)

// CallTimeout bounds one call; a list is many, and a stream of the log takes as long as the log is.
const CallTimeout = 30 * time.Second

// maxAnswer bounds one answer, in bytes: a page of records with all their names and labels.
const maxAnswer = 64 << 20

// StateHome is where Brevet keeps what belongs to a person: $XDG_STATE_HOME/brevet, or ~/.local/state/brevet.
func StateHome() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "brevet"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find a place for state: %w; set XDG_STATE_HOME", err)
	}
	return filepath.Join(home, ".local", "state", "brevet"), nil
}

// serverEnv names the environment variable that says which server to call, after --server.
const serverEnv = "BREVET_SERVER"

// Flags adds the flags of every command that calls a server: whose credential it uses, and which server it calls.
func Flags(cmd *cobra.Command) {
	cmd.PersistentFlags().String("operator", "", "directory of the operator's credential (default: operator in $XDG_STATE_HOME/brevet)")
	cmd.PersistentFlags().String("server", "", "address of the server, HOST:PORT (default: $"+serverEnv+", or the one that the credential came from)")
}

// ServerFlag returns the address that --server or the environment names, or "" if neither does.
func ServerFlag(cmd *cobra.Command) (string, error) {
	server, err := cmd.Flags().GetString("server")
	if err != nil {
		return "", err
	}
	source := "--server"
	if server == "" {
		server, source = os.Getenv(serverEnv), "$"+serverEnv
	}
	if server == "" {
		return "", nil
	}
	if err := enroll.CheckServer(server); err != nil {
		return "", cli.WrongFlag(source, err)
	}
	return server, nil
}

// OperatorDir returns the directory of the credential that --operator names, or the default one.
func OperatorDir(cmd *cobra.Command) (string, error) {
	dir, err := cmd.Flags().GetString("operator")
	if err != nil || dir != "" {
		return dir, err
	}
	home, err := StateHome()
	return filepath.Join(home, "operator"), err
}

// Call connects to the server as the operator and makes calls.
func Call(cmd *cobra.Command, do func(ctx context.Context, conn *grpc.ClientConn) error) error {
	dir, err := OperatorDir(cmd)
	if err != nil {
		return err
	}
	server, err := ServerFlag(cmd)
	if err != nil {
		return err
	}
	pair, err := operatorPair(cmd, dir, server)
	if err != nil {
		return err
	}
	if server == "" {
		server = pair.Origin.Server
	}
	conn, err := Connect(server, pair)
	if err != nil {
		return err
	}
	err = do(cmd.Context(), conn)
	return errors.Join(Advise(enroll.CallError(server, err)), conn.Close())
}

// Connect returns a connection to a server that authenticates with a credential.
func Connect(server string, pair *enroll.Pair, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient("dns:///"+server, append(options,
		grpc.WithTransportCredentials(credentials.NewTLS(enroll.ClientTLS(func() *enroll.Pair { return pair }))),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)), grpc.WithChainUnaryInterceptor(RepeatChanges, SetDeadline),
		grpc.WithDisableServiceConfig())...) // which is looked up in the DNS, for seconds where there is none
}

// SetDeadline gives each call its own deadline.
func SetDeadline(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	return call(ctx, method, req, reply, conn, opts...)
}

// Advise adds the next step to an error that may pass. A refusal says it by itself.
func Advise(err error) error {
	if _, refused := pki.AsRefusal(err); !refused && pki.IsTemporary(err) {
		return fmt.Errorf("%w: see whether the server runs there (--server names another address) and what it logs, then try again", err)
	}
	return err
}

// operatorPair reads the operator's credential, and renews it where its time has come and nobody else does. With an empty
// server address the credential's own server renews it.
func operatorPair(cmd *cobra.Command, dir, server string) (*enroll.Pair, error) {
	pair, err := enroll.ReadPair(dir)
	if errors.Is(err, enroll.ErrNoCredential) {
		return nil, fmt.Errorf("no operator's credential in %s: run brevet login --token-file FILE, or name its directory with --operator", dir)
	}
	if err != nil {
		return nil, err
	}
	if pair.Expired(time.Now()) {
		return nil, fmt.Errorf("the operator's certificate in %s expired at %s: ask another operator for a token "+
			"(brevet token create brevet/operator/NAME --replace), then run brevet login --token-file FILE", dir, pair.Certificate.NotAfter.UTC().Format(time.RFC3339))
	}
	agent, closeDir, err := OperatorAgent(cmd, dir, server, nil)
	if err != nil {
		return pair, nil // somebody keeps this credential already; it is valid
	}
	defer closeDir()
	if err := agent.Refresh(cmd.Context()); err != nil {
		return pair, nil // still valid, and the call will say what is wrong
	}
	return agent.Pair(), nil
}

// OperatorAgent opens an operator's credential directory, and warns of a key that others can read. token, which may be nil,
// is asked when there is no valid one.
func OperatorAgent(cmd *cobra.Command, dir, server string, token func() (enroll.Token, error)) (*enroll.Agent, func(), error) {
	d, err := enroll.OpenDirectory(dir, slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
	if err != nil {
		return nil, nil, err
	}
	client, err := enroll.NewClient(server)
	if err != nil {
		return nil, nil, errors.Join(err, d.Close())
	}
	agent, err := enroll.NewAgent(enroll.Config{Directory: d, Authority: client, Token: token, KeyType: pki.P256, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, nil, errors.Join(err, d.Close())
	}
	return agent, func() { _ = d.Close() }, nil
}
