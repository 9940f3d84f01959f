package main

import (
	"context"
	"crypto/x509"
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

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/files"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/translog"
)

// node is everything that a server process holds open: token, store, archive. It closes in the opposite order.
type node struct {
	config  Config
	log     *slog.Logger
	token   *hsm.Token
	store   *sqlite.DB
	archive *translog.Archive
	keys    []*hsm.Key // those of the issuing CAs
	pace    pace
	closers []func() error
}

func (c *Config) storePath() string   { return filepath.Join(c.Directory, "store.db") }
func (c *Config) archivePath() string { return filepath.Join(c.Directory, "log.archive") }
func (c *Config) crlPath() string     { return filepath.Join(c.Directory, "crls") }

// openNode opens the parts, the token first: without it nothing else is worth touching.
func openNode(ctx context.Context, c Config, pin hsm.PIN, log *slog.Logger) (n *node, err error) {
	n = &node{config: c, log: log}
	if err := checkOwner(c.Directory); err != nil {
		return nil, err
	}
	if err := checkDirectory(c.Directory, log); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
			n = nil
		}
	}()
	if n.token, err = openToken(ctx, c.Token, pin); err != nil {
		return n, err
	}
	n.closers = append(n.closers, n.token.Close)
	if n.store, err = sqlite.Open(ctx, c.storePath()); err != nil {
		return n, err
	}
	n.closers = append(n.closers, n.store.Close)
	if err := n.expectArchive(ctx); err != nil {
		return n, err
	}
	if n.archive, err = translog.OpenArchiveOf(ctx, n.store.Log(), c.archivePath(), log); err != nil {
		return n, err
	}
	n.closers = append(n.closers, n.archive.Close)
	return n, nil
}

// checkOwner refuses a state directory of another account: what this process would write there, the server could not
// open as that account. A directory that does not exist passes.
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

// accountName returns the name of a user ID, or the number where it has none.
func accountName(id int) string {
	number := strconv.Itoa(id)
	if account, err := user.LookupId(number); err == nil {
		return account.Username
	}
	return number
}

// expectArchive refuses a store that has a log and no archive: without it nobody can tell whether the store is an old
// backup, which would make revoked certificates good again.
func (n *node) expectArchive(ctx context.Context) error {
	head, err := n.store.Log().Head(ctx)
	if err != nil || head.Size == 0 {
		return err
	}
	path := n.config.archivePath()
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the log's archive %s is missing, and the store has %d entries of it: put the archive back. If it is lost for good "+
			"and the store is the newest there is, make an empty file of that name, and the archive is written anew from the store", path, head.Size)
	}
	return nil
}

func openToken(ctx context.Context, c TokenConfig, pin hsm.PIN) (*hsm.Token, error) {
	path, err := module(c.Module)
	if err != nil {
		return nil, err
	}
	return hsm.Open(ctx, hsm.Config{Module: path, TokenLabel: c.Label, TokenSerial: c.Serial, Sessions: c.Sessions}, pin)
}

func (n *node) close() error {
	var err error
	for i := len(n.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, n.closers[i]())
	}
	return err
}

// issuers returns the installed CA certificates, and of those with a key in the token an Issuer each. A generation whose
// key has left the token is warned of, unless it was the last that could issue.
func (n *node) issuers(ctx context.Context) (issuers []ca.Issuer, all []*x509.Certificate, err error) {
	installed, err := n.store.CA().Installed(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, i := range installed {
		cert, err := x509.ParseCertificate(i.Certificate)
		if err != nil {
			return nil, nil, fmt.Errorf("read an installed CA certificate: %w", err)
		}
		all = append(all, cert)
	}
	var missing error
	for i, inst := range installed {
		if inst.Key == "" {
			continue
		}
		key, err := n.token.Find(ctx, hsm.KeyRef{Label: inst.Key, Public: all[i].PublicKey})
		if errors.Is(err, hsm.ErrNotFound) {
			n.log.Warn("the key of an installed CA is not in the token: it issues nothing, and its CRL is not renewed",
				"issuer", all[i].Subject.String(), "key", inst.Key)
			missing = fmt.Errorf("the key %q of %s: %w", inst.Key, all[i].Subject, err)
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("the key %q of %s: %w", inst.Key, all[i].Subject, err)
		}
		iss, err := ca.NewIssuer(all[i], key, all)
		if err != nil {
			return nil, nil, err
		}
		n.keys = append(n.keys, key)
		iss.Signer = n.pace.signer(key)
		issuers = append(issuers, iss)
	}
	if len(issuers) == 0 && missing != nil {
		return nil, nil, missing
	}
	if len(issuers) == 0 {
		return nil, nil, fmt.Errorf("no CA is installed in %s: run brevet ceremony install", n.config.storePath())
	}
	return issuers, all, n.config.checkIssues(issuers[len(issuers)-1])
}

// checkIssues verifies that relying parties will accept what a CA issues under this configuration.
func (c *Config) checkIssues(iss ca.Issuer) error {
	profiles, err := c.profiles()
	if err != nil {
		return err
	}
	names, err := server.CheckNames(c.Names)
	if err != nil {
		return err
	}
	id, err := pki.ServerID(c.TrustDomain)
	if err != nil {
		return err
	}
	return iss.CheckIssues(profiles, id, names, time.Now())
}

// checkOwnTrustDomain refuses another trust domain than that of the certificate that the server has: every identity on record
// is in that one.
func (c *Config) checkOwnTrustDomain() error {
	pair, err := enroll.ReadPair(filepath.Join(c.Directory, "own", "server"))
	if err != nil {
		return nil // there is none yet, or the server says what is wrong with it
	}
	if have := pair.ID().TrustDomain(); have != c.TrustDomain {
		return fmt.Errorf("trust_domain: the CA in %s is for %s, not for %s: correct the configuration, or install a CA in another directory",
			c.Directory, have, c.TrustDomain)
	}
	return nil
}

// server puts a server on top of the node. The zero ports are for one that will not run.
func (n *node) server(ctx context.Context, p ports) (*server.Server, error) {
	boundGarbage(ctx)
	if err := n.config.checkOwnTrustDomain(); err != nil {
		return nil, err
	}
	issuers, all, err := n.issuers(ctx)
	if err != nil {
		return nil, err
	}
	profiles, err := n.config.profiles()
	if err != nil {
		return nil, err
	}
	return server.New(ctx, server.Config{
		TrustDomain: n.config.TrustDomain, Names: n.config.Names, Address: n.config.Address,
		Directory: filepath.Join(n.config.Directory, "own"),
		CRLs:      server.CRLs{Directory: n.config.crlPath(), Directories: n.config.CRL.Directories, Partitions: n.config.CRL.Partitions, MaxAge: n.config.CRL.MaxAge},
		GRPC:      p.grpc, HTTP: p.http, Operations: p.operations,
		Issuers: issuers, Authorities: all, Profiles: profiles,
		Stores: server.Stores{
			CA: n.store.CA(), RA: n.store.RA(), Retention: n.store.RA(), Revocation: n.store.Revocation(), Feed: n.store.Revocation(), Log: n.store.Log(),
		},
		Archive: n.archive, Token: hsm.Watched{Token: n.token, Keys: n.keys}, Disk: n.config.volume(), Retention: n.config.Retention,
		Limits: n.config.limits(),
		OCSP:   server.OCSP{MaxAge: n.config.OCSP.MaxAge, ExtendedRevoke: n.config.OCSP.ExtendedRevoke},
		Traces: server.Traces{Endpoint: n.config.Traces.Endpoint, Share: n.config.Traces.Share}, Clock: time.Now, Log: n.log,
	})
}

func (c *Config) limits() server.Limits {
	return server.Limits{Identity: admission.Rate(c.Limits.Identity), Address: admission.Rate(c.Limits.Address)}
}

// ports are the listeners of a server. The zero value is those of one that will not run.
type ports struct{ grpc, http, operations net.Listener }

// listen opens all listeners, or none. No address means no operations port.
func (c *Config) listen(ctx context.Context) (p ports, err error) {
	for _, l := range []struct {
		key, address string
		to           *net.Listener
	}{
		{"listen.grpc", c.Listen.GRPC, &p.grpc}, {"listen.http", c.Listen.HTTP, &p.http},
		{"listen.operations", c.Listen.Operations, &p.operations},
	} {
		if l.address == "" {
			continue
		}
		if *l.to, err = listen(ctx, l.key, l.address); err != nil {
			return ports{}, errors.Join(err, p.close())
		}
	}
	return p, nil
}

func (p ports) close() error {
	var err error
	for _, l := range []net.Listener{p.grpc, p.http, p.operations} {
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

// makeDirectory makes the state directory, for its owner alone.
func makeDirectory(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("make the directory %s: %w", path, err)
	}
	return nil
}

// checkDirectory refuses a state directory that other accounts can write to, or whose file system cannot flush directories,
// and warns of one that they can enter.
func checkDirectory(path string, log *slog.Logger) error {
	info, err := os.Stat(path)
	if err != nil {
		return nil //nolint:nilerr // opening the store says what is missing
	}
	if mode := info.Mode().Perm(); mode&0o007 != 0 {
		log.Warn("other users can enter the server's directory: give it mode 0700", "directory", path, "mode", mode)
	}
	return errors.Join(files.CheckPrivate(path, 0o022), files.ProbeFlush(path))
}
