package x5c

import (
	"context"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// TLSAuthenticator is an ra.Authenticator for factory certificates with which devices authenticated to a TLS server
// ([pki.X5CTLSEvidence]). Its claims have the facts and the subjects of those of an [Authenticator], so that a device is
// the same identity by either. It is safe for concurrent use.
//
// It verifies that the certificates are those of a device of a source. It cannot verify that the device has the key: the
// TLS handshake has proved this, and the server makes such evidence from no other certificates.
type TLSAuthenticator struct{ sources sources }

// TLS returns the authenticator that trusts the same sources for certificates of TLS clients.
func (a *Authenticator) TLS() *TLSAuthenticator { return &TLSAuthenticator{a.sources} }

// SameAs returns the kind of evidence whose facts and subjects the claims have.
func (*TLSAuthenticator) SameAs() pki.EvidenceKind { return pki.EvidenceX5C }

// Facts implements ra.Authenticator.
func (*TLSAuthenticator) Facts() map[string]ra.FactType { return factTypes() }

// Unique returns the facts that distinguish two devices, as [Authenticator.Unique] does.
func (*TLSAuthenticator) Unique() []ra.UniqueFact { return uniqueFacts() }

// Identify implements ra.Authenticator.
func (a *TLSAuthenticator) Identify(_ context.Context, p ra.Presented) (ra.Claim, error) {
	e, err := readTLS(p.Evidence)
	if err != nil {
		return ra.Claim{}, err
	}
	presented, err := parse(e.Certificates)
	if err != nil {
		return ra.Claim{}, err
	}
	s, chain, err := a.sources.verify(presented, p.At)
	if err != nil {
		return ra.Claim{}, err
	}
	return s.claim(pki.EvidenceX5CTLS, chain, p)
}

// Bind implements ra.Authenticator. There is nothing to bind: the connection proves the evidence of each request again.
func (*TLSAuthenticator) Bind(context.Context, []byte, ra.Binding) error { return nil }
