package rules

import (
	"maps"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/translog"
)

// Merge is a CRL whose revocations a restore records.
type Merge struct {
	Issuer    pki.IssuerID
	NotAfter  time.Time               // recorded for unknown certificates: when the issuing CA expires
	Partition func(pki.Serial) uint16 // of unknown certificates
	Entries   []crl.Entry
	Comment   string // recorded in the log
	By        pki.Actor
	At        time.Time
}

// Log returns the log entries for some of the CRL's entries, at most [MaxChanges]. find returns a certificate, or a refusal with
// the rule not_found. A status never becomes weaker. An unknown certificate is recorded like one that was never delivered: it is
// revoked, also if the CRL lists it as on hold, because the store has no record with which it could become
// good again.
func (m *Merge) Log(some []crl.Entry, find func(pki.CertRef) (Certificate, error)) (entries []translog.Entry, err error) {
	known := map[revocation.Change]*Applied{}
	var items []ca.IntentItem
	var unknown []pki.StatusChange
	for _, e := range some {
		if e.Removed {
			continue
		}
		c, err := find(pki.CertRef{Issuer: m.Issuer, Serial: e.Serial})
		if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule == pki.RuleNotFound {
			item, change := m.unknown(e)
			items, unknown = append(items, item), append(unknown, change)
			continue
		}
		if err != nil {
			return nil, err
		}
		o := revocation.Change{Action: revocation.Revoke, Reason: e.Reason, InvalidSince: e.InvalidSince, At: e.RevokedAt}
		if e.Reason == pki.CertificateHold {
			o.Action, o.Reason = revocation.Hold, 0
		}
		change, invalidSince, changed, err := c.ChangeMember(o)
		if err != nil {
			return nil, err
		}
		if !changed {
			continue
		}
		o.InvalidSince, o.At, o.Actor, o.Comment = time.Time{}, m.At, m.By, m.Comment
		if known[o] == nil {
			known[o] = &Applied{}
		}
		known[o].Add(change, invalidSince)
	}
	byReason := func(a, b revocation.Change) int {
		return int(a.Reason) - int(b.Reason) + 1000*(int(a.Action)-int(b.Action))
	}
	for _, o := range slices.SortedFunc(maps.Keys(known), byReason) {
		entries = append(entries, CertificateEntry(o, pki.SPIFFEID{}, *known[o]))
	}
	if len(unknown) > 0 {
		e := AbandonedEntry(m.At, items, unknown)
		e.Actor = m.By
		entries = append(entries, e)
	}
	return entries, nil
}

// unknown returns the record of an unknown certificate. Its serial number has the time of issue.
func (m *Merge) unknown(e crl.Entry) (ca.IntentItem, pki.StatusChange) {
	item := ca.IntentItem{
		Ref: pki.CertRef{Issuer: m.Issuer, Serial: e.Serial}, Digest: []byte{}, IssuedAt: e.Serial.Time(), NotAfter: m.NotAfter,
		Partition: m.Partition(e.Serial),
	}
	if item.IssuedAt.After(m.At) { // the serial number is not from Brevet
		item.IssuedAt = e.RevokedAt
	}
	status := pki.Status{State: pki.Revoked, Reason: e.Reason, RevokedAt: e.RevokedAt, Version: 1}
	if status.Reason == pki.CertificateHold {
		status.Reason = pki.Unspecified
	}
	return item, pki.StatusChange{Ref: item.Ref, NotAfter: item.NotAfter, Status: status}
}
