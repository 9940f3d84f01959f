package server

import (
	"context"

	"github.com/brevet-pki/brevet/ra/nonce"
	acmedoor "github.com/brevet-pki/brevet/server/acme"
	"github.com/brevet-pki/brevet/server/acme/validation"
)

// ACME configures the ACME door.
type ACME struct {
	Validation validation.Config
	// MinVersion is the oldest TLS version of clients, such as tls.VersionTLS13.
	MinVersion uint16
}

// newACMEDoor returns the ACME door of the HTTPS listener.
func (s *Server) newACMEDoor(ctx context.Context) (*acmedoor.Door, error) {
	c := s.config
	var sealer *nonce.Sealer
	used := c.Stores.ACMENonces
	if used == nil {
		used = acmedoor.NewNonceSet()
	} else {
		var err error
		if sealer, err = nonce.New(ctx, c.Stores.Nonces, c.Archive.Epoch()); err != nil {
			return nil, err
		}
	}
	return acmedoor.New(acmedoor.Config{
		URL: c.HTTPSURL, MinVersion: c.ACME.MinVersion,
		Accounts: s.acme, AccountChanges: s.acme, Orders: s.acme, Authorizations: s.acme, Certificates: s.acme, Terms: s.acme,
		Renewals: s.rotations, Authorities: c.Authorities,
		Validator: validation.New(c.ACME.Validation), Nonces: used, NonceSealer: sealer, Refusals: s.auditor, Meter: s.telemetry,
		Clock: c.Clock, Log: c.Log,
	})
}
