package rules

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/revocation/rotation"
	"github.com/brevet-pki/brevet/store/retention"
	"github.com/brevet-pki/brevet/translog"
)

// Operation is a write that restores records from the log. It is one of the types below. A store engine executes the
// operations of each entry in order, and the entries in the order of their indexes. The result equals the records of the
// original store, except for DER.
type Operation interface{ operation() }

// These operations are about identities.
type (
	// AddIdentity records a new identity.
	AddIdentity struct{ ra.Identity }
	// SetIdentity replaces the attributes and the revision of an identity. The kind, state and creation time do not change.
	SetIdentity struct{ ra.Identity }
	// ChangeIdentity changes the state of an identity according to [MoveIdentity].
	ChangeIdentity struct{ revocation.Change }
)

// These operations are about tokens.
type (
	// AddToken records a new token.
	AddToken struct{ ra.Token }
	// SetTokenBinding binds a token to a request and a key. If the token has no identity yet, it gets this one, in its
	// current revision.
	SetTokenBinding struct {
		ID       pki.TokenID
		Request  pki.RequestID
		Key      pki.KeyHash
		Identity pki.SPIFFEID
	}
	// SetTokenRevoked revokes one token.
	SetTokenRevoked struct {
		ID    pki.TokenID
		Cause string
	}
	// SetTokensRevoked revokes all tokens that an identity has created so far.
	SetTokensRevoked struct {
		Creator pki.SPIFFEID
		Cause   string
	}
)

// These operations are about certificates. Index is the index of the log entry in which their status changed.
type (
	// AddCertificate records a certificate without its DER. It also certifies the key, spends the token, enrolls the
	// identity with Guard.Terms if Guard.Enrolls is set, ties it to Guard.Subject, and records the successor of the
	// predecessor. Guard.Predecessor and Guard.Recovery.Certificate have only serial numbers. Record.Evidence is not set,
	// because only the log keeps it.
	AddCertificate struct {
		ca.Record
		// Superseded is the change of the predecessor if the certificate revoked it, and zero otherwise.
		Superseded pki.StatusChange
		Index      uint64
	}
	// AddAbandoned records a certificate that was never delivered.
	AddAbandoned struct {
		ca.IntentItem
		Status pki.Status
		Index  uint64
	}
	// SetStatus replaces the status and the invalidity date of a certificate.
	SetStatus struct {
		pki.StatusChange
		InvalidSince time.Time
		// CompromisedAt is the time to record for the key if this change marks it as compromised. Otherwise it is zero.
		CompromisedAt time.Time
		Index         uint64
	}
	// MarkKey marks a key as compromised, unless it already is.
	MarkKey struct {
		Key pki.KeyHash
		At  time.Time
	}
)

// These operations are about bulk revocations.
type (
	// AddBulk records a bulk revocation. If [MarksKey] holds for it, the key is marked as compromised.
	AddBulk struct{ RecordedBulk }
	// SetBulkProgress records the progress of a bulk revocation, and the statuses of the certificates that it changed. If
	// it revokes for keyCompromise, their keys are compromised as of its creation.
	SetBulkProgress struct {
		translog.BulkStep
		Changes []pki.StatusChange
		Index   uint64
	}
)

// These operations are about CAs and CRLs.
type (
	// KnowIssuer records the identifier of an issuing CA that no other record names yet.
	KnowIssuer struct{ Issuer pki.IssuerID }
	// PutInstallation records the certificate of an installed CA without its DER, or replaces the one of the same subject
	// and key.
	PutInstallation struct {
		translog.CACertificate
		At time.Time
	}
	// PutCross records a cross-certificate without its DER, or replaces the one of the same signer and subject.
	PutCross struct {
		translog.CACertificate
		At time.Time
	}
	// SetInstallationState retires or removes a CA. Removing it also removes its CRLs and distribution points.
	SetInstallationState struct {
		Issuer pki.IssuerID
		State  ca.InstallationState
	}
	// SetCRLNumber records a CRL number that was allocated.
	SetCRLNumber struct{ translog.CRLNumber }
	// PutCRL records the newest CRL of a scope, without its DER.
	PutCRL struct{ crl.CRL }
	// AddPoints records distribution points.
	AddPoints struct{ Points []crl.Point }
)

// AddPolicy records a revision of the policy without its document.
type AddPolicy struct{ ra.PolicyRevision }

// Expire repeats a step of the retention, which removed expired certificates and tokens.
type Expire struct {
	After, Last retention.Position
	// Tokens that expired earlier than Before were removed. Gone holds the numbers of removed records.
	Before time.Time
	Gone   retention.Expired
}

// These operations are about rotations.
type (
	// AddRotation records a rotation.
	AddRotation struct{ RecordedRotation }
	// EndRotation records the end of a rotation. The actor is not recorded.
	EndRotation struct{ rotation.End }
)

func (AddIdentity) operation()          {}
func (SetIdentity) operation()          {}
func (ChangeIdentity) operation()       {}
func (AddToken) operation()             {}
func (SetTokenBinding) operation()      {}
func (SetTokenRevoked) operation()      {}
func (SetTokensRevoked) operation()     {}
func (AddCertificate) operation()       {}
func (AddAbandoned) operation()         {}
func (SetStatus) operation()            {}
func (MarkKey) operation()              {}
func (AddBulk) operation()              {}
func (SetBulkProgress) operation()      {}
func (KnowIssuer) operation()           {}
func (PutInstallation) operation()      {}
func (PutCross) operation()             {}
func (SetInstallationState) operation() {}
func (SetCRLNumber) operation()         {}
func (PutCRL) operation()               {}
func (AddPoints) operation()            {}
func (AddPolicy) operation()            {}
func (Expire) operation()               {}
func (AddRotation) operation()          {}
func (EndRotation) operation()          {}

// Replay returns the operations that restore the records of the log entry with the given index. The entry of a refusal has
// no operations. Replay returns an error if the entry's event does not belong to its action and outcome, which are what a
// reader of the log sees.
func Replay(index uint64, e translog.Entry) ([]Operation, error) {
	var ops []Operation
	err := checkEvent(e)
	if err == nil {
		ops, err = replay(index, e)
	}
	if err != nil {
		return nil, fmt.Errorf("replay log entry %d, %s: %w", index, e.Action, err)
	}
	return ops, nil
}

// checkEvent returns an error if an entry has another event than its action, or was refused and has an event that
// recorded something.
func checkEvent(e translog.Entry) error {
	matches, recorded := false, true
	switch event := e.Event.(type) {
	case *translog.Refusal:
		matches, recorded = e.Action == translog.RequestRefused, false
	case *translog.IssuedCertificate:
		matches = e.Action == translog.CertificateIssued
	case *translog.AbandonedCertificates:
		matches, recorded = e.Action == translog.CertificateAbandoned, event.Duplicate.IsZero()
	case *translog.IdentityAttributes:
		matches = e.Action == translog.IdentityRegistered || e.Action == translog.IdentityUpdated
	case *translog.CreatedToken:
		matches = e.Action == translog.TokenCreated
	case *translog.BoundToken:
		matches = e.Action == translog.TokenBound
	case *translog.RevokedTokens:
		matches = e.Action == translog.TokenRevoked
	case *translog.RequestedChange:
		matches = slices.Contains(statusActions, e.Action)
	case *translog.BulkRevocation:
		matches = e.Action == translog.BulkRevocationCreated
	case *translog.BulkStep:
		matches = e.Action == translog.BulkRevocationCounted || slices.Contains(statusActions, e.Action)
	case *translog.CACertificate:
		matches = e.Action == translog.CAInstalled || e.Action == translog.CARetired || e.Action == translog.CARemoved
	case *translog.CRLNumber:
		matches = e.Action == translog.CRLNumberTaken
	case *translog.PublishedCRL:
		matches = e.Action == translog.CRLPublished
	case translog.DistributionPoints:
		matches = e.Action == translog.DistributionPointsRecorded
	case *translog.ExpiredRecords:
		matches = e.Action == translog.RecordsExpired
	case *translog.AppliedPolicy:
		matches = e.Action == translog.PolicyApplied
	case *translog.CreatedExternalKey:
		matches = e.Action == translog.ACMEExternalKeyCreated
	case *translog.RevokedExternalKey:
		matches = e.Action == translog.ACMEExternalKeyRevoked
	case *translog.ACMEAccount:
		matches = slices.Contains(accountActions, e.Action)
	case *translog.StartedRotation:
		matches = e.Action == translog.RotationStarted
	case *translog.RestoredLog:
		matches = e.Action == translog.LogRestored
	case *translog.AcceptedRestore:
		matches = e.Action == translog.RestoreAccepted
	case *translog.EndedRotation:
		matches = e.Action == translog.RotationStopped || e.Action == translog.RotationCompleted
	default:
		return errors.New("it has no event")
	}
	if refused := e.Outcome == translog.Refused; !matches || refused == recorded {
		return fmt.Errorf("an entry with the action %s and the outcome %s cannot have the event %T", e.Action, e.Outcome, e.Event)
	}
	return nil
}

// accountActions are the actions of changes of ACME accounts.
var accountActions = []translog.Action{
	translog.ACMEAccountCreated, translog.ACMEAccountKeyChanged, translog.ACMEAccountDeactivated, translog.ACMEAccountRevoked,
}

// statusActions are the actions of changes of certificates' statuses, alone, in bulk or with their identity.
var statusActions = []translog.Action{
	translog.CertificateRevoked, translog.CertificateHeld, translog.CertificateUnheld, translog.IdentitySuspended,
	translog.IdentityResumed, translog.IdentityRetired, translog.IdentityReplaced,
}

// checkKind returns an error if an identity is of another kind than its path: operators and parts of Brevet have reserved
// paths, and no other identity has one.
func checkKind(id pki.SPIFFEID, kind pki.Kind) error {
	reserved := kind == pki.Operator || kind == pki.Server || kind == pki.VA
	if reserved != id.Reserved() || id.IsOperator() != (kind == pki.Operator) {
		return fmt.Errorf("%s cannot be of the kind %s", id, kind)
	}
	return nil
}

func replay(index uint64, e translog.Entry) ([]Operation, error) {
	switch event := e.Event.(type) {
	case *translog.Refusal:
		return nil, nil
	case *translog.IssuedCertificate:
		return replayIssued(index, e, event)
	case *translog.AbandonedCertificates:
		return replayAbandoned(index, e, event), nil
	case *translog.IdentityAttributes:
		return replayIdentity(e, event)
	case *translog.CreatedToken:
		return replayToken(e, event)
	case *translog.BoundToken:
		return []Operation{SetTokenBinding{event.ID, event.Request, event.Key, e.Identity}}, nil
	case *translog.RevokedTokens:
		if event.ID.IsZero() {
			return []Operation{SetTokensRevoked{e.Identity, event.Cause}}, nil
		}
		return []Operation{SetTokenRevoked{event.ID, event.Cause}}, nil
	case *translog.RequestedChange:
		return replayChange(index, e, event)
	case *translog.BulkRevocation:
		return []Operation{AddBulk{recordedBulk(e, event)}}, nil
	case *translog.BulkStep:
		return []Operation{SetBulkProgress{*event, e.Changes, firstPart(index, event.Part)}}, nil
	case *translog.CACertificate:
		return replayInstallation(e, event)
	case *translog.CRLNumber:
		return []Operation{SetCRLNumber{*event}}, nil
	case *translog.PublishedCRL:
		return []Operation{PutCRL{crlOf(event)}}, nil
	case translog.DistributionPoints:
		return []Operation{AddPoints{pointsOf(event)}}, nil
	case *translog.ExpiredRecords:
		return []Operation{Expire{
			After:  retention.Position{NotAfter: event.After.NotAfter, Row: event.After.Number},
			Last:   retention.Position{NotAfter: event.Last.NotAfter, Row: event.Last.Number},
			Before: event.Before, Gone: retention.Expired{Certificates: event.Certificates, Tokens: event.Tokens, Keys: event.Keys},
		}}, nil
	case *translog.AppliedPolicy:
		return []Operation{AddPolicy{ra.PolicyRevision{
			Revision: event.Revision, SHA256: event.Digest, AppliedBy: e.Actor, AppliedAt: e.Time, Comment: event.Comment,
		}}}, nil
	case *translog.StartedRotation:
		return []Operation{AddRotation{recordedRotation(e, event)}}, nil
	case *translog.EndedRotation:
		return []Operation{EndRotation{endOf(e, event)}}, nil
	case *translog.RestoredLog:
		return []Operation{RestoreLog{*event}}, nil
	case *translog.AcceptedRestore:
		return []Operation{AcceptRestore{*event}}, nil
	default:
		return replayACME(e)
	}
}

// firstPart returns the index of the first part of a split entry. The records of certificates refer to this index.
func firstPart(index uint64, p translog.Part) uint64 {
	return index - uint64(max(p.Number, 1)-1)
}

func replayIssued(index uint64, e translog.Entry, event *translog.IssuedCertificate) ([]Operation, error) {
	if len(e.Changes) < 1 || len(e.Changes) > 2 {
		return nil, fmt.Errorf("the entry has %d changes, want 1 or 2", len(e.Changes))
	}
	c := e.Changes[0]
	op := AddCertificate{
		Record: ca.Record{
			Ref: c.Ref, Identity: e.Identity, Profile: event.Profile, KeyHash: event.Key, IssuedAt: event.IssueTime,
			NotBefore: event.NotBefore, NotAfter: c.NotAfter,
			Partition: event.Partition, RequestID: e.RequestID, Actor: e.Actor,
			Guard: pki.Guard{
				Key: event.Key, Token: event.Token, Enrolls: event.Enrolls, Predecessor: pki.CertRef{Serial: event.Predecessor},
				Supersedes: len(e.Changes) == 2, Subject: event.Evidence.Subject, Terms: event.Terms,
			},
		},
		Index: index,
	}
	if op.Guard.Supersedes {
		op.Superseded = e.Changes[1]
	}
	if slices.ContainsFunc(event.Evidence.Pieces, func(p translog.EvidenceDigest) bool { return p.Kind == pki.EvidenceRecovery }) {
		op.Guard.Recovery.Certificate = op.Guard.Predecessor
		if op.Guard.Supersedes {
			op.Guard.Predecessor.Serial = op.Superseded.Ref.Serial
		}
	}
	return []Operation{op}, nil
}

func replayAbandoned(index uint64, e translog.Entry, event *translog.AbandonedCertificates) []Operation {
	if !event.Duplicate.IsZero() {
		return []Operation{KnowIssuer{event.Duplicate.Issuer}}
	}
	var ops []Operation
	for i, c := range e.Changes {
		item := ca.IntentItem{
			Ref: c.Ref, Digest: event.Certificates[i].Digest, IssuedAt: event.Certificates[i].IssueTime, NotAfter: c.NotAfter,
			Partition: event.Certificates[i].Partition,
		}
		ops = append(ops, AddAbandoned{item, c.Status, firstPart(index, event.Part)})
	}
	return ops
}

func replayIdentity(e translog.Entry, event *translog.IdentityAttributes) ([]Operation, error) {
	if err := checkKind(e.Identity, event.Kind); err != nil {
		return nil, err
	}
	id := ra.Identity{
		ID: e.Identity, Kind: event.Kind, Profile: event.Profile, Labels: event.Labels, DNSNames: event.DNSNames,
		IPAddresses: event.IPAddresses, State: pki.Registered, Revision: event.Revision, CreatedAt: e.Time, Subject: event.Subject,
		Rule: event.Rule, Roles: event.Roles,
	}
	if e.Action == translog.IdentityRegistered {
		return []Operation{AddIdentity{id}}, nil
	}
	return []Operation{SetIdentity{id}}, nil
}

func replayToken(e translog.Entry, event *translog.CreatedToken) ([]Operation, error) {
	t := ra.Token{
		ID: event.ID, Identity: e.Identity, IdentityRevision: event.IdentityRevision, Profile: event.Profile, ExpiresAt: event.ExpiresAt,
		Replace: event.Replace, CreatedBy: e.Actor, CreatedAt: e.Time, CreatorCertificate: event.CreatorCertificate,
		Pattern: event.Pattern, Kind: event.Kind, Labels: event.Labels, Networks: event.Networks, RequiredKey: event.RequiredKey,
	}
	if !event.CreatorCertificate.IsZero() {
		creator, err := pki.ParseSPIFFEID(e.Actor.String())
		if err != nil {
			return nil, err
		}
		t.CreatedBy = pki.ActorCaller(creator, event.CreatorCertificate)
	}
	return []Operation{AddToken{t}}, nil
}

// replayChange returns the operations of a change of a certificate, a key or an identity.
func replayChange(index uint64, e translog.Entry, event *translog.RequestedChange) ([]Operation, error) {
	var ops []Operation
	move := revocation.Change{Identity: e.Identity, Actor: e.Actor, At: e.Time}
	switch e.Action {
	case translog.IdentitySuspended:
		move.Action, move.State = revocation.Hold, pki.Suspended
	case translog.IdentityResumed:
		move.Action = revocation.Unhold
	case translog.IdentityRetired:
		move.Action, move.State = revocation.Revoke, pki.Retired
	}
	if move.Action != 0 && event.Part.Number < 2 {
		ops = append(ops, ChangeIdentity{move})
	}
	for i, c := range e.Changes {
		s := SetStatus{StatusChange: c, InvalidSince: event.InvalidSince, Index: firstPart(index, event.Part)}
		if event.InvalidTimes != nil {
			s.InvalidSince = event.InvalidTimes[i]
		}
		if c.Status.State == pki.Revoked && event.Reason == pki.KeyCompromise {
			s.CompromisedAt = e.Time
		}
		ops = append(ops, s)
	}
	if event.BulkRevocation != nil {
		ops = append(ops, AddBulk{recordedBulk(e, event.BulkRevocation)})
	}
	if !event.Key.IsZero() {
		ops = append(ops, MarkKey{event.Key, e.Time})
	}
	return ops, nil
}

func recordedBulk(e translog.Entry, event *translog.BulkRevocation) RecordedBulk {
	return RecordedBulk{
		BulkRevocation: revocation.BulkRevocation{
			ID: event.ID, Counted: event.AtOnce, Done: event.AtOnce,
			BulkRequest: revocation.BulkRequest{
				Selection: event.Selection, Action: revocation.Action(event.Action), Reason: event.Reason, InvalidSince: event.InvalidSince,
				Actor: e.Actor, Comment: event.Comment, At: e.Time,
			},
		},
		Mark: event.Mark, Reach: event.Reach,
	}
}

func replayInstallation(e translog.Entry, event *translog.CACertificate) ([]Operation, error) {
	switch e.Action {
	case translog.CAInstalled:
		if !event.Signer.IsZero() {
			return []Operation{PutCross{*event, e.Time}}, nil
		}
		return []Operation{PutInstallation{*event, e.Time}}, nil
	case translog.CARetired:
		return []Operation{SetInstallationState{event.Issuer, ca.Retired}}, nil
	case translog.CARemoved:
		return []Operation{SetInstallationState{event.Issuer, ca.Removed}}, nil
	default:
		return nil, errors.New("the action does not belong to an event of a CA")
	}
}

func crlOf(event *translog.PublishedCRL) crl.CRL {
	c := crl.CRL{
		Issuer: event.Issuer, Partition: event.Partition, Delta: event.Delta, Number: event.Number, ThisUpdate: event.ThisUpdate,
		NextUpdate: event.NextUpdate, Position: event.Position, Size: event.Size, Entries: event.Entries,
		Base: crl.Base{Number: event.BaseNumber, ThisUpdate: event.BaseUpdate, Position: event.BasePosition},
	}
	copy(c.SHA256[:], event.Digest)
	return c
}

func pointsOf(event translog.DistributionPoints) []crl.Point {
	var points []crl.Point
	for _, p := range event {
		points = append(points, crl.Point{Issuer: p.Issuer, Partition: p.Partition, URL: p.URL, DeltaURL: p.DeltaURL})
	}
	return points
}
