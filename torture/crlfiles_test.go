package torture

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/asn1"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// A crlRecord is the store's record of a CRL.
type crlRecord struct {
	partition, delta int
	number           *big.Int
	position         int // number of log entries that it covers
	digest           []byte
}

// path returns the path below the directories of CRLs.
func (l crlRecord) path(issuer string) string {
	switch {
	case l.partition == 0:
		return issuer + ".crl"
	case l.delta == 1:
		return fmt.Sprintf("%s/%d-delta.crl", issuer, l.partition)
	default:
		return fmt.Sprintf("%s/%d.crl", issuer, l.partition)
	}
}

// readCRLs reads the records of CRLs that the server signs, each base before its delta.
func (s *snapshot) readCRLs(tx *sql.Tx) error {
	s.partitions = map[string]int{}
	return errors.Join(
		query(tx, `SELECT crl_partition, delta, number, position, digest FROM crls WHERE der IS NULL ORDER BY crl_partition, delta`,
			func(scan func(...any) error) error {
				var l crlRecord
				var number []byte
				err := scan(&l.partition, &l.delta, &number, &l.position, &l.digest)
				l.number = new(big.Int).SetBytes(number)
				s.crls = append(s.crls, l)
				return err
			}),
		query(tx, `SELECT hex(serial), crl_partition FROM certificates`, func(scan func(...any) error) error {
			var serial string
			var partition int
			err := scan(&serial, &partition)
			s.partitions[serial] = partition
			return err
		}),
	)
}

// listedAt returns the serial numbers that the CRL of a partition must list after the first position entries of the
// log. Partition 0 is the CRL of all partitions.
func (s *snapshot) listedAt(position, partition int) (map[string]bool, error) {
	listed, versions := map[string]bool{}, map[string]int64{}
	for _, l := range s.log[:min(position, len(s.log))] {
		var e brevetv1.LogEntry
		if err := proto.Unmarshal(l.entry, &e); err != nil {
			return nil, err
		}
		for _, c := range e.GetChanges() {
			serial := fmt.Sprintf("%X", c.GetSerial())
			if c.GetVersion() < versions[serial] || partition != 0 && s.partitions[serial] != partition {
				continue
			}
			versions[serial] = c.GetVersion()
			delete(listed, serial)
			if c.GetState() == hold || c.GetState() == revoked {
				listed[serial] = true
			}
		}
	}
	return listed, nil
}

// checkCRLs compares the files of CRLs with the store. Within wait, the server must publish all CRLs on record in both
// directories.
func (w *instance) checkCRLs(dir string, wait time.Duration) (faults []string) {
	for end := time.Now().Add(wait); ; time.Sleep(50 * time.Millisecond) {
		s, err := w.read(dir)
		if err != nil {
			return []string{"the files cannot be read: " + err.Error()}
		}
		c := &crlChecker{instance: w, snapshot: s, files: map[string]*x509.RevocationList{}}
		c.check(dir)
		if len(c.faults) == 0 {
			w.publishedCRLs = c.files
			return nil
		}
		if time.Now().After(end) {
			return c.faults
		}
	}
}

// A crlChecker compares the CRL files, read once, with a snapshot of the store.
type crlChecker struct {
	*instance
	*snapshot
	files  map[string]*x509.RevocationList // by path
	faults []string
}

func (c *crlChecker) faultf(format string, args ...any) {
	c.faults = append(c.faults, fmt.Sprintf(format, args...))
}

func (c *crlChecker) check(dir string) {
	if want := 2*partitions + 1; len(c.crls) != want {
		c.faultf("%d CRLs are on record, want %d", len(c.crls), want)
	}
	issuer := pki.IssuerOf(c.issuing).Short()
	var base map[string]bool
	for _, l := range c.crls {
		path := l.path(issuer)
		list := c.read(dir, path, l)
		if list == nil || l.delta == 1 && c.files[l.base().path(issuer)] == nil {
			continue
		}
		c.files[path] = list
		if was := c.publishedCRLs[path]; was != nil && list.Number.Cmp(was.Number) < 0 {
			c.faultf("the CRL %s has the number %v, lower than %v before", path, list.Number, was.Number)
		}
		serials := map[string]bool{}
		if l.delta == 1 {
			serials = base
			c.checkDelta(path, list, c.files[l.base().path(issuer)])
		}
		for _, e := range list.RevokedCertificateEntries {
			serials[fmt.Sprintf("%040X", e.SerialNumber)] = true
			if e.ReasonCode == removeFromCRL {
				delete(serials, fmt.Sprintf("%040X", e.SerialNumber))
			}
		}
		c.compare(path, serials, l)
		base = serials
	}
}

// base returns the record key of a delta's base.
func (l crlRecord) base() crlRecord { return crlRecord{partition: l.partition} }

// compare compares the serial numbers in a CRL with the log up to its position. Those of a delta include its base.
func (c *crlChecker) compare(path string, serials map[string]bool, l crlRecord) {
	listed, err := c.listedAt(l.position, l.partition)
	if err != nil {
		c.faultf("the log does not parse: %v", err)
	}
	for serial := range listed {
		if !serials[serial] {
			c.faultf("the CRL %s does not list certificate %s, which was revoked or held by log entry %d", path, abbreviate(serial), l.position)
		}
	}
	for serial := range serials {
		if !listed[serial] {
			c.faultf("the CRL %s lists certificate %s, which is of another partition or not revoked or held by log entry %d", path, abbreviate(serial), l.position)
		}
	}
}

// read returns the CRL of a record. The file must be the same in both directories.
func (c *crlChecker) read(dir, path string, l crlRecord) *x509.RevocationList {
	var parsed *x509.RevocationList
	for _, place := range []string{crlsName, webName} {
		der, err := os.ReadFile(filepath.Join(dir, place, path))
		if err != nil {
			c.faultf("a CRL is not published: %v", err)
			return nil
		}
		if digest := sha256.Sum256(der); !bytes.Equal(digest[:], l.digest) {
			c.faultf("the file of CRL %s/%s does not have the digest on record", place, path)
			return nil
		}
		if parsed, err = c.parseCRL(der); err != nil {
			c.faultf("the CRL %s/%s is torn: %v", place, path, err)
			return nil
		}
	}
	_, point := extension(parsed, asn1.ObjectIdentifier{2, 5, 29, 28})
	if _, delta := extension(parsed, deltaIndicator); parsed.Number.Cmp(l.number) != 0 || point != (l.partition > 0) || delta != (l.delta == 1) {
		c.faultf("the CRL %s has another number or scope than on record: number %v", path, parsed.Number)
	}
	return parsed
}

// removeFromCRL is the reason code of an entry that removes one of the base CRL (RFC 5280 section 5.3.1).
const removeFromCRL = 8

// deltaIndicator identifies delta CRLs (RFC 5280 section 5.2.4).
var deltaIndicator = asn1.ObjectIdentifier{2, 5, 29, 27}

// extension returns the value of a critical extension.
func extension(l *x509.RevocationList, id asn1.ObjectIdentifier) (value []byte, found bool) {
	for _, e := range l.Extensions {
		if e.Id.Equal(id) && e.Critical {
			return e.Value, true
		}
	}
	return nil, false
}

// checkDelta checks that a delta CRL can be combined with the published base CRL.
func (c *crlChecker) checkDelta(path string, delta, base *x509.RevocationList) {
	value, _ := extension(delta, deltaIndicator)
	var from *big.Int
	if _, err := asn1.Unmarshal(value, &from); err != nil || base == nil || from.Cmp(base.Number) > 0 || base.Number.Cmp(delta.Number) > 0 {
		c.faultf("the delta CRL %s is for base number %v, which does not match the published base: %v", path, from, err)
	}
}

// parseCRL parses a CRL and verifies its signature.
func (w *instance) parseCRL(der []byte) (*x509.RevocationList, error) {
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	issuer := w.issuing
	if bytes.Equal(l.RawIssuer, w.root.RawSubject) {
		issuer = w.root
	}
	err = l.CheckSignatureFrom(issuer)
	return l, err
}

// checkNoTornCRL checks that all CRL files are complete. It must run before the next server, which repairs them.
func (w *instance) checkNoTornCRL(t testing.TB) {
	t.Helper()
	for _, place := range []string{crlsName, webName} {
		err := filepath.WalkDir(filepath.Join(w.dir, place), func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || !strings.HasSuffix(path, ".crl") || strings.HasPrefix(e.Name(), ".") {
				return err
			}
			der, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if _, err := w.parseCRL(der); err != nil {
				w.observed.faultf("the CRL %s is torn after the server's end: %v", filepath.Join(place, e.Name()), err)
			}
			return nil
		})
		must(t, err)
	}
}
