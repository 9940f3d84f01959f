package crl

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/brevet-pki/brevet/pki"
)

// Listed is what a CRL of this server lists, and for which certificates.
type Listed struct {
	Entries []Entry
	URLs    []string // of its distribution point; none if it is the full CRL
	Delta   bool
}

// ReadListed returns what a CRL lists. It refuses a CRL that an [Updater] cannot have signed.
func ReadListed(list *x509.RevocationList, now time.Time) (l Listed, err error) {
	if list.Number == nil || list.NextUpdate.IsZero() {
		return l, refuseCRL("give a CRL of this server", "the CRL has no number or no nextUpdate (RFC 5280 sections 5.1.2.5 and 5.2.3)")
	}
	if list.ThisUpdate.After(now) {
		return l, refuseCRL("compare the clocks of both machines", "the CRL's thisUpdate is in the future, at %s", list.ThisUpdate.Format(time.RFC3339))
	}
	for _, e := range list.Extensions {
		switch {
		case e.Id.Equal(oidDeltaCRL):
			l.Delta = true
		case e.Id.Equal(oidDistributionPoint):
			if l.URLs, err = readPoint(e.Value); err != nil {
				return l, err
			}
		case e.Critical:
			return l, refuseCRL("give a CRL of this server", "the CRL has the critical extension %v", e.Id)
		}
	}
	for _, r := range list.RevokedCertificateEntries {
		e := Entry{RevokedAt: r.RevocationTime, Removed: r.ReasonCode == removeFromCRL}
		if e.Serial, err = pki.SerialFromInt(r.SerialNumber); err != nil {
			return l, err
		}
		if e.Removed {
			e.RevokedAt = time.Time{}
		} else if e.Reason, err = pki.ReasonFromCode(r.ReasonCode); err != nil {
			return l, err
		}
		for _, x := range r.Extensions {
			if x.Id.Equal(oidInvalidityDate) {
				if _, err := asn1.UnmarshalWithParams(x.Value, &e.InvalidSince, "generalized"); err != nil {
					return l, fmt.Errorf("read the invalidity date of %s: %w", e.Serial, err)
				}
			}
		}
		l.Entries = append(l.Entries, e)
	}
	return l, nil
}

// readPoint returns the URLs of an issuing distribution point that has nothing else (RFC 5280 section 5.2.5).
func readPoint(der []byte) (urls []string, err error) {
	in := cryptobyte.String(der)
	for _, tag := range []cbasn1.Tag{cbasn1.SEQUENCE, cbasn1.Tag(0).ContextSpecific().Constructed(), cbasn1.Tag(0).ContextSpecific().Constructed()} {
		var inner cryptobyte.String
		if !in.ReadASN1(&inner, tag) || !in.Empty() {
			return nil, refuseCRL("give a CRL of this server", "its issuing distribution point does not consist of URLs")
		}
		in = inner
	}
	for !in.Empty() {
		var url cryptobyte.String
		if !in.ReadASN1(&url, cbasn1.Tag(6).ContextSpecific()) {
			return nil, refuseCRL("give a CRL of this server", "its issuing distribution point does not consist of URLs")
		}
		urls = append(urls, string(url))
	}
	return urls, nil
}
