package server

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/revocation"
)

// newACME returns the part of the registration authority for ACME. It seals external keys with a key of the store.
func (s *Server) newACME(ctx context.Context) (*acme.Authority, error) {
	c := s.config
	key, err := c.Stores.Nonces.SealingKey(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the sealing key: %w", err)
	}
	sealer, err := acme.NewSealer(key)
	if err != nil {
		return nil, err
	}
	own, err := ownNames(c.Names, c.HTTPSURL)
	if err != nil {
		return nil, err
	}
	return acme.New(acme.Config{
		Store: c.Stores.ACME, Registrar: s.registrar, Certificates: c.Stores.RA, Chains: s.authority, Revoker: revoker{s.revocations},
		Sealer: sealer, OwnNames: own, Revision: s.policy.Current, Clock: c.Clock,
	}), nil
}

// ownNames returns the names of the server, and the host of its external URL, as identifiers.
func ownNames(names []string, externalURL string) ([]acme.Identifier, error) {
	u, err := url.Parse(externalURL)
	if err != nil {
		return nil, err
	}
	if host := u.Hostname(); host != "" {
		names = append(slices.Clone(names), host)
	}
	dns, ips := splitNames(names)
	var all []acme.Identifier
	for _, n := range dns {
		all = append(all, acme.Identifier{Type: acme.DNS, Value: strings.ToLower(n)})
	}
	for _, ip := range ips {
		all = append(all, acme.Identifier{Type: acme.IP, Value: ip.Unmap().String()})
	}
	return all, nil
}

// revoker revokes certificates for ACME clients.
type revoker struct{ revocations *revocation.Authority }

// Revoke implements acme.Revoker.
func (r revoker) Revoke(ctx context.Context, v acme.Revocation) error {
	_, err := r.revocations.Apply(ctx, revocation.Change{
		Action: revocation.Revoke, Reason: v.Reason, Certificate: v.Certificate, Key: v.Key, Actor: v.By, Comment: v.Comment,
	})
	return err
}
