package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/translog"
)

// authority is a CA of the restored store whose certificates Brevet records.
type authority struct {
	cert       *x509.Certificate
	id         pki.IssuerID
	partitions uint16 // the highest one in its certificates; zero for none
}

// signedCRL is a CRL and the CA that signed it.
type signedCRL struct {
	*x509.RevocationList
	by        *authority
	listed    crl.Listed
	partition uint16 // zero if it has no distribution point, or if the store does not know it
}

// name identifies a CRL in the list and in the log.
func (c *signedCRL) name() string {
	kind := "CRL"
	switch {
	case c.listed.Delta:
		kind = "delta CRL"
	case len(c.listed.URLs) > 0:
		kind = "CRL of a partition,"
	}
	return fmt.Sprintf("%s number %s of %s", kind, c.Number, c.ThisUpdate.UTC().Format(time.RFC3339))
}

// isFull reports whether the CRL lists all revoked certificates of its CA.
func (c *signedCRL) isFull() bool { return !c.listed.Delta && len(c.listed.URLs) == 0 }

// place returns the partition of an unknown certificate.
func (c *signedCRL) place(serial pki.Serial) uint16 {
	if c.partition != 0 || c.by.partitions == 0 {
		return c.partition
	}
	return ca.PartitionOf(serial, int(c.by.partitions))
}

// merge verifies the CRLs, records their revocations, raises the CRL numbers, and writes the list of what cannot be known.
func (r *Restore) merge(ctx context.Context, result *Result) error {
	all, crls, err := r.verify(ctx)
	if err != nil {
		return err
	}
	last, at, err := r.lastEntry(ctx)
	if err != nil {
		return err
	}
	var changes strings.Builder
	for _, c := range crls {
		for i, n := range result.Numbers {
			if n.Issuer == c.by.id && n.Number.Cmp(c.Number) < 0 {
				result.Numbers[i].Number = c.Number
			}
		}
		known, unknown, err := r.Store.Merge(ctx, rules.Merge{
			Issuer: c.by.id, NotAfter: c.by.cert.NotAfter, Partition: c.place, Entries: c.listed.Entries,
			Comment: c.name(), By: r.By, At: r.Now,
		})
		if err != nil {
			return fmt.Errorf("merge the %s, %s: %w", c.name(), c.by.cert.Subject, err)
		}
		describe(&changes, c, known, unknown)
	}
	text := r.describeUnknown(result, last, at, all, crls) + changes.String()
	result.List = sha256.Sum256([]byte(text))
	return r.List([]byte(text))
}

// verify returns the issuing CAs and the verified CRLs. The CRL of a partition comes before the full one, because it tells
// the partition of an unknown certificate.
func (r *Restore) verify(ctx context.Context) (all []*authority, crls []*signedCRL, err error) {
	installed, err := r.Authorities.Installed(ctx)
	if err != nil {
		return nil, nil, err
	}
	points, err := r.Points.Points(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, in := range installed {
		if in.Key == "" { // a root, whose CRLs are imported
			continue
		}
		cert, err := x509.ParseCertificate(in.Certificate)
		if err != nil {
			return nil, nil, err
		}
		a := &authority{cert: cert, id: pki.IssuerOf(cert)}
		for _, p := range points {
			if p.Issuer == a.id {
				a.partitions = max(a.partitions, p.Partition)
			}
		}
		all = append(all, a)
	}
	for _, list := range r.CRLs {
		c, err := r.verifyCRL(list, all, points)
		if err != nil {
			return nil, nil, fmt.Errorf("the CRL of %s, number %s: %w", list.Issuer, list.Number, err)
		}
		crls = append(crls, c)
	}
	slices.SortStableFunc(crls, func(a, b *signedCRL) int { return int(b.partition) - int(a.partition) })
	return all, crls, nil
}

// verifyCRL returns a CRL with the CA that signed it.
func (r *Restore) verifyCRL(list *x509.RevocationList, all []*authority, points []crl.Point) (*signedCRL, error) {
	listed, err := crl.ReadListed(list, r.Now)
	if err != nil {
		return nil, err
	}
	known := false
	for _, a := range all {
		if !bytes.Equal(list.RawIssuer, a.cert.RawSubject) {
			continue
		}
		known = true
		if list.CheckSignatureFrom(a.cert) != nil {
			continue
		}
		c := &signedCRL{RevocationList: list, by: a, listed: listed}
		for _, p := range points {
			if p.Issuer == a.id && (slices.Contains(listed.URLs, p.URL) || slices.Contains(listed.URLs, p.DeltaURL)) {
				c.partition = p.Partition
			}
		}
		return c, nil
	}
	if known {
		return nil, errors.New("its signature does not verify with the key of that CA: the file was altered, or is of another CA")
	}
	return nil, errors.New("the backup has no issuing CA of that name: give the CRLs of its CAs, and import those of a root with brevet crl import later")
}

// lastEntry returns the last entry of the log that does not come from a restore, and its time.
func (r *Restore) lastEntry(ctx context.Context) (index uint64, at time.Time, err error) {
	head, err := r.Log.Head(ctx)
	if err != nil {
		return 0, at, err
	}
	for index = head.Size; index > 0; index-- {
		found, err := r.Log.Entries(ctx, index, 1)
		if err != nil {
			return 0, at, err
		}
		if len(found) == 0 {
			break
		}
		e, err := translog.ParseEntry(found[0].Entry)
		if err != nil {
			return 0, at, err
		}
		if e.Actor != r.By {
			return index, e.Time, nil
		}
	}
	return 0, at, errors.New("the log of the copy has no entry, so its age is unknown: give the newest archive that is left with --archive")
}

// describeUnknown describes what cannot be known.
func (r *Restore) describeUnknown(result *Result, last uint64, at time.Time, all []*authority, crls []*signedCRL) string {
	copied := at.UTC().Format(time.RFC3339)
	var b strings.Builder
	fmt.Fprintf(&b, "A store was restored without the newest archive of its log. The epoch %s of the log continues %s.\n\n", result.Epoch, result.Previous)
	fmt.Fprintf(&b, "The last known entry of the log is number %d, of %s. What happened later is not known:\n", last, copied)
	b.WriteString("- Certificates were issued, perhaps, whose serial numbers are unknown. OCSP responds unknown for them, never good.\n" +
		"  They are valid until they expire for a client that reads only CRLs, and cannot be revoked one by one.\n" +
		"- Certificates were revoked, perhaps, that no CRL below lists. The server will say that they are good.\n" +
		"- Identities were registered, suspended, retired or changed, perhaps, and operators have lost their roles.\n" +
		"- The policy, CAs, enrollment tokens and ACME accounts have changed, perhaps.\n\nThe issuing CAs:\n")
	for _, a := range all {
		fmt.Fprintf(&b, "- %s (%s): %s\n", a.cert.Subject, a.id.Short(), r.coverage(a, at, crls))
	}
	b.WriteString("\nRevocations that come from the CRLs:\n")
	return b.String()
}

// coverage describes up to when the revocations of a CA are known.
func (r *Restore) coverage(a *authority, copied time.Time, crls []*signedCRL) string {
	var newest *signedCRL
	for _, c := range crls {
		if c.by == a && c.isFull() && (newest == nil || c.Number.Cmp(newest.Number) > 0) {
			newest = c
		}
	}
	missing := "revocations after " + copied.UTC().Format(time.RFC3339) + " may be missing."
	switch {
	case newest == nil:
		return "NO FULL CRL WAS GIVEN: " + missing
	case newest.ThisUpdate.Before(copied.Truncate(time.Second)):
		return newest.name() + " IS OLDER THAN THE COPY: " + missing
	case !newest.NextUpdate.After(r.Now):
		return fmt.Sprintf("%s EXPIRED at %s: there may be a newer one with more revocations.", newest.name(), newest.NextUpdate.UTC().Format(time.RFC3339))
	default:
		return newest.name() + ": later revocations may be missing."
	}
}

// describe lists the changes that come from a CRL.
func describe(b *strings.Builder, c *signedCRL, known, unknown []pki.StatusChange) {
	fmt.Fprintf(b, "- %s, %s: %d\n", c.by.cert.Subject, c.name(), len(known)+len(unknown))
	for _, change := range known {
		fmt.Fprintf(b, "  %s %s (%s)\n", change.Ref.Serial, change.Status.State, change.Status.Reason)
	}
	for _, change := range unknown {
		fmt.Fprintf(b, "  %s %s (%s), not in the copy: its identity is unknown\n", change.Ref.Serial, change.Status.State, change.Status.Reason)
	}
}
