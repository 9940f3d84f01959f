package testbed

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/internal/bench/fill"
	"github.com/brevet-pki/brevet/internal/bench/pace"
	"github.com/brevet-pki/brevet/internal/cli/devca"
	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/internal/service"
	"github.com/brevet-pki/brevet/ra/policy"
	"github.com/brevet-pki/brevet/server"
)

// processTimeout limits how long a measured server takes to start and to stop. If its store was filled, the server
// first archives the log.
const processTimeout = 30 * time.Minute

// Server is a measured server: a development CA in another process. Its methods are safe for concurrent use.
type Server struct {
	Dev   devca.CA
	store string // connection string of its PostgreSQL database; empty for SQLite
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // how the process ended; set before ended is closed
}

// ServerCommand returns the hidden command that runs the measured server: a development CA with its issuing key in the
// measured HSM.
func ServerCommand() *cobra.Command {
	var d devca.CA
	var slow pace.Pace
	var config string
	var challengePort int
	var connection string
	cmd := &cobra.Command{
		Use: "server", Short: "Run the measured server; it reads the HSM's PIN from standard input", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			pin, err := hsm.ReceivePIN(cmd.InOrStdin())
			if err != nil {
				return err
			}
			like, err := ReadConfig(config)
			if err != nil {
				return err
			}
			c, err := d.Config()
			if err != nil {
				return err
			}
			c.HSM, c.Store, c.CRL.Partitions = like.HSM, like.Store, like.CRL.Partitions
			if connection != "" {
				c.Store = node.StoreConfig{Postgres: connection, Server: filepath.Base(d.Dir)}
			}
			if challengePort > 0 {
				c.ACME.Networks, c.ACME.HTTPPort = []string{"127.0.0.0/8"}, challengePort
			}
			if c.Policy, err = measuredPolicy(d.Dir, like.Policy); err != nil {
				return err
			}
			if err := c.Check(); err != nil {
				return err
			}
			return node.Stopped(cmd.Context(), serveMeasured(cmd, d, c, pin, slow))
		},
	}
	d.Flags(cmd)
	slow.Flags(cmd)
	f := cmd.Flags()
	f.StringVar(&d.KeyLabel, "key-label", "", "label of the issuing key")
	f.StringVar(&config, "config", "", "configuration with the HSM")
	f.StringVar(&connection, "postgres", "", "connection string of the PostgreSQL database (default: SQLite)")
	f.IntVar(&challengePort, "acme-http-port", 0, "port of http-01 challenges, on loopback (default: none)")
	return cmd
}

// measuredPolicy writes the first policy of a measured server to a directory, and returns its path. The policy has the
// default rules, and the profiles of the policy in the file from. The path is empty if there are none.
func measuredPolicy(dir, from string) (string, error) {
	if from == "" {
		return "", nil
	}
	text, err := os.ReadFile(from)
	if err != nil {
		return "", fmt.Errorf("policy: %w", err)
	}
	var document struct {
		Profiles yaml.Node `yaml:"profiles"`
	}
	if err := yaml.Unmarshal(text, &document); err != nil {
		return "", fmt.Errorf("policy: %w", err)
	}
	if document.Profiles.IsZero() {
		return "", nil
	}
	profiles, err := yaml.Marshal(map[string]*yaml.Node{"profiles": &document.Profiles})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "policy.yaml")
	return path, os.WriteFile(path, append(profiles, policy.Default()...), 0o600)
}

// serveMeasured runs the server of a development CA whose issuing keys sign at a pace.
func serveMeasured(cmd *cobra.Command, d devca.CA, c node.Config, pin hsm.PIN, slow pace.Pace) (err error) {
	ctx := cmd.Context()
	log := service.NewLog(cmd.ErrOrStderr(), c.Log.Format, c.Log.Level)
	defer log.Close()
	n, err := d.Open(ctx, c, pin, log.Logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	listeners, err := c.OpenListeners(ctx)
	if err != nil {
		return err
	}
	parts, err := n.ServerConfig(ctx, listeners)
	if err != nil {
		return errors.Join(err, listeners.Close())
	}
	for i := range parts.Issuers {
		parts.Issuers[i].Signer = slow.Signer(parts.Issuers[i].Signer)
	}
	node.BoundGarbage(ctx)
	s, err := server.New(ctx, parts)
	if err != nil {
		return errors.Join(err, listeners.Close())
	}
	return d.Serve(cmd, s)
}

// NewDev makes a development CA below the directory, on free addresses, which its certificates contain. The root's key
// is dropped when the certificates are made.
func (b *Testbed) NewDev(ctx context.Context, name string) (devca.CA, error) {
	return b.NewDevSince(ctx, name, time.Time{})
}

// NewDevSince makes a development CA as NewDev does, whose certificates are valid since a time in the past.
func (b *Testbed) NewDevSince(ctx context.Context, name string, since time.Time) (devca.CA, error) {
	addresses, err := devca.FreeAddresses(ctx, 3)
	if err != nil {
		return devca.CA{}, err
	}
	d := devca.CA{Dir: filepath.Join(b.Dir, name), TrustDomain: devca.DefaultTrustDomain, GRPC: addresses[0], HTTP: addresses[1], HTTPS: addresses[2], KeyLabel: b.Key.Label(), Since: since}
	if err := node.MakeDirectory(d.CeremonyDir()); err != nil {
		return d, err
	}
	root, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return d, err
	}
	return d, d.Certify(d.CeremonyDir(), root, b.Key)
}

// AnotherDev returns a development CA on other addresses with the issuing CA and the operator of a running one.
func (b *Testbed) AnotherDev(ctx context.Context, like devca.CA, name string) (devca.CA, error) {
	addresses, err := devca.FreeAddresses(ctx, 3)
	if err != nil {
		return devca.CA{}, err
	}
	d := like
	d.Dir, d.GRPC, d.HTTP, d.HTTPS = filepath.Join(b.Dir, name), addresses[0], addresses[1], addresses[2]
	for from, to := range map[string]string{like.CeremonyDir(): d.CeremonyDir(), like.OperatorDir(): d.OperatorDir()} {
		if err := copyDirectory(from, to); err != nil {
			return d, err
		}
	}
	return d, nil
}

// copyDirectory copies a directory of small files for this account, with its symbolic links.
func copyDirectory(from, to string) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	in, err := os.OpenRoot(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenRoot(to)
	if err != nil {
		return err
	}
	defer out.Close()
	return fs.WalkDir(in.FS(), ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch {
		case e.IsDir():
			return out.MkdirAll(path, 0o700)
		case e.Type() == fs.ModeSymlink:
			link, err := in.Readlink(path)
			if err != nil {
				return err
			}
			return out.Symlink(link, path)
		case !e.Type().IsRegular():
			return nil
		}
		text, err := in.ReadFile(path)
		if err != nil {
			return err
		}
		return out.WriteFile(path, text, 0o600)
	})
}

// StartServer starts the server of a development CA with SQLite, as StartServerOn does.
func (b *Testbed) StartServer(ctx context.Context, d devca.CA, options ...string) (*Server, error) {
	return b.StartServerOn(ctx, d, "", options...)
}

// StartServerOn starts the server of a development CA with a PostgreSQL database, or with SQLite if its connection string
// is empty, and waits until it serves. The server ends with ctx or by Stop. It logs to the standard error of the
// measurement.
func (b *Testbed) StartServerOn(ctx context.Context, d devca.CA, database string, options ...string) (*Server, error) {
	args := append([]string{"server", "--directory", d.Dir, "--grpc", d.GRPC, "--http", d.HTTP, "--https", d.HTTPS, "--key-label", d.KeyLabel, "--config", b.Config, "--postgres", database}, options...)
	s := &Server{Dev: d, store: database, ended: make(chan struct{})}
	var err error
	if s.cmd, err = b.Process(ctx, args...); err != nil {
		return nil, err
	}
	s.cmd.Stderr = b.Log
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	up := make(chan struct{})
	go s.follow(out, up)
	select {
	case <-up:
		return s, nil
	case <-s.ended:
		return nil, errors.Join(errors.New("the server to measure ended during its start"), s.err)
	case <-time.After(processTimeout):
		return nil, errors.Join(errors.New("the server to measure did not start in time"), s.Stop())
	}
}

// FillStore fills the store of a CA that has not run yet with certificates.
func (b *Testbed) FillStore(ctx context.Context, d devca.CA, f fill.Spec) error {
	return b.PrepareStore(ctx, d, func() error {
		b.Logf("filling its store with %d certificates", f.Certificates)
		return fill.Certificates(ctx, d, f, b.Logf)
	})
}

// PrepareStore calls fill for the store of a CA that has not run yet. It starts and stops a server first, which makes the
// store.
func (b *Testbed) PrepareStore(ctx context.Context, d devca.CA, fill func() error) error {
	first, err := b.StartServer(ctx, d)
	if err != nil {
		return err
	}
	if err := first.Stop(); err != nil {
		return err
	}
	err = fill()
	unix.Sync() // else the kernel writes the store to the disk during the measurement, and commits wait for it
	return err
}

// follow closes up when the server prints its first line, which it does when it serves. It then waits for the server's
// end.
func (s *Server) follow(out io.Reader, up chan<- struct{}) {
	lines := bufio.NewScanner(out)
	if lines.Scan() {
		close(up)
	}
	_, _ = io.Copy(io.Discard, out) // until the server closes it
	s.err = s.cmd.Wait()
	close(s.ended)
}

// Stop stops the server, and waits for its end. If the server ended before without being stopped, Stop returns an
// error.
func (s *Server) Stop() error {
	select {
	case <-s.ended:
		if errors.Is(s.err, context.Canceled) { // the context ended, and stopped it
			return nil
		}
		return errors.Join(errors.New("the measured server ended by itself"), s.err)
	default:
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.ended:
		if s.err == nil || errors.Is(s.err, context.Canceled) {
			return nil
		}
		return fmt.Errorf("the measured server failed when it stopped, its log has the cause: %w", s.err)
	case <-time.After(processTimeout):
		return errors.Join(errors.New("the measured server did not stop in time and was killed"), s.cmd.Process.Kill())
	}
}

// Kill kills the server as a crash does, and waits for its end.
func (s *Server) Kill() error {
	err := s.cmd.Process.Signal(syscall.SIGKILL)
	<-s.ended
	return err
}

// Process returns the server's process.
func (s *Server) Process() *os.Process { return s.cmd.Process }

// Stored returns the total size in bytes of the store and the archive of the log. The write-ahead log counts, if that is
// SQLite's.
func (s *Server) Stored(ctx context.Context) (float64, error) {
	c := node.Config{StateDir: s.Dev.Dir}
	var total int64
	files := []string{c.StorePath(), c.StorePath() + "-wal", c.ArchivePath()}
	if s.store != "" {
		var err error
		if total, err = databaseSize(ctx, s.store); err != nil {
			return 0, fmt.Errorf("bytes_per_certificate was not measured: %w", err)
		}
		files = files[2:]
	}
	for _, path := range files {
		info, err := os.Stat(path)
		if err != nil {
			return 0, fmt.Errorf("bytes_per_certificate was not measured: %w", err)
		}
		total += info.Size()
	}
	return float64(total), nil
}
