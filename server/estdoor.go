package server

import (
	"crypto/tls"
	"crypto/x509"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/server/est"
	"github.com/brevet-pki/brevet/server/frontdoor"
)

// EST configures the door for EST.
type EST struct {
	// MinTLS is the oldest version of TLS that the door accepts. Zero means TLS 1.3.
	MinTLS uint16
}

// estDoor returns the door for EST.
func (s *Server) estDoor() frontdoor.Door {
	version := s.config.EST.MinTLS
	if version == 0 {
		version = tls.VersionTLS13
	}
	return est.New(est.Config{
		Registrar: s.registrar, Authorities: bundle{s.authority}, MinVersion: version,
		Labels: func() map[string]ra.Label { return s.policy.Current().Labels },
	})
}

// bundle implements est.Authorities.
type bundle struct{ authority *ca.Authority }

// Bundle implements est.Authorities.
func (b bundle) Bundle() (roots, intermediates [][]byte) { return b.authority.Trust().Bundle() }

// Has implements est.Authorities.
func (b bundle) Has(subject []byte) bool { return b.authority.Trust().Has(subject) }

// Chain implements est.Authorities.
func (b bundle) Chain(id pki.IssuerID) (chain []*x509.Certificate, root *x509.Certificate, err error) {
	return b.authority.Chain(id)
}
