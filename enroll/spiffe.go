package enroll

import (
	"crypto/x509"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

var (
	_ x509svid.Source   = (*Source)(nil)
	_ x509bundle.Source = (*Source)(nil)
)

// GetX509SVID returns the credential in use as an X.509-SVID, with its chain. It implements [x509svid.Source].
func (h *holder) GetX509SVID() (*x509svid.SVID, error) {
	p := h.Pair()
	if p == nil {
		return nil, errNotEnrolled()
	}
	id, err := spiffeid.FromString(p.ID().String())
	if err != nil {
		return nil, err
	}
	certs := append([]*x509.Certificate{p.Certificate}, p.Chain...)
	return &x509svid.SVID{ID: id, Certificates: certs, PrivateKey: p.Key}, nil
}

// GetX509BundleForTrustDomain returns the roots of the credential's trust domain. It returns an error for any other
// trust domain. It implements [x509bundle.Source].
func (h *holder) GetX509BundleForTrustDomain(domain spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	p := h.Pair()
	if p == nil {
		return nil, errNotEnrolled()
	}
	if own := p.ID().TrustDomain(); domain.Name() != own {
		return nil, fmt.Errorf("no roots for the trust domain %s: this credential trusts %s only", domain.Name(), own)
	}
	return x509bundle.FromX509Authorities(domain, p.Roots), nil
}
