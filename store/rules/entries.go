package rules

import (
	"crypto/sha256"
	"math/big"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/store/retention"
	"github.com/brevet-pki/brevet/translog"
)

// MaxChanges is the maximum number of changes in an entry. It keeps entries well below translog.MaxEntrySize.
const MaxChanges = 4096

// SplitEntry splits an entry with more than MaxChanges changes into several entries.
func SplitEntry(e translog.Entry) []translog.Entry {
	chunks := slices.Collect(slices.Chunk(e.Changes, MaxChanges))
	parts := make([]translog.Entry, len(chunks))
	for i, changes := range chunks {
		parts[i] = e
		parts[i].Changes = changes
		part := translog.Part{Number: i + 1, Of: len(chunks)}
		from, to := i*MaxChanges, i*MaxChanges+len(changes)
		switch event := e.Event.(type) {
		case *translog.RequestedChange:
			o := *event
			if o.Part = part; o.InvalidTimes != nil {
				o.InvalidTimes = o.InvalidTimes[from:to]
			}
			parts[i].Event = &o
		case *translog.BulkStep:
			s := *event
			if s.Part = part; s.InvalidTimes != nil {
				s.InvalidTimes = s.InvalidTimes[from:to]
			}
			parts[i].Event = &s
		case *translog.AbandonedCertificates:
			a := *event
			a.Part, a.Certificates = part, a.Certificates[from:to]
			parts[i].Event = &a
		}
	}
	return parts
}

// IssuedEntry returns the entry of an issued certificate. If superseded is not zero, the entry includes it as the change
// of the predecessor. A recovery names the certificate whose key the caller has as its predecessor. The change is that of
// the newest certificate.
func IssuedEntry(r *ca.Record, at time.Time, superseded pki.StatusChange) translog.Entry {
	fingerprint := sha256.Sum256(r.DER)
	predecessor := r.Guard.Predecessor
	if !r.Guard.Recovery.IsZero() {
		predecessor = r.Guard.Recovery.Certificate
	}
	e := translog.Entry{
		Time: at, Actor: r.Actor, Action: translog.CertificateIssued, Outcome: translog.Done, Identity: r.Identity,
		Changes: []pki.StatusChange{{
			Ref: r.Ref, NotAfter: r.NotAfter, Status: pki.Status{State: pki.Good, Version: 1},
			Fingerprint: fingerprint[:],
		}},
		RequestID: r.RequestID,
		Event: &translog.IssuedCertificate{
			Profile: r.Profile, Key: r.KeyHash, NotBefore: r.NotBefore, IssueTime: r.IssuedAt, Partition: r.Partition,
			Predecessor: predecessor.Serial, Token: r.Guard.Token, Enrolls: r.Guard.Enrolls,
			Evidence: evidenceEvent(r.Evidence, r.Guard.Subject), Terms: r.Guard.Terms,
		},
	}
	if !superseded.Ref.IsZero() {
		e.Changes = append(e.Changes, superseded)
	}
	return e
}

func evidenceEvent(r pki.EvidenceRecord, subject pki.EvidenceSubject) translog.IssuanceEvidence {
	e := translog.IssuanceEvidence{Rule: r.Rule, Policy: r.Policy, Subject: subject}
	for _, p := range r.Pieces {
		e.Pieces = append(e.Pieces, translog.EvidenceDigest{Kind: p.Kind, Digest: p.Digest})
	}
	return e
}

// AbandonedEntry returns the entry of certificates that were intended and never delivered. The change of items[i] is
// changes[i].
func AbandonedEntry(at time.Time, items []ca.IntentItem, changes []pki.StatusChange) translog.Entry {
	event := &translog.AbandonedCertificates{}
	for _, item := range items {
		event.Certificates = append(event.Certificates, translog.AbandonedCertificate{
			IssueTime: item.IssuedAt, Partition: item.Partition, Digest: item.Digest,
		})
	}
	return translog.Entry{
		Time: at, Actor: issuerActor, Action: translog.CertificateAbandoned, Outcome: translog.Done, Changes: changes, Event: event,
	}
}

// RefusedCertificateEntry returns the entry of a signed certificate that its guard refused. It is an [AbandonedEntry]
// with the refusal.
func RefusedCertificateEntry(
	r *ca.Record, why *pki.Refusal, at time.Time, items []ca.IntentItem, changes []pki.StatusChange,
) translog.Entry {
	e := AbandonedEntry(at, items, changes)
	e.Actor, e.Identity, e.RequestID = r.Actor, r.Identity, r.RequestID
	event := e.Event.(*translog.AbandonedCertificates) //nolint:forcetypeassert // AbandonedEntry returns this type
	event.Refusal = refusal(why)
	return e
}

// DuplicateEntry returns the entry of an abandoned certificate whose serial number belongs to another certificate on
// record. That certificate keeps its status.
func DuplicateEntry(item ca.IntentItem, at time.Time) translog.Entry {
	return translog.Entry{
		Time: at, Actor: issuerActor, Action: translog.CertificateAbandoned, Outcome: translog.Refused,
		Event: &translog.AbandonedCertificates{Duplicate: item.Ref},
	}
}

// RefusedEntry returns the entry of a refused request.
func RefusedEntry(r audit.Refusal) translog.Entry {
	event := refusal(r.Why)
	event.Evidence = evidenceEvent(r.Evidence, r.Evidence.Subject)
	return translog.Entry{
		Time: r.At, Actor: r.By, Action: translog.RequestRefused, Outcome: translog.Refused, Identity: r.Identity, Event: event,
	}
}

func refusal(why *pki.Refusal) *translog.Refusal {
	return &translog.Refusal{Rule: why.Rule, Detail: why.Detail}
}

// RegisteredEntry returns the entry of a new identity.
func RegisteredEntry(id ra.Identity, by pki.Actor) translog.Entry {
	return identityEntry(id, translog.IdentityRegistered, by, id.CreatedAt)
}

// UpdatedEntry returns the entry of an identity's new profile, labels, names, roles or subject of evidence.
func UpdatedEntry(id ra.Identity, by pki.Actor, at time.Time) translog.Entry {
	return identityEntry(id, translog.IdentityUpdated, by, at)
}

func identityEntry(id ra.Identity, action translog.Action, by pki.Actor, at time.Time) translog.Entry {
	return translog.Entry{
		Time: at, Actor: by, Action: action, Outcome: translog.Done, Identity: id.ID,
		Event: &translog.IdentityAttributes{
			Kind: id.Kind, Profile: id.Profile, Labels: id.Labels, DNSNames: id.DNSNames, IPAddresses: id.IPAddresses, Revision: id.Revision,
			Subject: id.Subject, Rule: id.Rule, Roles: id.Roles,
		},
	}
}

// TokenCreatedEntry returns the entry of a new token.
func TokenCreatedEntry(t *ra.Token) translog.Entry {
	return translog.Entry{
		Time: t.CreatedAt, Actor: t.CreatedBy, Action: translog.TokenCreated, Outcome: translog.Done, Identity: t.Identity,
		Event: &translog.CreatedToken{
			ID: t.ID, IdentityRevision: t.IdentityRevision, Profile: t.Profile, ExpiresAt: t.ExpiresAt, Replace: t.Replace,
			CreatorCertificate: t.CreatedBy.Caller().Certificate,
			Pattern:            t.Pattern, Kind: t.Kind, Labels: t.Labels, Networks: t.Networks, RequiredKey: t.RequiredKey,
		},
	}
}

// TokenBoundEntry returns the entry of a token that was bound to a request and key.
func TokenBoundEntry(t *ra.Token, at time.Time) translog.Entry {
	return translog.Entry{
		Time: at, Actor: pki.ActorToken(t.ID), Action: translog.TokenBound, Outcome: translog.Done, Identity: t.Identity,
		Event: &translog.BoundToken{ID: t.ID, Request: t.Request, Key: t.Key},
	}
}

// TokenRevokedEntry returns the entry of the revocation of one token.
func TokenRevokedEntry(v ra.TokenRevocation, t *ra.Token, usable int) translog.Entry {
	return tokensEntry(v, t.Identity, &translog.RevokedTokens{ID: t.ID, Usable: usable, Cause: TokenRevokedAlone})
}

// TokensRevokedEntry returns the entry of the revocation of all tokens of a creator. The number of tokens that could have
// been used is usable.
func TokensRevokedEntry(v ra.TokenRevocation, creator pki.SPIFFEID, cause string, usable int) translog.Entry {
	return tokensEntry(v, creator, &translog.RevokedTokens{Usable: usable, Cause: cause})
}

func tokensEntry(v ra.TokenRevocation, id pki.SPIFFEID, event *translog.RevokedTokens) translog.Entry {
	event.Comment = v.Comment
	return translog.Entry{
		Time: v.At, Actor: v.By, Action: translog.TokenRevoked, Outcome: translog.Done, Identity: id, Event: event,
	}
}

// certificateActions maps the actions of changes to those of log entries.
var certificateActions = map[revocation.Action]translog.Action{
	revocation.Revoke: translog.CertificateRevoked, revocation.Hold: translog.CertificateHeld,
	revocation.Unhold: translog.CertificateUnheld,
}

// Applied is the result of a change of certificates, a key or an identity.
type Applied struct {
	revocation.ChangeResult
	// InvalidSince[i] is the invalidity date of Changed[i]. It is zero if there is none.
	InvalidSince []time.Time
	// Created is the bulk revocation that applies the change, or nil.
	Created *RecordedBulk
}

// Add appends the change of a certificate.
func (a *Applied) Add(c pki.StatusChange, invalidSince time.Time) {
	a.Changed, a.InvalidSince = append(a.Changed, c), append(a.InvalidSince, invalidSince)
}

// RecordedBulk is the record of a bulk revocation.
type RecordedBulk struct {
	revocation.BulkRevocation
	// Mark is the row number of the newest certificate at the time of creation. Later certificates are not members.
	Mark int64
	// Reach is the earliest NotAfter of a member.
	Reach time.Time
	// Progress is the row number of the last record that was changed.
	Progress int64
}

// CertificateEntry returns the entry of a change of one certificate of an identity.
func CertificateEntry(o revocation.Change, id pki.SPIFFEID, out Applied) translog.Entry {
	return changeEntry(o, certificateActions[o.Action], id, out)
}

// KeyEntry returns the entry of the revocation of a key of an identity.
func KeyEntry(o revocation.Change, id pki.SPIFFEID, out Applied) translog.Entry {
	return changeEntry(o, translog.CertificateRevoked, id, out)
}

// IdentityEntry returns the entry of a change of an identity. The action is that of [MoveIdentity].
func IdentityEntry(o revocation.Change, action translog.Action, out Applied) translog.Entry {
	return changeEntry(o, action, o.Identity, out)
}

func changeEntry(o revocation.Change, action translog.Action, id pki.SPIFFEID, out Applied) translog.Entry {
	event := &translog.RequestedChange{InvalidSince: o.InvalidSince, Comment: o.Comment, Key: o.Key}
	if o.Action == revocation.Revoke {
		event.Reason = o.Reason
	}
	event.InvalidTimes = invalidTimes(o.InvalidSince, out)
	if out.Created != nil {
		event.BulkRevocation = bulkEvent(*out.Created)
	}
	return translog.Entry{
		Time: o.At, Actor: o.Actor, Action: action, Outcome: translog.Done, Identity: id, Changes: out.Changed, Event: event,
	}
}

// invalidTimes returns the invalidity dates of the certificates, or nil if all of them equal that of the change.
func invalidTimes(of time.Time, out Applied) []time.Time {
	for _, t := range out.InvalidSince {
		if !t.Equal(of) {
			return out.InvalidSince
		}
	}
	return nil
}

// BulkEntry returns the entry of a new bulk revocation with its selection.
func BulkEntry(b RecordedBulk) translog.Entry {
	return translog.Entry{
		Time: b.At, Actor: b.Actor, Action: translog.BulkRevocationCreated, Outcome: translog.Done, Identity: b.Identity, Event: bulkEvent(b),
	}
}

func bulkEvent(b RecordedBulk) *translog.BulkRevocation {
	return &translog.BulkRevocation{
		ID: b.ID, Action: translog.BulkAction(b.Action), Reason: b.Reason, InvalidSince: b.InvalidSince, Comment: b.Comment,
		Mark: b.Mark, Reach: b.Reach, AtOnce: b.Done,
		Selection: b.Selection,
	}
}

// BulkCountedEntry returns the entry of the number of certificates that a bulk revocation changes.
func BulkCountedEntry(b RecordedBulk) translog.Entry {
	return translog.Entry{
		Time: b.At, Actor: bulkActor, Action: translog.BulkRevocationCounted, Outcome: translog.Done, Identity: b.Identity, Event: stepEvent(b),
	}
}

// BulkStepEntry returns the entry of a step of a bulk revocation, with the certificates that the step changed.
func BulkStepEntry(b RecordedBulk, at time.Time, identity pki.SPIFFEID, changes []pki.StatusChange) translog.Entry {
	return translog.Entry{
		Time: at, Actor: b.Actor, Action: certificateActions[b.Action], Outcome: translog.Done, Identity: identity,
		Changes: changes, Event: stepEvent(b),
	}
}

// BulkFewEntry returns the entry of the changes of a bulk revocation that is applied in the transaction that creates it.
func BulkFewEntry(b RecordedBulk, identity pki.SPIFFEID, out Applied) translog.Entry {
	e := BulkStepEntry(b, b.At, identity, out.Changed)
	event := stepEvent(b)
	event.InvalidTimes = invalidTimes(b.InvalidSince, out)
	e.Event = event
	return e
}

func stepEvent(b RecordedBulk) *translog.BulkStep {
	return &translog.BulkStep{
		ID: b.ID, Total: b.Total, Counted: b.Counted, Expired: b.Expired, Applied: b.Applied, Progress: b.Progress, Done: b.Done,
	}
}

// CRLNumberEntry returns the entry of a CRL number that was allocated.
func CRLNumberEntry(issuer pki.IssuerID, number *big.Int, at time.Time) translog.Entry {
	return translog.Entry{
		Time: at, Actor: crlActor, Action: translog.CRLNumberTaken, Outcome: translog.Done,
		Event: &translog.CRLNumber{Issuer: issuer, Number: number},
	}
}

// CRLEntry returns the entry of a published CRL.
func CRLEntry(c crl.CRL, by pki.Actor, at time.Time) translog.Entry {
	event := &translog.PublishedCRL{
		Issuer: c.Issuer, Partition: c.Partition, Delta: c.Delta, Number: c.Number, ThisUpdate: c.ThisUpdate, NextUpdate: c.NextUpdate,
		Position: c.Position, Digest: c.SHA256[:], Size: c.Size, Entries: c.Entries, Imported: c.DER != nil,
	}
	if c.Base.Number != nil {
		event.BaseNumber, event.BaseUpdate, event.BasePosition = c.Base.Number, c.Base.ThisUpdate, c.Base.Position
	}
	return translog.Entry{Time: at, Actor: by, Action: translog.CRLPublished, Outcome: translog.Done, Event: event}
}

// maxPoints is the maximum number of distribution points in an entry. Each has two URLs of at most 512 bytes.
const maxPoints = 512

// PointsEntries returns the entries of new distribution points.
func PointsEntries(points []crl.Point, at time.Time) []translog.Entry {
	var entries []translog.Entry
	for chunk := range slices.Chunk(points, maxPoints) {
		var event translog.DistributionPoints
		for _, p := range chunk {
			event = append(event, translog.DistributionPoint{Issuer: p.Issuer, Partition: p.Partition, URL: p.URL, DeltaURL: p.DeltaURL})
		}
		entries = append(entries, translog.Entry{
			Time: at, Actor: crlActor, Action: translog.DistributionPointsRecorded, Outcome: translog.Done, Event: event,
		})
	}
	return entries
}

// ExpiredEntry returns the entry of the records that a step of the retention removed. They expired earlier than before.
func ExpiredEntry(s retention.Step, before time.Time, gone retention.Expired) translog.Entry {
	return translog.Entry{
		Time: s.At, Actor: retentionActor, Action: translog.RecordsExpired, Outcome: translog.Done,
		Event: &translog.ExpiredRecords{
			Certificates: gone.Certificates, Tokens: gone.Tokens, Keys: gone.Keys,
			After:  translog.RecordPosition{NotAfter: s.After.NotAfter, Number: s.After.Row},
			Last:   translog.RecordPosition{NotAfter: gone.Next.NotAfter, Number: gone.Next.Row},
			Before: before,
		},
	}
}
