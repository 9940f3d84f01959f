package ca

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/brevet-pki/brevet/pki"
)

// MaxPartitions bounds the partitions of an issuing CA's CRL, each of which is signed and kept current by itself.
const MaxPartitions = 1024

// DefaultPartitions is how many there are unless the configuration says otherwise.
const DefaultPartitions = 16

// MaxNoRevAvailLifetime bounds certificates with noRevAvail, which relying parties accept to their end whatever happens to
// their keys. RFC 9608 section 1 has them live for less than it takes to detect, report and distribute a revocation,
// and names no time. A week is what a delegated OCSP certificate may live, which is trusted as blindly.
const MaxNoRevAvailLifetime = 7 * 24 * time.Hour

// What a profile's URLs are filled in with.
const (
	publicURLField = "{public_url}"
	issuerField    = "{issuer}"
	partitionField = "{partition}"
)

// noRevAvail tells relying parties that there is nothing to learn of the certificate's revocation (RFC 9608 §2).
var noRevAvail = pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 56}, Value: asn1.NullBytes}

// CheckPartitions reports a number of partitions that is out of range, and says what would pass.
func CheckPartitions(n int) error {
	if n < 1 || n > MaxPartitions {
		return fmt.Errorf("%d is out of range: use 1 to %d", n, MaxPartitions)
	}
	return nil
}

// CRLPoint returns the URLs that certificates of the profile name for one partition of an issuing CA's CRL, 1 or more: of
// its CRL in their CRL distribution points (RFC 5280 §4.2.1.13), and of its delta CRL in their freshest CRL (§4.2.1.15). Both are
// empty where the profile is not partitioned, and the second where its certificates name no delta. Partition 0 is the
// CRL of everything, which has no URL of this kind.
func (p *Profile) CRLPoint(issuer pki.IssuerID, partition uint16) (url, deltaURL string) {
	if !p.partitioned || partition == 0 {
		return "", ""
	}
	fill := func(u string) string {
		return strings.ReplaceAll(strings.ReplaceAll(u, issuerField, issuer.Short()), partitionField, strconv.Itoa(int(partition)))
	}
	return fill(p.crlURL), fill(p.deltaCRLURL)
}

// partitionOf returns the partition of a certificate: 0 where its profile has none, or else 1 to n, which its serial number
// chooses. Of that the last 8 octets are random, so that partitions fill alike.
func (p *Profile) partitionOf(serial pki.Serial, n int) uint16 {
	if !p.partitioned {
		return 0
	}
	random := binary.BigEndian.Uint64(serial.Bytes()[pki.SerialSize-8:])
	return uint16(1 + random%uint64(n)) //nolint:gosec // n is MaxPartitions at most
}

// readURLs fills in the server's own URL and checks what comes of it.
func (p *Profile) readURLs(c ProfileConfig, publicURL string) error {
	for _, u := range []struct {
		key, from string
		to        *string
		parted    bool // may name a partition
	}{
		{"crl_url", c.CRLURL, &p.crlURL, true}, {"delta_crl_url", c.DeltaCRLURL, &p.deltaCRLURL, true},
		{"ocsp_url", c.OCSPURL, &p.ocspURL, false}, {"ca_url", c.CAURL, &p.caURL, false},
	} {
		if !u.parted && strings.Contains(u.from, partitionField) {
			return fmt.Errorf("%s: only crl_url and delta_crl_url name a partition: take %s out", u.key, partitionField)
		}
		text := strings.ReplaceAll(u.from, publicURLField, strings.TrimSuffix(publicURL, "/"))
		if err := checkURL(text); err != nil {
			return fmt.Errorf("%s: %w", u.key, err)
		}
		*u.to = text
	}
	p.partitioned = strings.Contains(c.CRLURL, partitionField)
	switch {
	case p.partitioned && !strings.Contains(c.CRLURL, issuerField):
		return fmt.Errorf("crl_url: every issuing CA has partitions of its own, and two share no URL: put %s into it", issuerField)
	case p.deltaCRLURL == "":
		return nil
	case !p.partitioned:
		return fmt.Errorf("delta_crl_url: deltas are of partitions: put %s into crl_url, or leave this out", partitionField)
	case !strings.Contains(c.DeltaCRLURL, partitionField):
		return fmt.Errorf("delta_crl_url: %q is one URL for all partitions: put %s into it", c.DeltaCRLURL, partitionField)
	case !strings.Contains(c.DeltaCRLURL, issuerField):
		return fmt.Errorf("delta_crl_url: every issuing CA has deltas of its own, and two share no URL: put %s into it", issuerField)
	case p.deltaCRLURL == p.crlURL:
		return errors.New("delta_crl_url: it is the URL of the CRL itself: use another one")
	}
	return nil
}

func checkURL(text string) error {
	if text == "" {
		return nil
	}
	if err := pki.CheckWebURL(strings.ReplaceAll(strings.ReplaceAll(text, issuerField, "0"), partitionField, "1")); err != nil {
		return fmt.Errorf("%w: plain HTTP, because checking a TLS certificate there would need this very URL", err)
	}
	return nil
}

// checkUnchecked keeps noRevAvail to certificates that are short-lived and say nowhere that their revocation can be learned
// (RFC 9608 §3).
func (p *Profile) checkUnchecked(c ProfileConfig) error {
	if !p.noRevAvail {
		return nil
	}
	for _, u := range []struct{ key, url string }{{"crl_url", c.CRLURL}, {"delta_crl_url", c.DeltaCRLURL}, {"ocsp_url", c.OCSPURL}} {
		if u.url != "" {
			return fmt.Errorf("no_rev_avail: a certificate with it cannot say where its revocation is found (RFC 9608 section 3): drop %s, or this", u.key)
		}
	}
	switch {
	case p.delegate():
		return errors.New("no_rev_avail: OCSP responders have id-pkix-ocsp-nocheck, which says the same: leave it out")
	case p.maxLifetime > MaxNoRevAvailLifetime:
		return fmt.Errorf("max_lifetime: a certificate that nobody checks (no_rev_avail) lives %s at most", MaxNoRevAvailLifetime)
	}
	return nil
}

// distributionPoints writes CRLDistributionPoints of one URL (RFC 5280 §4.2.1.13), which FreshestCRL is too.
func distributionPoints(u string) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, len(u)+16))
	addDistributionPoints(b, u)
	return b.Bytes()
}

func addDistributionPoints(b *cryptobyte.Builder, u string) {
	name := cbasn1.Tag(0).ContextSpecific().Constructed()
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(name, func(b *cryptobyte.Builder) { // distributionPoint
				b.AddASN1(name, func(b *cryptobyte.Builder) { // fullName
					b.AddASN1(cbasn1.Tag(6).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(u)) })
				})
			})
		})
	})
}
