package translog

import (
	"encoding/hex"
	"math/big"
	"strconv"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// CACertificate is the event of [CAInstalled], [CARetired] and [CARemoved].
type CACertificate struct {
	Issuer      pki.IssuerID
	Subject     string
	Fingerprint []byte // SHA-256 of the certificate
	KeyHash     pki.KeyHash
	KeyLabel    string // of the key in the HSM; empty if it is elsewhere
	// Signer is the root that signed a cross-certificate; zero for another certificate.
	Signer pki.IssuerID
}

// CRLNumber is the event of [CRLNumberTaken].
type CRLNumber struct {
	Issuer pki.IssuerID
	Number *big.Int
}

// PublishedCRL is the event of [CRLPublished].
type PublishedCRL struct {
	Issuer     pki.IssuerID
	Partition  uint16 // 0 for the CRL of all partitions
	Delta      bool
	Number     *big.Int
	ThisUpdate time.Time
	NextUpdate time.Time
	Position   uint64 // the index of the last entry that it covers
	// BaseNumber is the number of the CRL to which deltas are relative; nil for none.
	BaseNumber   *big.Int
	BaseUpdate   time.Time
	BasePosition uint64
	Digest       []byte // SHA-256
	Size         int64  // in bytes
	Entries      int64
	Imported     bool // signed elsewhere
}

// DistributionPoint is the URLs of a partition's CRLs.
type DistributionPoint struct {
	Issuer        pki.IssuerID
	Partition     uint16
	URL, DeltaURL string
}

// DistributionPoints is what an entry with the action [DistributionPointsRecorded] records: new distribution points of
// certificates.
type DistributionPoints []DistributionPoint

func (c *CACertificate) facts(f facts) {
	f.add("subject", c.Subject)
	f.addID("issuer", c.Issuer)
	f.add("fingerprint", hex.EncodeToString(c.Fingerprint))
	f.add("key", c.KeyLabel)
	f.addID("signer", c.Signer)
}

func (n *CRLNumber) facts(f facts) {
	f.addID("issuer", n.Issuer)
	f["number"] = n.Number.String()
}

func (c *PublishedCRL) facts(f facts) {
	f.addID("issuer", c.Issuer)
	f["number"] = c.Number.String()
	f.addNumber("partition", int64(c.Partition))
	if c.Delta && c.BaseNumber != nil {
		f["base"] = c.BaseNumber.String()
	}
	f.addTime("this_update", c.ThisUpdate)
	f.addTime("next_update", c.NextUpdate)
	f["entries"] = strconv.FormatInt(c.Entries, 10)
	f.addFlag("imported", c.Imported)
}

func (p DistributionPoints) facts(f facts) { f["points"] = strconv.Itoa(len(p)) }
