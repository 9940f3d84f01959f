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
	"time"

	"google.golang.org/grpc"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/server/servertest"
)

// batchLabel is the name of a label that all devices have. It has batches values, each shared by several devices.
const (
	batchLabel = "batch"
	batches    = 3
)

// labelled returns the labels of a device.
func labelled(device int) map[string]string {
	return map[string]string{batchLabel: strconv.Itoa(device % batches)}
}

// keyOf returns the hash of a certificate's public key, in hexadecimal.
func keyOf(c *x509.Certificate) string {
	hash := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(hash[:])
}

// revokeBulk revokes the certificates of a batch, a key or a lineage. When the RPC has returned, all members that
// clients held before it must be revoked.
func (f *fleet) revokeBulk(ctx context.Context) {
	d := f.devices[f.random.IntN(len(f.devices))]
	held := f.w.observed.serialsOf(d.identity)
	if len(held) == 0 {
		return
	}
	serial := held[f.random.IntN(len(held))]
	var members []string
	selection, reason := &brevetv1.CertificateSelection{}, "affiliationChanged"
	switch f.random.IntN(4) {
	case 0:
		f.w.observed.serialsWhere(func(c *x509.Certificate) bool {
			if serialOf(c) == serial {
				hash := sha256.Sum256(c.RawSubjectPublicKeyInfo)
				selection.KeyHash = hash[:]
			}
			return false
		})
		members = f.w.observed.serialsWhere(func(c *x509.Certificate) bool { return keyOf(c) == hex.EncodeToString(selection.GetKeyHash()) })
	case 1:
		selection.LineageSerial, members = serialBytes(serial), f.w.observed.lineage(serial)
	default:
		batch := labelled(f.random.IntN(batches))[batchLabel]
		selection.Label = &brevetv1.Label{Name: batchLabel, Value: batch}
		members = f.w.observed.serialsInBatch(batch)
	}
	err := f.w.clients.operate(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := brevetv1.NewRevocationServiceClient(conn).CreateBulkRevocation(ctx, &brevetv1.CreateBulkRevocationRequest{Selection: selection, Reason: servertest.Reason(reason)})
		return err
	})
	if err != nil {
		f.w.recordUnexpected("revoke in bulk", err)
		return
	}
	f.w.observed.recordBulkRevoked(members...)
	f.checkBulkMembers(ctx)
}

// checkBulkMembers queries OCSP about the members whose records the server writes last.
func (f *fleet) checkBulkMembers(ctx context.Context) {
	for _, c := range f.w.observed.newestBulkMembers(2) {
		f.w.checkRevoked(ctx, c, "bulk revocation")
	}
}

// checkRevoked queries a server about a certificate after its revocation was confirmed. If there are several servers, the
// revocation may be confirmed by another one. It ignores errors, because the server may be killed during the query.
func (w *instance) checkRevoked(ctx context.Context, c *x509.Certificate, by string) {
	p, err := w.clients.waitForServer(ctx)
	if err != nil {
		return
	}
	for end := time.Now().Add(w.staleness); ; time.Sleep(20 * time.Millisecond) {
		last := !time.Now().Before(end)
		state, err := w.ocsp(p, c)
		if err != nil || state == revoked {
			return
		}
		if last {
			w.observed.faultf("certificate %s is in state %d by OCSP right after its %s", abbreviate(serialOf(c)), state, by)
			return
		}
	}
}

// checkBulksAtStart queries a server that has just started about members of bulk revocations. The server may not have
// updated their records yet.
func (tt *crashTest) checkBulksAtStart(t *testing.T) (faults []string) {
	t.Helper()
	open, err := tt.countOpenBulks()
	if err != nil {
		return []string{"the open bulk revocations cannot be read: " + err.Error()}
	}
	if open > 0 {
		tt.startsWithBulks++
	}
	for _, c := range tt.observed.newestBulkMembers(4) {
		if state, err := tt.ocsp(tt.server, c); err != nil || state != revoked {
			faults = append(faults, fmt.Sprintf("certificate %s, revoked in bulk, is in state %d by OCSP right after the start, error %v", abbreviate(serialOf(c)), state, err))
		}
	}
	return faults
}

// compromise reports the device's key as compromised.
func (d *device) compromise(ctx context.Context) {
	h := d.current
	statement := sha256.Sum256(pki.CompromiseStatement(trustDomain, pki.HashSPKI(h.certificate.RawSubjectPublicKeyInfo)))
	signature, _ := ecdsa.SignASN1(rand.Reader, h.key, statement[:]) // never fails on a curve of the standard library
	err := d.w.clients.retry(ctx, nil, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := brevetv1.NewRevocationServiceClient(conn).RevokeCompromisedKey(ctx, &brevetv1.RevokeCompromisedKeyRequest{
			PublicKey: h.certificate.RawSubjectPublicKeyInfo, Signature: signature,
		})
		return err
	})
	if err != nil {
		d.w.recordUnexpected("report a compromised key", err)
		return
	}
	d.w.observed.recordRevoked(h.serial())
	d.current, d.last, d.pending = nil, nil, nil // the key cannot be used again
}

// renewSuperseded renews with a superseded credential, as an attacker with a copy of it would. The server must refuse.
func (d *device) renewSuperseded(ctx context.Context, superseded *credential) {
	if _, err := d.w.clients.obtain(ctx, newRenewal(superseded, newKey())); err == nil {
		d.w.observed.faultf("certificate %s is superseded, but was renewed again", abbreviate(superseded.serial()))
	} else {
		d.w.recordUnexpected("renew with a copied credential", err)
	}
}

// A bulkRecord is a bulk revocation on record.
type bulkRecord struct {
	id, mark int
	action   int
	batch    string // value of the selected label; each of these four fields is empty if the selection does not use it
	identity string // SPIFFE ID
	key      string // hash, in hexadecimal
	lineage  string // the first serial number of the lineage
}

// countOpenBulks returns the number of bulk revocations that are not complete.
func (w *instance) countOpenBulks() (open int, err error) {
	db, err := w.openRecords(w.dir)
	if err != nil {
		return 0, err
	}
	defer db.Close()
	err = db.QueryRow(`SELECT count(*) FROM bulk_revocations WHERE done = 0`).Scan(&open)
	return open, err
}

func (s *snapshot) readBulks(tx *sql.Tx) error {
	return errors.Join(
		query(tx, `SELECT id, action, mark, coalesce((SELECT spiffe_id FROM identities n WHERE n.id = s.identity), ''), coalesce(label_value, ''), lower(hex(key_hash)),
		        hex(substr(lineage, 33)), done FROM bulk_revocations s ORDER BY id`,
			func(scan func(...any) error) error {
				var o bulkRecord
				var done int
				err := scan(&o.id, &o.action, &o.mark, &o.identity, &o.batch, &o.key, &o.lineage, &done)
				s.bulks, s.openBulks = append(s.bulks, o), s.openBulks+1-done
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

// members returns the serial numbers that a bulk revocation selects among the certificates that were on record when it
// was created.
func (s *snapshot) members(o bulkRecord) map[string]bool {
	members := map[string]bool{}
	renewed := map[int]string{} // by row of the key of a renewal in the lineage: its identity
	for _, r := range s.rows {  // a renewal has a higher ID than its predecessor
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

// hasRevokedBatch reports whether a bulk revocation by label has revoked more than one certificate.
func (s *snapshot) hasRevokedBatch() bool {
	for _, o := range s.bulks {
		if o.batch != "" && len(s.members(o)) > 1 {
			return true
		}
	}
	return false
}

// readRevocation records how a certificate was revoked, from a change in the log.
func (a *auditor) readRevocation(e *brevetv1.LogEntry, serial string, state int, reason brevetv1.RevocationReason) {
	if state != revoked {
		return
	}
	if reason != brevetv1.RevocationReason_REVOCATION_REASON_KEY_COMPROMISE {
		a.revocations[serial]++
	}
	if step := e.GetBulkRevocationStep(); step != nil {
		a.byBulk[serial] = int(step.GetId())
	}
}

// checkBulks compares bulk revocations with the certificates. Each one on record must have revoked every member and no
// other certificate, whether or not the operator got a response.
func (a *auditor) checkBulks() {
	for serial, n := range a.revocations {
		if n > 1 {
			a.faultf("certificate %s was revoked %d times", abbreviate(serial), n)
		}
	}
	members := map[int]map[string]bool{}
	for _, o := range a.bulks {
		members[o.id] = a.members(o)
		for serial := range members[o.id] {
			if o.action == int(revocation.Revoke) && a.records[serial].state != revoked {
				a.faultf("certificate %s is a member of bulk revocation %d, but is in state %d", abbreviate(serial), o.id, a.records[serial].state)
			}
		}
	}
	for serial, id := range a.byBulk {
		if !members[id][serial] {
			a.faultf("certificate %s was revoked by bulk revocation %d, of which it is not a member", abbreviate(serial), id)
		}
	}
}
