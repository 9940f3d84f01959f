package server

import (
	"crypto/sha256"
	"crypto/x509"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// maxVouched bounds how many certificates' chains are remembered; past it all are forgotten, and verified anew.
const maxVouched = 8192

// voucher is what verifying a chain has shown, for ever: signatures, purposes and names do not change. Time and
// revocation do, and are looked at on every call.
type voucher struct {
	caller    caller
	notBefore time.Time // of the whole chain
	notAfter  time.Time
}

// vouched remembers which client certificates have verified, by their SHA-256. A certificate that has not verified is
// not remembered. It is safe for concurrent use.
type vouched struct {
	mu  sync.Mutex
	all map[[sha256.Size]byte]voucher
}

// voucherOf returns what verifying the certificate shows, at most once for each certificate while it is remembered.
func (g *gate) voucherOf(client clientInfo, now time.Time) (voucher, error) {
	g.vouched.mu.Lock()
	v, ok := g.vouched.all[client.sum]
	g.vouched.mu.Unlock()
	if ok && !now.Before(v.notBefore) && !now.After(v.notAfter) {
		return v, nil
	}
	v, err := g.verifyChain(client.leaf, now)
	if err != nil {
		return v, err
	}
	g.vouched.mu.Lock()
	defer g.vouched.mu.Unlock()
	if len(g.vouched.all) >= maxVouched || g.vouched.all == nil {
		g.vouched.all = map[[sha256.Size]byte]voucher{}
	}
	g.vouched.all[client.sum] = v
	return v, nil
}

// verifyChain checks signatures, purpose and identity (RFC 5280 §6).
func (g *gate) verifyChain(leaf *x509.Certificate, now time.Time) (voucher, error) {
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: g.roots, Intermediates: g.intermediates, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil || len(chains[0]) < 2 {
		return voucher{}, pki.Refuse(pki.RuleCertificate, "use a certificate for client authentication from this CA", "the certificate does not verify here")
	}
	serial, err := pki.SerialFromInt(leaf.SerialNumber)
	if err != nil || len(leaf.URIs) != 1 {
		return voucher{}, pki.Refuse(pki.RuleCertificate, "use a certificate from this CA", "the certificate names no identity")
	}
	id, err := pki.ParseSPIFFEID(leaf.URIs[0].String())
	if err != nil || id.TrustDomain() != g.trustDomain {
		return voucher{}, pki.Refuse(pki.RuleCertificate, "use a certificate from this CA", "the certificate names no identity of %s", g.trustDomain)
	}
	v := voucher{caller: caller{id: id, ref: pki.CertRef{Issuer: pki.IssuerOf(chains[0][1]), Serial: serial}}}
	for _, c := range chains[0] {
		if v.notBefore.IsZero() || c.NotBefore.After(v.notBefore) {
			v.notBefore = c.NotBefore
		}
		if v.notAfter.IsZero() || c.NotAfter.Before(v.notAfter) {
			v.notAfter = c.NotAfter
		}
	}
	return v, nil
}
