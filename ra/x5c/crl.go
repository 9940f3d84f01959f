package x5c

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Limits of a manufacturer's CRLs.
const (
	maxCRLs = 64
	maxCRL  = 16 << 20 // bytes: about 400,000 entries
)

// CRLs holds the CRLs of a manufacturer. The zero value holds none. It is safe for concurrent use, so that a server can
// replace the CRLs while it serves.
type CRLs struct {
	mu       sync.RWMutex
	byIssuer map[string][]*crl // by the DER of the issuer's name, the newest first
}

// maxVerified is the maximum number of CAs with the name of a CRL's issuer whose signature is remembered.
const maxVerified = 16

// crl is a CRL. Its signature is not verified before it is used, because only the chain of a device shows the
// certificate of its issuer.
type crl struct {
	keyID      []byte               // the authority key identifier (RFC 5280 §5.2.1), or nil
	signed     *x509.RevocationList // without its entries
	thisUpdate time.Time
	nextUpdate time.Time           // zero if there is none
	revoked    map[string]struct{} // serial numbers, big-endian

	mu       sync.Mutex
	verified map[pki.IssuerID]bool // whether the signature verifies with the key of this CA
}

// Load replaces the CRLs by those in a directory: each file whose name ends with .crl, in DER or PEM. If a file cannot
// be used, Load returns an error and changes nothing.
func (c *CRLs) Load(directory string) error {
	entries, err := os.ReadDir(directory)
	if err != nil {
		return fmt.Errorf("list the CRLs: %w", err)
	}
	var all [][]byte
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".crl" {
			continue
		}
		if len(all) == maxCRLs {
			return fmt.Errorf("%s contains more than %d CRLs", directory, maxCRLs)
		}
		content, err := readBounded(filepath.Join(directory, e.Name()))
		if err != nil {
			return fmt.Errorf("read a CRL: %w", err)
		}
		all = append(all, content)
	}
	if err := c.Replace(all); err != nil {
		return fmt.Errorf("read the CRLs in %s: %w", directory, err)
	}
	return nil
}

// readBounded reads the beginning of a file. A file that is longer than a CRL may be does not parse then.
func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() { // opening a FIFO would block
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, 2*maxCRL)) // PEM is longer than DER by a third
}

// Replace replaces the CRLs. Each is in DER or PEM, and complete: deltas and partitions are refused. If one cannot be
// used, Replace returns an error and changes nothing.
func (c *CRLs) Replace(all [][]byte) error {
	if len(all) > maxCRLs {
		return fmt.Errorf("there are %d CRLs, and there may be %d", len(all), maxCRLs)
	}
	byIssuer := map[string][]*crl{}
	for i, content := range all {
		issuer, list, err := parseCRL(content)
		if err != nil {
			return fmt.Errorf("CRL %d: %w", i+1, err)
		}
		byIssuer[issuer] = append(byIssuer[issuer], list)
	}
	for _, lists := range byIssuer {
		slices.SortStableFunc(lists, func(a, b *crl) int { return b.thisUpdate.Compare(a.thisUpdate) })
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.byIssuer = byIssuer
	return nil
}

// parseCRL returns the name of the CRL's issuer, and the CRL.
func parseCRL(content []byte) (issuer string, _ *crl, err error) {
	const derSequence = 0x30
	if len(content) > 0 && content[0] != derSequence {
		if block, _ := pem.Decode(content); block != nil && block.Type == "X509 CRL" {
			content = block.Bytes
		}
	}
	if len(content) > maxCRL {
		return "", nil, fmt.Errorf("it has more than %d bytes", maxCRL)
	}
	list, err := x509.ParseRevocationList(content)
	if err != nil {
		return "", nil, fmt.Errorf("it is not a CRL of version 2 in DER or PEM: %w", err)
	}
	if len(list.Raw) != len(content) {
		return "", nil, errors.New("data follows the CRL")
	}
	if err := checkUsable(list); err != nil {
		return "", nil, fmt.Errorf("the CRL of %s: %w", list.Issuer, err)
	}
	c := &crl{
		signed: &x509.RevocationList{ // the fields that CheckSignatureFrom reads; the others would need much memory
			RawTBSRevocationList: list.RawTBSRevocationList,
			Signature:            list.Signature, SignatureAlgorithm: list.SignatureAlgorithm,
		},
		keyID:      list.AuthorityKeyId,
		thisUpdate: list.ThisUpdate, nextUpdate: list.NextUpdate,
		revoked: make(map[string]struct{}, len(list.RevokedCertificateEntries)), verified: map[pki.IssuerID]bool{},
	}
	for _, e := range list.RevokedCertificateEntries {
		c.revoked[string(e.SerialNumber.Bytes())] = struct{}{}
	}
	return string(list.RawIssuer), c, nil
}

var oidDeltaCRL, oidIssuingDistributionPoint = asn1.ObjectIdentifier{2, 5, 29, 27}, asn1.ObjectIdentifier{2, 5, 29, 28}

// checkUsable returns an error for a list that does not cover all certificates of its issuer, or that has critical
// extensions: no certificate may be called good because of such a list (RFC 5280 §5.2 and §5.3).
func checkUsable(list *x509.RevocationList) error {
	if !slices.Contains(signatures, list.SignatureAlgorithm) {
		return fmt.Errorf("the algorithm of its signature, %s, is not accepted", list.SignatureAlgorithm)
	}
	for _, e := range list.Extensions {
		if e.Critical || e.Id.Equal(oidDeltaCRL) || e.Id.Equal(oidIssuingDistributionPoint) {
			return fmt.Errorf("it has the extension %s, so it may cover only a part: use the full CRL", e.Id)
		}
	}
	for _, entry := range list.RevokedCertificateEntries {
		for _, e := range entry.Extensions {
			if e.Critical {
				return fmt.Errorf("an entry has the critical extension %s, which is unknown", e.Id)
			}
		}
	}
	return nil
}

// of returns the newest CRL of the issuer, and nil if there is none. It ignores a CRL whose signature does not verify,
// or whose thisUpdate is in the future.
func (c *CRLs) of(issuer *x509.Certificate, at time.Time) *crl {
	c.mu.RLock()
	lists := c.byIssuer[string(issuer.RawSubject)]
	c.mu.RUnlock()
	for _, l := range lists {
		if !l.thisUpdate.After(at) && l.isSignedBy(issuer) {
			return l
		}
	}
	return nil
}

// isSignedBy reports whether the CA signed the CRL. Another CA can have the same name. So isSignedBy compares the key
// identifiers if both have one, and verifies the signature. It does that once for each CA, as a CRL may have megabytes.
func (l *crl) isSignedBy(issuer *x509.Certificate) bool {
	if len(l.keyID) > 0 && len(issuer.SubjectKeyId) > 0 && !bytes.Equal(l.keyID, issuer.SubjectKeyId) {
		return false
	}
	id := pki.IssuerOf(issuer)
	l.mu.Lock()
	defer l.mu.Unlock()
	is, known := l.verified[id]
	if !known {
		is = l.signed.CheckSignatureFrom(issuer) == nil
		if len(l.verified) >= maxVerified {
			clear(l.verified)
		}
		l.verified[id] = is
	}
	return is
}

// checkRevocation refuses a chain with a certificate that its issuer has revoked. If the source requires CRLs, and that
// of an issuer is missing or stale, checkRevocation returns a temporary error.
func (s *source) checkRevocation(chain []*x509.Certificate, at time.Time) error {
	if s.crls == nil {
		return nil
	}
	var unavailable error
	for i, issuer := range chain[1:] {
		list := s.crls.of(issuer, at)
		if list == nil {
			unavailable = &unavailableError{s.name, fmt.Sprintf("there is no CRL of %s", issuer.Subject)}
			continue
		}
		if _, revoked := list.revoked[string(chain[i].SerialNumber.Bytes())]; revoked {
			return pki.Refuse(pki.RuleEvidenceRevoked,
				"find out from the manufacturer why, and do not enroll this device",
				"source %s: the manufacturer has revoked certificate %d", s.name, i+1)
		}
		if !at.Before(list.nextUpdate) {
			since := list.nextUpdate.Format(time.RFC3339)
			reason := fmt.Sprintf("the CRL of %s is stale since %s", issuer.Subject, since)
			unavailable = &unavailableError{s.name, reason}
		}
	}
	if s.requireCRLs {
		return unavailable
	}
	return nil
}

// crlRetryAfter is how long a device waits until it repeats a request that a missing CRL made fail.
const crlRetryAfter = 5 * time.Minute

// unavailableError means that the revocation status of a device is not known.
type unavailableError struct{ source, reason string }

func (e *unavailableError) Error() string {
	return fmt.Sprintf("source %s requires current CRLs: %s; load the manufacturer's newest CRL", e.source, e.reason)
}

// Temporary reports that the same request may succeed later.
func (e *unavailableError) Temporary() bool { return true }

// RetryAfter returns how long to wait before a retry.
func (e *unavailableError) RetryAfter() time.Duration { return crlRetryAfter }
