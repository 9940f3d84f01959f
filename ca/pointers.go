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

// MaxPartitions limits the number of partitions of an issuing CA's CRL. Each partition is signed separately.
const MaxPartitions = 1024

// DefaultPartitions is the number of partitions if the configuration does not set one.
const DefaultPartitions = 16

// MaxNoRevAvailLifetime limits the lifetime of certificates with noRevAvail, which relying parties accept until they
// expire. RFC 9608 section 1 requires less time than it takes to detect, report and distribute a revocation, without
// giving a number. Seven days is also the limit for delegated OCSP certificates, which are not checked either.
const MaxNoRevAvailLifetime = 7 * 24 * time.Hour

// The placeholders in a profile's URLs.
const (
	publicURLField = "{public_url}"
	issuerField    = "{issuer}"
	partitionField = "{partition}"
)

// noRevAvail tells relying parties that no revocation information is available for the certificate (RFC 9608 section
// 2).
var noRevAvail = pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 56}, Value: asn1.NullBytes}

// CheckPartitions returns an error that names the range if a number of partitions is out of range.
func CheckPartitions(n int) error {
	if n < 1 || n > MaxPartitions {
		return fmt.Errorf("%d is out of range: use 1 to %d", n, MaxPartitions)
	}
	return nil
}

// CRLPoint returns the URLs of one partition of an issuing CA's CRL in the certificates of the profile. The first is
// the CRL distribution point (RFC 5280 section 4.2.1.13), the second the freshest CRL (section 4.2.1.15). Both are
// empty if the profile is not partitioned; the second is also empty if the profile has no delta CRL. Partitions count
// from 1; partition 0 is the complete CRL, which has no such URL.
func (p *Profile) CRLPoint(issuer pki.IssuerID, partition uint16) (url, deltaURL string) {
	if !p.partitioned || partition == 0 {
		return "", ""
	}
	fill := func(u string) string {
		return strings.ReplaceAll(strings.ReplaceAll(u, issuerField, issuer.Short()), partitionField, strconv.Itoa(int(partition)))
	}
	return fill(p.crlURL), fill(p.deltaCRLURL)
}

// partitionOf returns the partition of a certificate: 0 if the profile is not partitioned, and otherwise 1 to n.
func (p *Profile) partitionOf(serial pki.Serial, n int) uint16 {
	if !p.partitioned {
		return 0
	}
	return PartitionOf(serial, n)
}

// PartitionOf returns the partition of a certificate of a partitioned profile, 1 to n. n is 1 to MaxPartitions. The last 8
// bytes of the serial number select it; they are random, so the partitions have about the same size.
func PartitionOf(serial pki.Serial, n int) uint16 {
	random := binary.BigEndian.Uint64(serial.Bytes()[pki.SerialSize-8:])
	return uint16(1 + random%uint64(n)) //nolint:gosec // n is at most MaxPartitions
}

// readURLs replaces {public_url} in the profile's URLs and checks the results.
func (p *Profile) readURLs(c ProfileConfig, publicURL string) error {
	for _, u := range []struct {
		key, from string
		to        *string
		parted    bool // may contain {partition}
	}{
		{"crl_url", c.CRLURL, &p.crlURL, true}, {"delta_crl_url", c.DeltaCRLURL, &p.deltaCRLURL, true},
		{"ocsp_url", c.OCSPURL, &p.ocspURL, false}, {"ca_url", c.CAURL, &p.caURL, false},
	} {
		if !u.parted && strings.Contains(u.from, partitionField) {
			return fmt.Errorf("%s: only crl_url and delta_crl_url can contain a partition: remove %s",
				u.key, partitionField)
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
		return fmt.Errorf("crl_url: each issuing CA needs its own URLs: add %s", issuerField)
	case p.deltaCRLURL == "":
		return nil
	case !p.partitioned:
		return fmt.Errorf("delta_crl_url: delta CRLs need partitions: add %s to crl_url, or remove delta_crl_url",
			partitionField)
	case !strings.Contains(c.DeltaCRLURL, partitionField):
		return fmt.Errorf("delta_crl_url: %q is the same URL for all partitions: add %s", c.DeltaCRLURL, partitionField)
	case !strings.Contains(c.DeltaCRLURL, issuerField):
		return fmt.Errorf("delta_crl_url: each issuing CA needs its own URLs: add %s", issuerField)
	case p.deltaCRLURL == p.crlURL:
		return errors.New("delta_crl_url: it equals crl_url: use another URL")
	}
	return nil
}

func checkURL(text string) error {
	if text == "" {
		return nil
	}
	if err := pki.CheckWebURL(strings.ReplaceAll(strings.ReplaceAll(text, issuerField, "0"), partitionField, "1")); err != nil {
		return fmt.Errorf("%w: use http, because verifying a TLS certificate could require this URL", err)
	}
	return nil
}

// checkNoRevAvail allows noRevAvail only for short-lived certificates without URLs for revocation information (RFC 9608
// section 3).
func (p *Profile) checkNoRevAvail(c ProfileConfig) error {
	if !p.noRevAvail {
		return nil
	}
	for _, u := range []struct{ key, url string }{{"crl_url", c.CRLURL}, {"delta_crl_url", c.DeltaCRLURL}, {"ocsp_url", c.OCSPURL}} {
		if u.url != "" {
			return fmt.Errorf("no_rev_avail: not allowed together with %s (RFC 9608 section 3): remove one of the two",
				u.key)
		}
	}
	switch {
	case p.delegate():
		return errors.New("no_rev_avail: OCSP responders have id-pkix-ocsp-nocheck, which has the same effect: " +
			"remove it")
	case p.maxLifetime > MaxNoRevAvailLifetime:
		return fmt.Errorf("max_lifetime: with no_rev_avail, use %s or less", MaxNoRevAvailLifetime)
	}
	return nil
}

// distributionPoints encodes CRLDistributionPoints with one URL (RFC 5280 section 4.2.1.13). FreshestCRL has the same
// form.
func distributionPoints(u string) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, len(u)+16))
	addDistributionPoints(b, u)
	return b.Bytes()
}

// addDistributionPoints writes CRLDistributionPoints with one URL.
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
