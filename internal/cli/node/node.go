package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/files"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/server"
	acmedoor "github.com/brevet-pki/brevet/server/acme"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/telemetry"
	"github.com/brevet-pki/brevet/store/postgres"
	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/store/tables"
	"github.com/brevet-pki/brevet/translog"
)

// Node holds the open resources of a server process: HSMs, store and archive. Close closes them in reverse order.
type Node struct {
	config  Config
	log     *slog.Logger
	hsms    []*issuingHSM
	store   *tables.DB
	archive *translog.Archive
	copy    *translog.Copy // nil if none is configured
	slow    time.Duration  // slowOpen
	looked  error          // of the look for another process under the name of this server
	closers []func() error
}

// slowOpen is how long the start waits for a file before it says so in the log.
const slowOpen = 10 * time.Second

// opening logs a warning if the start has not got further by the time the result is called. A call to a mount whose server is
// gone can take forever.
func (n *Node) opening(path string) (opened func()) {
	begun := time.Now()
	t := time.AfterFunc(n.slow, func() {
		n.log.Warn("opening a file takes long, waiting for it", "path", path, "wait", time.Since(begun).Round(time.Millisecond))
	})
	return func() { t.Stop() }
}

// StorePath returns the path of the store, if that is SQLite.
func (c *Config) StorePath() string { return filepath.Join(c.StateDir, "store.db") }

// ArchivePath returns the path of the log's archive.
func (c *Config) ArchivePath() string { return filepath.Join(c.StateDir, archiveName) }

// archiveName is the name of the log's archive in the state directory, and of its copy in another one.
const archiveName = "log.archive"

func (c *Config) crlPath() string { return filepath.Join(c.StateDir, "crls") }
func (c *Config) ownPath() string { return filepath.Join(c.StateDir, "own") }

// evidencePath is the directory with the files of trust sources.
func (c *Config) evidencePath() string { return filepath.Join(c.StateDir, "evidence") }

// firstPolicy reads the configured first policy. It returns nil if none is configured.
func (c *Config) firstPolicy() ([]byte, error) {
	if c.Policy == "" {
		return nil, nil
	}
	document, err := os.ReadFile(c.Policy)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return document, nil
}

// Open opens the HSMs, and then the store and the archive. pin is the PIN of c.HSM.
func Open(ctx context.Context, c Config, pin hsm.PIN, log *slog.Logger) (*Node, error) {
	n := &Node{config: c, log: log, slow: slowOpen}
	if err := n.checkDirectory(); err != nil {
		return nil, err
	}
	hsms, err := openHSMs(ctx, c, pin, log)
	if err != nil {
		return nil, err
	}
	n.hsms = hsms
	n.closers = append(n.closers, func() error { return closeHSMs(hsms) })
	if err := n.openRecords(ctx); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// OpenKeyless opens the store and the archive, but no HSM.
func OpenKeyless(ctx context.Context, c Config, log *slog.Logger) (*Node, error) {
	n := &Node{config: c, log: log, slow: slowOpen}
	if err := n.checkDirectory(); err != nil {
		return nil, err
	}
	if err := n.openRecords(ctx); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func (n *Node) checkDirectory() error {
	defer n.opening(n.config.StateDir)()
	if err := checkOwner(n.config.StateDir); err != nil {
		return err
	}
	if _, err := os.Stat(n.config.StateDir); errors.Is(err, fs.ErrNotExist) {
		return &sqlite.MissingDirectoryError{Dir: n.config.StateDir}
	}
	return checkDirectory(n.config.StateDir, n.log)
}

// openRecords opens the store and the archive.
func (n *Node) openRecords(ctx context.Context) (err error) {
	if n.config.Store.Postgres != "" {
		n.looked = postgres.CheckUnused(ctx, n.config.Store.Postgres, n.config.Store.Server)
	}
	if n.store, err = n.config.openStore(ctx); err != nil {
		return err
	}
	n.closers = append(n.closers, n.store.Close)
	if err := n.store.Restoring().Check(ctx); err != nil {
		return err
	}
	defer n.opening(n.config.ArchivePath())()
	if err := n.expectArchive(ctx); err != nil {
		return err
	}
	if err := n.expectStore(ctx); err != nil {
		return err
	}
	if n.archive, err = translog.OpenArchiveOf(ctx, n.store.Log(), n.config.ArchivePath(), n.log); err != nil {
		return err
	}
	n.closers = append(n.closers, n.archive.Close)
	if directory := n.config.Archive.Copy; directory != "" {
		n.copy = translog.NewCopy(n.archive, filepath.Join(directory, archiveName), n.log)
	}
	return nil
}

// CheckUnused returns an error if another process ran under the name of this server when the node was opened, or if that is
// not known. A server that starts replaces that process, which then issues nothing any more. A command that is not the server
// must not do that.
func (n *Node) CheckUnused() error { return n.looked }

// Replaces returns an error if another process ran under the name of this server when the node was opened.
func (n *Node) Replaces() error {
	if errors.As(n.looked, new(*postgres.NameInUseError)) {
		return n.looked
	}
	return nil
}

// openStore opens the configured store.
func (c *Config) openStore(ctx context.Context) (*tables.DB, error) {
	if c.Store.Postgres != "" {
		return postgres.Open(ctx, c.Store.Postgres, c.Store.Server)
	}
	return sqlite.Open(ctx, c.StorePath())
}

// checkOwner returns an error if the state directory belongs to another account. The server runs as that account, and
// could not open the files that this process creates. A missing directory is accepted.
func checkOwner(directory string) error {
	var info unix.Stat_t
	if err := unix.Stat(directory, &info); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("look at the directory %s: %w", directory, err)
	}
	if me := os.Geteuid(); int(info.Uid) != me {
		return fmt.Errorf("the directory %s belongs to %s, and this process runs as %s: run it as the directory's owner, such as with "+
			"runuser -u %s -- brevet …, or give the directory to the account that is to run the server",
			directory, accountName(int(info.Uid)), accountName(me), accountName(int(info.Uid)))
	}
	return nil
}

// accountName returns the name of a user ID, or the number if it has no name.
func accountName(id int) string {
	number := strconv.Itoa(id)
	if account, err := user.LookupId(number); err == nil {
		return account.Username
	}
	return number
}

// expectArchive returns an error if the store has log entries but the archive is missing. Without the archive, the
// server could not detect an old backup of the store, in which revoked certificates are good again.
func (n *Node) expectArchive(ctx context.Context) error {
	head, err := n.store.Log().Head(ctx)
	if err != nil || head.Size == 0 {
		return err
	}
	if n.config.Store.Postgres != "" {
		if has, err := n.store.HasServed(ctx); err != nil || !has {
			return err // a server that joins others begins its archive with what the store has
		}
	}
	path := n.config.ArchivePath()
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := n.Replaces(); err != nil { // the archive is probably on the machine of that process
			return err
		}
		return fmt.Errorf("the log's archive %s is missing, and the store has %d entries of it: put the archive back. If it is lost for good, "+
			"put its copy there, such as the one in archive.copy; if the store is the newest there is and no entry has left it, an empty file of that "+
			"name will do, and the archive is written anew from the store", path, head.Size)
	}
	return nil
}

// expectStore returns an error if the store is empty, and the archive has entries. Then the store was lost, or the
// configuration names another one.
func (n *Node) expectStore(ctx context.Context) error {
	written, err := n.store.Log().Written(ctx)
	if err != nil || written > 0 {
		return err
	}
	path := n.config.ArchivePath()
	f, err := files.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	head, _, _, err := translog.Measure(f)
	if err != nil || head.Size == 0 {
		return nil // opening the archive reports the error
	}
	what := n.config.StorePath()
	if n.config.Store.Postgres != "" {
		what = "in the database of store.postgres"
	}
	return fmt.Errorf("the store %s is empty, and the log's archive %s has %d entries: the store is lost, or it is not that of this archive. "+
		"If it is lost, move the archive out of the directory, and run brevet restore with the newest backup and --archive; "+
		"for a new CA, use a directory without an archive", what, path, head.Size)
}

// OpenHSM logs in to a configured HSM.
func OpenHSM(ctx context.Context, c HSMConfig, pin hsm.PIN) (*hsm.HSM, error) {
	path, err := Module(c.Module)
	if err != nil {
		return nil, err
	}
	return hsm.Open(ctx, hsm.Config{Module: path, Label: c.Label, Serial: c.Serial, Sessions: c.Sessions}, pin)
}

// Close closes all resources, in reverse order of opening.
func (n *Node) Close() error {
	var err error
	for i := len(n.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, n.closers[i]())
	}
	return err
}

// checkOwnTrustDomain returns an error if the configured trust domain differs from that of the server's own
// certificate. Every identity in the store belongs to the trust domain of that certificate.
func (c *Config) checkOwnTrustDomain() error {
	pair, err := enroll.ReadPair(filepath.Join(c.ownPath(), "server"))
	if err != nil {
		return nil //nolint:nilerr // there is no certificate yet, or the server reports the error itself
	}
	if have := pair.ID().TrustDomain(); have != c.TrustDomain {
		return fmt.Errorf("trust_domain: the CA in %s is for %s, not for %s: correct the configuration, or install a CA in another directory",
			c.StateDir, have, c.TrustDomain)
	}
	return nil
}

// Server returns a server that uses the node. p is zero for a server that will not run.
func (n *Node) Server(ctx context.Context, p Ports) (*server.Server, error) {
	c, err := n.ServerConfig(ctx, p)
	if err != nil {
		return nil, err
	}
	BoundGarbage(ctx)
	return server.New(ctx, c)
}

// ServerConfig returns the configuration of a server that uses the node.
func (n *Node) ServerConfig(ctx context.Context, p Ports) (server.Config, error) {
	if err := n.config.checkOwnTrustDomain(); err != nil {
		return server.Config{}, err
	}
	all, err := n.authorities(ctx)
	if err != nil {
		return server.Config{}, err
	}
	if err := n.config.checkIssues(*all.current().issuer); err != nil {
		return server.Config{}, err
	}
	oldest, err := n.config.EST.version()
	if err != nil {
		return server.Config{}, err
	}
	policy, err := n.config.firstPolicy()
	if err != nil {
		return server.Config{}, err
	}
	acme, err := n.config.ACME.server()
	if err != nil {
		return server.Config{}, err
	}
	cross, err := n.cross(ctx)
	if err != nil {
		return server.Config{}, err
	}
	var nonces acmedoor.UsedNonces // of this server alone
	var delegates server.DelegateRequests
	if n.config.Store.Postgres != "" {
		nonces, delegates = n.store.Nonces(), n.store.Delegates()
	}
	return server.Config{
		TrustDomain: n.config.TrustDomain, Server: n.config.Store.Server, Names: n.config.ServerNames, Address: n.config.AdvertiseAddress,
		Directory: n.config.ownPath(), EvidenceDirectory: n.config.evidencePath(), Policy: policy,
		CRLs: server.CRLs{Directory: n.config.crlPath(), Directories: n.config.CRL.Directories, Partitions: n.config.CRL.Partitions, MaxAge: n.config.CRL.MaxAge},
		GRPC: p.grpc, HTTP: p.http, HTTPS: p.https, Operations: p.operations, HTTPSURL: n.config.HTTPSURL, EST: server.EST{MinTLS: oldest},
		Issuers: all.issuers(), Authorities: all.certificates(), Retired: all.retired(), Cross: cross, PublicURL: n.config.PublicURL,
		Stores: server.Stores{
			CA: n.store.CA(), RA: n.store.RA(), Policies: n.store.RA(), Nonces: n.store.RA(), ACME: n.store.ACME(), ACMENonces: nonces, Audit: n.store.RA(), Retention: n.store.RA(), Revocation: n.store.Revocation(), Rotations: n.store.Rotations(), CRLs: n.store.Revocation(), Exchange: n.store.Exchange(), Delegates: delegates, Feed: n.store.Revocation(), Log: n.store.Log(),
		},
		MaxStaleness: n.config.maxStaleness(), Archive: n.archive, Copy: n.copy, HSMs: issuingHSMs(n.hsms), Disk: n.config.volume(), Retention: n.config.Retention,
		Limits: n.config.Limits(),
		OCSP:   server.OCSP{MaxAge: n.config.OCSP.MaxAge, ExtendedRevoke: n.config.OCSP.ExtendedRevoke}, ACME: acme,
		Traces: telemetry.Traces{Endpoint: n.config.Tracing.Endpoint, SampleRatio: n.config.Tracing.SampleRatio}, Clock: time.Now, Log: n.log,
	}, nil
}

// maxStaleness returns the maximum age of statuses. It is zero for a server that has the store for itself.
func (c *Config) maxStaleness() time.Duration {
	if c.Store.Postgres == "" {
		return 0
	}
	return c.Replica.MaxStaleness
}

// Limits returns the configured rate limits.
func (c *Config) Limits() server.Limits {
	return server.Limits{Identity: admission.Rate(c.RateLimits.Identity), Address: admission.Rate(c.RateLimits.Address)}
}

// Ports holds the listeners of a server. It is zero for a server that will not run.
type Ports struct{ grpc, http, https, operations net.Listener }

// OpenListeners opens all listeners. If one fails, it closes the others. It opens none for a port that is turned off.
func (c *Config) OpenListeners(ctx context.Context) (p Ports, err error) {
	for _, l := range []struct {
		key, address string
		to           *net.Listener
	}{
		{"listen.grpc", c.Listen.GRPC, &p.grpc}, {"listen.http", c.Listen.HTTP, &p.http},
		{"listen.https", c.Listen.HTTPS, &p.https}, {"listen.operations", c.Listen.Operations, &p.operations},
	} {
		if l.address == "" {
			continue
		}
		if *l.to, err = listen(ctx, l.key, l.address); err != nil {
			return Ports{}, errors.Join(err, p.Close())
		}
	}
	return p, nil
}

// Close closes the open listeners.
func (p Ports) Close() error {
	var err error
	for _, l := range []net.Listener{p.grpc, p.http, p.https, p.operations} {
		if l != nil {
			err = errors.Join(err, l.Close())
		}
	}
	return err
}

func listen(ctx context.Context, key, address string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		err = fmt.Errorf("%w: is another server running? Stop it, or set another address", err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		err = fmt.Errorf("%w: it is none of this machine's, which ip address shows", err)
	case errors.Is(err, syscall.EACCES):
		err = fmt.Errorf("%w: this account may not listen below port 1024: set a higher one", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return l, nil
}

// MakeDirectory creates the state directory with mode 0700.
func MakeDirectory(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("make the directory %s: %w", path, err)
	}
	return nil
}

// checkDirectory returns an error if other accounts can write to the state directory, or if its file system cannot sync
// directories. It logs a warning if other accounts have any permission on it.
func checkDirectory(path string, log *slog.Logger) error {
	info, err := os.Stat(path)
	if err != nil {
		return nil //nolint:nilerr // opening the store reports the error
	}
	if mode := info.Mode().Perm(); mode&0o007 != 0 {
		log.Warn("other users can enter the server's directory: give it mode 0700", "directory", path, "mode", mode)
	}
	return errors.Join(files.CheckPrivate(path, 0o022), files.ProbeFlush(path))
}

// Stopped returns nil if the start of the server failed because a signal cancelled ctx. Otherwise it returns err.
func Stopped(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return server.Orderly(err)
}
