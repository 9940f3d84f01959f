package telemetry

import (
	"context"
	"crypto/x509"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
)

// Expiries reports when the certificates and CRLs that the CA depends on expire.
type Expiries struct {
	Authorities []*x509.Certificate // all installed CA certificates, including roots
	Issuing     interface{ Current() ca.IssuingCA }
	// Own returns the server's own certificates, keyed by kind: server, and va for OCSP delegates.
	Own     func() map[string][]*x509.Certificate
	Records interface {
		CRLs(ctx context.Context) ([]crl.CRL, error)
	}
	Publisher interface {
		Scopes() []crl.Scope
		Mirrors() map[string]error
	}
	Clock func() time.Time
}

// expiryGauges are the gauges of Expiries.
type expiryGauges struct {
	Expiries
	expiry, begin, crl, crlEntries, crlBytes, crlFailing *prometheus.Desc
}

// Part returns gauges for everything that can expire. It omits an earlier issuing CA that has expired, and its CRLs,
// because they need no action.
func (e Expiries) Part() Part {
	g := expiryGauges{
		Expiries: e,
		expiry: gauge("brevet_expiry_timestamp_seconds",
			"When a certificate or CRL expires, as Unix time: certificates of the issuing CA, its root, those between, and "+
				"earlier issuing CAs; CRLs; the server's certificate; OCSP delegates (va).", "kind", "name"),
		begin: gauge("brevet_not_before_timestamp_seconds",
			"When these certificates become valid, as Unix time, with the same kind and name.", "kind", "name"),
		crl:        gauge("brevet_crl_this_update_timestamp_seconds", "When the published CRL was signed, as Unix time.", "name"),
		crlEntries: gauge("brevet_crl_entries", "Certificates in the published CRL.", "name"),
		crlBytes:   gauge("brevet_crl_bytes", "Size of the published CRL.", "name"),
		crlFailing: gauge("brevet_crl_directory_failing",
			"1 if the last try to publish CRLs to this directory failed, else 0.", "directory"),
	}
	return Part{[]*prometheus.Desc{g.expiry, g.begin, g.crl, g.crlEntries, g.crlBytes, g.crlFailing}, g.collect}
}

func (g expiryGauges) collect(ctx context.Context, s *scrape) {
	names, now := map[pki.IssuerID]string{}, g.Clock()
	for _, c := range g.Authorities {
		kind, id := g.kindOf(c), pki.IssuerOf(c)
		if kind == "earlier" && now.After(c.NotAfter) {
			continue
		}
		names[id] = nameOfCA(c)
		g.certificate(s, c, kind, names[id])
	}
	for kind, certs := range g.Own() {
		for _, c := range certs {
			g.certificate(s, c, kind, identityOf(c))
		}
	}
	g.crls(ctx, s, names)
	for directory, failure := range g.Publisher.Mirrors() {
		s.setBool(g.crlFailing, failure != nil, directory)
	}
}

// nameOfCA returns the value of the label "name" for a CA.
func nameOfCA(c *x509.Certificate) string { return c.Subject.String() + " " + pki.IssuerOf(c).Short() }

func (g expiryGauges) certificate(s *scrape, c *x509.Certificate, kind, name string) {
	s.setTime(g.expiry, c.NotAfter, kind, name)
	s.setTime(g.begin, c.NotBefore, kind, name)
}

// crls sets the gauges of the published CRLs of the CAs in names.
func (g expiryGauges) crls(ctx context.Context, s *scrape, names map[pki.IssuerID]string) {
	crls, err := g.Records.CRLs(ctx)
	if err != nil {
		s.failures++
	}
	current := map[crl.Scope]bool{}
	for _, scope := range g.Publisher.Scopes() {
		current[scope] = true
	}
	for _, c := range crls {
		if !current[c.Scope()] {
			continue // the CRL of a CA that is not installed, or a delta CRL to which no certificate points any more
		}
		if name, living := names[c.Issuer]; living {
			if c.Partition != 0 {
				name += " " + strings.TrimSuffix(path.Base(c.Scope().Path()), ".crl")
			}
			s.setTime(g.expiry, c.NextUpdate, "crl", name)
			s.setTime(g.crl, c.ThisUpdate, name)
			s.set(g.crlEntries, float64(c.Entries), name)
			s.set(g.crlBytes, float64(c.Size), name)
		}
	}
}

// kindOf returns the value of the label "kind" for a CA: its relation to the current issuing CA.
func (g expiryGauges) kindOf(c *x509.Certificate) string {
	current := g.Issuing.Current()
	switch {
	case c.Equal(current.Certificate):
		return "issuing"
	case c.Equal(current.Root):
		return "root"
	case slices.ContainsFunc(current.Chain, c.Equal):
		return "intermediate"
	default:
		return "earlier"
	}
}

// identityOf returns the SPIFFE ID of a certificate.
func identityOf(c *x509.Certificate) string {
	if len(c.URIs) == 0 {
		return ""
	}
	return c.URIs[0].String()
}
