package node

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server"
)

// InstalledCA returns the certificate of the installed CA with a full or short identifier. A CA that was
// removed is found, too, since its record stays.
func (n *Node) InstalledCA(ctx context.Context, id string) (*x509.Certificate, error) {
	installed, err := n.store.CA().Installed(ctx)
	if err != nil {
		return nil, err
	}
	var known []string
	for _, i := range installed {
		cert, err := x509.ParseCertificate(i.Certificate)
		if err != nil {
			return nil, fmt.Errorf("read an installed CA certificate: %w", err)
		}
		if have := pki.IssuerOf(cert); id == have.String() || id == have.Short() {
			return cert, nil
		}
		known = append(known, fmt.Sprintf("%s (%s)", cert.Subject, pki.IssuerOf(cert).Short()))
	}
	return nil, fmt.Errorf("no CA with the identifier %q is installed: name one of %s", id, strings.Join(known, ", "))
}

// Retire retires a CA, after it has checked that the server can issue without it. For a root, confirm is the number of
// certificates under it that are neither expired nor revoked.
func (n *Node) Retire(ctx context.Context, id pki.IssuerID, confirm int, by pki.Actor) error {
	all, err := n.authorities(ctx)
	if err != nil {
		return err
	}
	next := all.last(func(a *authority) bool { return a.issues() && a.id() != id })
	if next != nil {
		if err := n.checkCA(ctx, *next.issuer); err != nil {
			return err
		}
		return n.store.CA().Retire(ctx, id, time.Now(), confirm, by)
	}
	return errors.New("no other CA is active and has its key in an HSM: install the next generation first, with brevet ceremony install")
}

// Remove removes a CA from the store, and then deletes its files. If deleting fails, Remove can be repeated.
func (n *Node) Remove(ctx context.Context, id pki.IssuerID, by pki.Actor) error {
	if err := n.store.CA().Remove(ctx, id, time.Now(), by); err != nil {
		return err
	}
	crls := filepath.Join(n.config.crlPath(), id.Short())
	return errors.Join(server.RemoveDelegate(n.config.ownPath(), id), os.RemoveAll(crls), os.RemoveAll(crls+".crl"))
}
