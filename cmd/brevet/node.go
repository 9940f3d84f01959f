package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/server"
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
	closers []func() error
}

func (c *Config) storePath() string   { return filepath.Join(c.Directory, "store.db") }
func (c *Config) archivePath() string { return filepath.Join(c.Directory, "log.archive") }

// openNode opens the parts, the token first: without it nothing else is worth touching.
func openNode(ctx context.Context, c Config, pin hsm.PIN, log *slog.Logger) (n *node, err error) {
	n = &node{config: c, log: log}
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
	if n.archive, err = translog.OpenArchive(c.archivePath(), log); err != nil {
		return n, err
	}
	n.closers = append(n.closers, n.archive.Close)
	return n, nil
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

// issuers returns the installed CA certificates, and of those with a key in the token an Issuer each.
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
	for i, inst := range installed {
		if inst.Key == "" {
			continue
		}
		key, err := n.token.Find(ctx, hsm.KeyRef{Label: inst.Key})
		if err != nil {
			return nil, nil, fmt.Errorf("the key %q of %s: %w", inst.Key, all[i].Subject, err)
		}
		iss, err := ca.NewIssuer(all[i], key, all)
		if err != nil {
			return nil, nil, err
		}
		issuers = append(issuers, iss)
	}
	if len(issuers) == 0 {
		return nil, nil, fmt.Errorf("no CA is installed in %s: run brevet ceremony install", n.config.storePath())
	}
	return issuers, all, nil
}

// server puts a server on top of the node. Listeners may be nil for one that will not run.
func (n *node) server(ctx context.Context, grpc, http net.Listener) (*server.Server, error) {
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
		Directory: filepath.Join(n.config.Directory, "own"), GRPC: grpc, HTTP: http,
		Issuers: issuers, Authorities: all, Profiles: profiles,
		Stores: server.Stores{
			CA: n.store.CA(), RA: n.store.RA(), Revocation: n.store.Revocation(), Feed: n.store.Revocation(), Log: n.store.Log(),
		},
		Archive: n.archive, Clock: time.Now, Log: n.log,
	})
}

// listen opens both listeners, or neither.
func (c *Config) listen(ctx context.Context) (grpc, http net.Listener, err error) {
	var lc net.ListenConfig
	if grpc, err = lc.Listen(ctx, "tcp", c.Listen.GRPC); err != nil {
		return nil, nil, fmt.Errorf("listen.grpc: %w: is another server running?", err)
	}
	if http, err = lc.Listen(ctx, "tcp", c.Listen.HTTP); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("listen.http: %w: is another server running?", err), grpc.Close())
	}
	return grpc, http, nil
}

// makeDirectory makes the state directory, for its owner alone.
func makeDirectory(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("make the directory %s: %w", path, err)
	}
	return nil
}
