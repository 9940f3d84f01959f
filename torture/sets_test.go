package torture

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"testing"

	"google.golang.org/grpc"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/server/servertest"
)

// batchLabel is the label that devices have, some of them the same.
const (
	batchLabel = "batch"
	batches    = 3
)

func labelled(device int) map[string]string {
	return map[string]string{batchLabel: strconv.Itoa(device % batches)}
}

// keyOf is the hash of a certificate's public key, in hexadecimal.
func keyOf(c *x509.Certificate) string {
	hash := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(hash[:])
}

// orderSet revokes the certificates of a batch, of a key, or of a lineage. When it is answered, everything of it that
// somebody held before is revoked.
func (f *fleet) orderSet(ctx context.Context) {
	d := f.devices[f.random.IntN(len(f.devices))]
	held := f.w.book.of(d.identity)
	if len(held) == 0 {
		return
	}
	serial := held[f.random.IntN(len(held))]
	var members []string
	selection, reason := &brevetv1.CertificateSelection{}, "affiliationChanged"
	switch f.random.IntN(4) {
	case 0:
		f.w.book.where(func(c *x509.Certificate) bool {
			if serialOf(c) == serial {
				hash := sha256.Sum256(c.RawSubjectPublicKeyInfo)
				selection.KeyHash = hash[:]
			}
			return false
		})
		members = f.w.book.where(func(c *x509.Certificate) bool { return keyOf(c) == hex.EncodeToString(selection.GetKeyHash()) })
	case 1:
		selection.LineageSerial, members = serialBytes(serial), f.w.book.lineage(serial)
	default:
		batch := labelled(f.random.IntN(batches))[batchLabel]
		selection.Label = &brevetv1.Label{Name: batchLabel, Value: batch}
		members = f.w.book.inBatch(batch)
	}
	err := f.w.clients.operate(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := brevetv1.NewRevocationServiceClient(conn).CreateBulkRevocation(ctx, &brevetv1.CreateBulkRevocationRequest{Selection: selection, Reason: servertest.Reason(reason)})
		return err
	})
	if err != nil {
		f.w.blame("revoke a set", err)
		return
	}
	f.w.book.revokedAsSet(members...)
	f.hears(ctx)
}

// hears asks OCSP about the members whose records follow last. A server that is killed meanwhile says nothing.
func (f *fleet) hears(ctx context.Context) {
	p, err := f.w.clients.current(ctx)
	if err != nil {
		return
	}
	for _, c := range f.w.book.newestInSets(2) {
		if state, err := f.w.ocsp(p, c); err == nil && state != revoked {
			f.w.book.faultf("OCSP says of certificate %s right after the order to revoke its set: %d", short(serialOf(c)), state)
		}
	}
}

// checkSetsAtOnce asks a server that has just started about members of answered sets, whose records may yet have to follow.
func (tt *torture) checkSetsAtOnce(t *testing.T) (faults []string) {
	t.Helper()
	open, err := countOpen(tt.dir)
	if err != nil {
		return []string{"the open sets cannot be read: " + err.Error()}
	}
	if open > 0 {
		tt.ahead++
	}
	for _, c := range tt.book.newestInSets(4) {
		if state, err := tt.ocsp(tt.server, c); err != nil || state != revoked {
			faults = append(faults, fmt.Sprintf("OCSP says of certificate %s, whose set was revoked, right after the start: %d, %v", short(serialOf(c)), state, err))
		}
	}
	return faults
}

// compromise has a device publish that its key is.
func (d *device) compromise(ctx context.Context) {
	h := d.current
	statement := sha256.Sum256(pki.CompromiseStatement(trustDomain, pki.HashSPKI(h.certificate.RawSubjectPublicKeyInfo)))
	signature, _ := ecdsa.SignASN1(rand.Reader, h.key, statement[:]) // never fails on a curve of the standard library
	err := d.w.clients.until(ctx, nil, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := brevetv1.NewRevocationServiceClient(conn).RevokeCompromisedKey(ctx, &brevetv1.RevokeCompromisedKeyRequest{
			PublicKey: h.certificate.RawSubjectPublicKeyInfo, Signature: signature,
		})
		return err
	})
	if err != nil {
		d.w.blame("say that a key is compromised", err)
		return
	}
	d.w.book.promised(h.serial())
	d.current, d.last, d.begun = nil, nil, nil // no key is certified again
}

// copied tries what somebody with a copy of a superseded credential would: it gets nothing.
func (d *device) copied(ctx context.Context, superseded *holder) {
	if _, err := d.w.clients.obtain(ctx, newRenewal(superseded, newKey())); err == nil {
		d.w.book.faultf("certificate %s is superseded, and was renewed once more", short(superseded.serial()))
	} else {
		d.w.blame("renew with a copy", err)
	}
}

// set is an order about many certificates on record.
type set struct {
	id, mark int
	action   int
	batch    string // label; empty where it is about something else, as are these:
	identity string // SPIFFE ID
	key      string // hash, in hexadecimal
	lineage  string // the first serial number
}

func countOpen(dir string) (open int, err error) {
	db, err := openFiles(dir)
	if err != nil {
		return 0, err
	}
	defer db.Close()
	err = db.QueryRow(`SELECT count(*) FROM revocation_sets WHERE done = 0`).Scan(&open)
	return open, err
}

func (s *snapshot) readSets(tx *sql.Tx) error {
	return errors.Join(
		query(tx, `SELECT id, action, mark, coalesce((SELECT spiffe_id FROM identities n WHERE n.id = s.identity), ''), coalesce(label_value, ''), lower(hex(key_hash)),
		        hex(substr(lineage, 33)), done FROM revocation_sets s ORDER BY id`,
			func(scan func(...any) error) error {
				var o set
				var done int
				err := scan(&o.id, &o.action, &o.mark, &o.identity, &o.batch, &o.key, &o.lineage, &done)
				s.sets, s.open = append(s.sets, o), s.open+1-done
				return err
			}),
		query(tx, `SELECT i.spiffe_id, l.value FROM identity_labels l JOIN identities i ON i.id = l.identity WHERE l.name = '`+batchLabel+`'`,
			func(scan func(...any) error) error {
				var id, batch string
				err := scan(&id, &batch)
				s.labels[id] = batch
				return err
			}),
	)
}

// members returns the serial numbers that a set is about: of what was on record when it was ordered.
func (s *snapshot) members(o set) map[string]bool {
	members := map[string]bool{}
	renewed := map[int]string{} // where the keys of the lineage's renewals are: whose they are
	for _, r := range s.rows {  // a renewal comes after what it renews
		switch {
		case r.identity == "" || r.id > o.mark:
			continue
		case o.identity != "" && r.identity == o.identity, o.batch != "" && s.labels[r.identity] == o.batch, o.key != "" && r.key == o.key, o.lineage == r.serial, renewed[r.keyRow] == r.identity:
			members[r.serial] = true
		default:
			continue
		}
		if o.lineage != "" && r.nextKey != 0 {
			renewed[r.nextKey] = r.identity
		}
	}
	return members
}

// hasRevokedBatch reports whether a set by label has revoked something.
func (s *snapshot) hasRevokedBatch() bool {
	for _, o := range s.sets {
		if o.batch != "" && len(s.members(o)) > 1 {
			return true
		}
	}
	return false
}

// readRevocation takes from a change of the log how a certificate was revoked.
func (a *auditor) readRevocation(e *brevetv1.LogEntry, serial string, state int, reason brevetv1.RevocationReason) {
	if state != revoked {
		return
	}
	if reason != brevetv1.RevocationReason_REVOCATION_REASON_KEY_COMPROMISE {
		a.ended[serial]++
	}
	if id, err := strconv.Atoi(e.GetFacts()["set"]); err == nil {
		a.bySet[serial] = id
	}
}

// checkSets holds orders about sets against what became of certificates: an order that is on record, be it answered or not,
// has revoked every member, and nobody else.
func (a *auditor) checkSets() {
	for serial, n := range a.ended {
		if n > 1 {
			a.faultf("certificate %s was revoked %d times", short(serial), n)
		}
	}
	sets := map[int]map[string]bool{}
	for _, o := range a.sets {
		sets[o.id] = a.members(o)
		for serial := range sets[o.id] {
			if o.action == int(revocation.Revoke) && a.records[serial].state != revoked {
				a.faultf("certificate %s is one of set %d, and in state %d", short(serial), o.id, a.records[serial].state)
			}
		}
	}
	for serial, id := range a.bySet {
		if !sets[id][serial] {
			a.faultf("certificate %s was revoked with set %d, which it is none of", short(serial), id)
		}
	}
}
