package server

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
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
func (s *Server) newACMEDoor() (*acmedoor.Door, error) {
	c := s.config
	return acmedoor.New(acmedoor.Config{
		URL: c.HTTPSURL, MinVersion: c.ACME.MinVersion,
		Accounts: s.acme, AccountChanges: s.acme, Orders: s.acme, Authorizations: s.acme, Certificates: s.acme, Terms: s.acme,
		Renewals: renewalWindows{c.Stores.RA}, Authorities: c.Authorities,
		Validator: validation.New(c.ACME.Validation), Nonces: acmedoor.NewNonceSet(c.Clock), Clock: c.Clock, Log: c.Log,
	})
}

// renewalWindows suggests to renew a certificate in the last third of its lifetime, and at once if it is revoked.
type renewalWindows struct{ records ra.Store }

// RenewalInfo implements acme.Renewals.
func (r renewalWindows) RenewalInfo(ref pki.CertRef) (start, end time.Time, retryAfter time.Duration, err error) {
	c, err := r.records.Certificate(context.Background(), ref)
	if err != nil {
		return start, end, 0, err
	}
	third := c.NotAfter.Sub(c.NotBefore) / 3
	if c.Status.State == pki.Revoked {
		return c.NotBefore, c.NotBefore.Add(time.Minute), third, nil
	}
	return c.NotAfter.Add(-third), c.NotAfter.Add(-third * 4 / 5), min(third, 6*time.Hour), nil
}
