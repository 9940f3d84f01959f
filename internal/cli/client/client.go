package client

import (
	"cmp"
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

// CallTimeout is the timeout of one unary RPC. A list takes several RPCs. The timeout does not apply to streams of log
// entries.
const CallTimeout = 30 * time.Second

// maxResponse is the maximum size of one response in bytes. The largest are pages of records with their names and
// labels.
const maxResponse = 64 << 20

// StateHome returns the directory for a user's state: $XDG_STATE_HOME/brevet, or ~/.local/state/brevet.
func StateHome() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "brevet"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find the directory of state: %w: set XDG_STATE_HOME", err)
	}
	return filepath.Join(home, ".local", "state", "brevet"), nil
}

// Flags adds the flags of every command that calls a server. They select the CA and the credential.
func Flags(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.String("context", "", "name of the context of the CA (default: as brevet context use says)")
	f.String("directory", "", "state directory (default: that of the context, or a folder of $XDG_STATE_HOME/brevet)")
	f.String("server", "", "address of the server, HOST:PORT (default: that of the context, or the one that the credential came from)")
	cli.TakeVariables(f, "context", "directory", "server")
	cli.MovedFlags(cmd, map[string]string{"operator": "--directory, with the same directory"})
}

// Target is a CA and a credential that a command uses to call it.
type Target struct {
	// Directory is the credential directory.
	Directory string
	// Server is the address to call. If it is empty, the credential contains the address.
	Server string
	// Name is the name of the context, or empty without one. If Context is nil, the command creates a context with this
	// name.
	Name string
	// Context is the context, or nil without one.
	Context *Context
}

// FindTarget returns the target from flags, environment variables and contexts, in this order of precedence.
//
// If a flag or variable with a higher precedence than the context names a directory, FindTarget ignores the context.
// The credential in the directory then contains the server's address. If create is true, --context may name a context
// that does not exist.
func FindTarget(cmd *cobra.Command, create bool) (Target, error) {
	var t Target
	var err error
	if t.Server, err = flagServer(cmd); err != nil {
		return t, err
	}
	if t.Directory, err = cmd.Flags().GetString("directory"); err != nil {
		return t, err
	}
	if err := t.findContext(cmd, create); err != nil {
		return t, err
	}
	if t.Context != nil {
		t.Directory, t.Server = cmp.Or(t.Directory, t.Context.Directory), cmp.Or(t.Server, t.Context.Server)
	}
	if t.Directory == "" {
		t.Directory, err = DefaultDirectory(t.Name)
	}
	return t, err
}

// findContext sets the name and the context.
func (t *Target) findContext(cmd *cobra.Command, create bool) error {
	named, err := cmd.Flags().GetString("context")
	if err != nil {
		return err
	}
	if t.Directory != "" && cli.SourceOf(cmd, "directory") > cli.SourceOf(cmd, "context") {
		return nil
	}
	all, err := ReadContexts()
	if err != nil {
		return err
	}
	if t.Name = cmp.Or(named, all.Current); t.Name == "" {
		return nil
	}
	c, err := all.Find(t.Name)
	if err != nil {
		if create {
			return CheckContextName(t.Name)
		}
		return err
	}
	t.Context = &c
	return nil
}

// DefaultDirectory returns the default credential directory of a context. For an empty name it returns the directory
// that is used without contexts.
func DefaultDirectory(context string) (string, error) {
	home, err := StateHome()
	if err != nil {
		return "", err
	}
	if context == "" {
		return filepath.Join(home, "operator"), nil
	}
	return filepath.Join(home, "contexts", context), nil
}

// flagServer returns the address in --server or the environment variable, or "" if neither is set.
func flagServer(cmd *cobra.Command) (string, error) {
	server, err := cmd.Flags().GetString("server")
	if err != nil || server == "" {
		return "", err
	}
	if err := enroll.CheckServer(server); err != nil {
		name := "--server"
		if cli.SourceOf(cmd, "server") == cli.FromVariable {
			name = "$BREVET_SERVER"
		}
		return "", cli.WrongFlag(name, err)
	}
	return server, nil
}

// CheckPair returns an error if a credential belongs to another CA than the target.
func (t Target) CheckPair(pair *enroll.Pair) error {
	if t.Context == nil {
		return nil
	}
	c := *t.Context
	c.Directory = t.Directory
	return c.CheckPair(t.Name, pair)
}

// Call connects to the server as the operator and calls do with the connection.
func Call(cmd *cobra.Command, do func(ctx context.Context, conn *grpc.ClientConn) error) error {
	target, err := FindTarget(cmd, false)
	if err != nil {
		return err
	}
	pair, err := operatorPair(cmd, target)
	if err != nil {
		return err
	}
	server := cmp.Or(target.Server, pair.Origin.Server)
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
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponse)), grpc.WithChainUnaryInterceptor(RepeatChanges, SetDeadline),
		grpc.WithDisableServiceConfig())...) // looking it up in the DNS would take seconds if it does not exist
}

// SetDeadline is an interceptor that gives each RPC the timeout CallTimeout.
func SetDeadline(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	return call(ctx, method, req, reply, conn, opts...)
}

// Advise adds the next step to the text of a temporary error. A refusal already contains a hint.
func Advise(err error) error {
	if _, refused := pki.AsRefusal(err); !refused && pki.IsTemporary(err) {
		return fmt.Errorf("%w: see whether the server runs there (--server names another address) and what it logs, then try again", err)
	}
	return err
}

// operatorPair reads the operator's credential. It renews a credential that is due for renewal, unless another process
// does.
func operatorPair(cmd *cobra.Command, t Target) (*enroll.Pair, error) {
	pair, err := enroll.ReadPair(t.Directory)
	if errors.Is(err, enroll.ErrNoCredential) {
		return nil, fmt.Errorf("no operator's credential in %s: run brevet login --token-file FILE, or name another CA with --context, "+
			"or the credential's directory with --directory", t.Directory)
	}
	if err != nil {
		return nil, err
	}
	if err := t.CheckPair(pair); err != nil {
		return nil, err
	}
	if pair.Expired(time.Now()) {
		return nil, fmt.Errorf("the operator's certificate in %s expired at %s: ask an admin for a token "+
			"(brevet token create brevet/operator/NAME --replace), then run brevet login --token-file FILE", t.Directory, pair.Certificate.NotAfter.UTC().Format(time.RFC3339))
	}
	agent, closeDir, err := OperatorAgent(cmd, t.Directory, t.Server, nil)
	if err != nil {
		return pair, nil // another process has locked the directory and renews; this credential is still valid
	}
	defer closeDir()
	if err := agent.Refresh(cmd.Context()); err != nil {
		return pair, nil // the credential is still valid; if it is not accepted, the RPC fails with the cause
	}
	t.followRoots(agent.Pair())
	return agent.Pair(), nil
}

// followRoots replaces the roots of the target's context by those of its credential, which belongs to the same CA and
// got its roots from that CA's server. Otherwise they would have no root in common when the CA has changed its root. If
// it fails, the next command repeats it.
func (t Target) followRoots(pair *enroll.Pair) {
	if t.Context == nil || t.Context.Roots == encodeRoots(pair.Roots) {
		return
	}
	all, err := ReadContexts()
	if c, ok := all.Contexts[t.Name]; err == nil && ok && c.Roots == t.Context.Roots {
		c.Roots = encodeRoots(pair.Roots)
		all.Contexts[t.Name] = c
		_ = all.Write()
	}
}

// OperatorAgent opens an operator's credential directory, and logs a warning if other users can read the key. If there
// is no valid credential, the agent calls token, which may be nil.
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
