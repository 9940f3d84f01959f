package server

import (
	"context"
	"fmt"

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
	return acme.New(acme.Config{
		Store: c.Stores.ACME, Registrar: s.registrar, Certificates: c.Stores.RA, Chains: s.authority, Revoker: revoker{s.revocations},
		Sealer: sealer, Revision: s.policy.Current, Clock: c.Clock,
	}), nil
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
