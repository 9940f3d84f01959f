package translog

import (
	"bytes"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// kinds maps kinds of identities to their numbers in entries.
var kinds = map[pki.Kind]brevetv1.IdentityKind{
	pki.Device:   brevetv1.IdentityKind_IDENTITY_KIND_DEVICE,
	pki.Workload: brevetv1.IdentityKind_IDENTITY_KIND_WORKLOAD,
	pki.Operator: brevetv1.IdentityKind_IDENTITY_KIND_OPERATOR,
	pki.Server:   brevetv1.IdentityKind_IDENTITY_KIND_SERVER,
	pki.VA:       brevetv1.IdentityKind_IDENTITY_KIND_VALIDATION_AUTHORITY,
}

// roles maps the roles of operators to their numbers in entries.
var roles = map[pki.Role]brevetv1.OperatorRole{
	pki.RoleAdmin:     brevetv1.OperatorRole_OPERATOR_ROLE_ADMIN,
	pki.RoleRegistrar: brevetv1.OperatorRole_OPERATOR_ROLE_REGISTRAR,
	pki.RoleRevoker:   brevetv1.OperatorRole_OPERATOR_ROLE_REVOKER,
	pki.RoleAuditor:   brevetv1.OperatorRole_OPERATOR_ROLE_AUDITOR,
}

// bytesOf returns the bytes of an identifier, and nil if it is zero.
func bytesOf[T interface {
	IsZero() bool
	Bytes() []byte
}](id T) []byte {
	if id.IsZero() {
		return nil
	}
	return id.Bytes()
}

// millis returns a time in milliseconds since 1970, and 0 for the zero time.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// stamp returns a time as a message, and nil for the zero time.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t.Truncate(time.Millisecond))
}

func (i *IssuedCertificate) encode(m *brevetv1.LogEntry, at time.Time) {
	m.Event = &brevetv1.LogEntry_IssuedCertificate{IssuedCertificate: &brevetv1.IssuedCertificate{
		Profile: i.Profile, KeyHash: bytesOf(i.Key), SinceNotBefore: at.UnixMilli() - i.NotBefore.UnixMilli(),
		SinceIssue: at.UnixMilli() - i.IssueTime.UnixMilli(), CrlPartition: int32(i.Partition),
		PredecessorSerial: bytesOf(i.Predecessor), TokenId: bytesOf(i.Token), Enrolls: i.Enrolls,
		Evidence: i.Evidence.message(i.Token), Terms: termsMessage(i.Terms),
	}}
}

// termsMessage returns nil if there are no terms.
func termsMessage(t pki.Terms) *brevetv1.EnrollmentTerms {
	if t.IsZero() {
		return nil
	}
	m := &brevetv1.EnrollmentTerms{HardwareKey: t.HardwareKey}
	for _, k := range t.Keys {
		m.KeyTypes = append(m.KeyTypes, string(k))
	}
	if t.MaxLifetime > 0 {
		m.MaxLifetime = durationpb.New(t.MaxLifetime)
	}
	return m
}

// message returns nil if there was no evidence. It omits the digest of the token that was spent, which is the token's
// ID.
func (e IssuanceEvidence) message(spent pki.TokenID) *brevetv1.IssuanceEvidence {
	if e.isZero() {
		return nil
	}
	out := &brevetv1.IssuanceEvidence{Rule: e.Rule, Subject: subjectMessage(e.Subject)}
	out.PolicyRevision = int64(e.Policy) //nolint:gosec // counts changes
	for _, p := range e.Pieces {
		h := &brevetv1.EvidenceHash{Kind: p.Kind.String(), Hash: p.Digest[:]}
		if p.Kind == pki.EvidenceToken && bytes.Equal(p.Digest[:], bytesOf(spent)) {
			h.Hash = nil
		}
		out.Pieces = append(out.Pieces, h)
	}
	return out
}

// subjectMessage returns nil if there is no subject.
func subjectMessage(s pki.EvidenceSubject) *brevetv1.EvidenceHash {
	if s.IsZero() {
		return nil
	}
	return &brevetv1.EvidenceHash{Kind: s.Kind.String(), Hash: s.Hash[:]}
}

func (a *AbandonedCertificates) encode(m *brevetv1.LogEntry, at time.Time) {
	out := &brevetv1.AbandonedCertificates{
		DuplicateIssuerId: bytesOf(a.Duplicate.Issuer), DuplicateSerial: bytesOf(a.Duplicate.Serial), Part: a.Part.message(),
	}
	if a.Refusal != nil {
		out.Refusal = a.Refusal.message()
	}
	for _, c := range a.Certificates {
		out.Certificates = append(out.Certificates, &brevetv1.AbandonedCertificate{
			SinceIssue: at.UnixMilli() - c.IssueTime.UnixMilli(), CrlPartition: int32(c.Partition), Digest: c.Digest,
		})
	}
	m.Event = &brevetv1.LogEntry_AbandonedCertificates{AbandonedCertificates: out}
}

func (r *Refusal) message() *brevetv1.LogRefusal {
	m := &brevetv1.LogRefusal{Rule: string(r.Rule), Detail: r.Detail, Evidence: r.Evidence.message(pki.TokenID{})}
	for i, p := range r.Evidence.Pieces {
		if p.Digest == (Hash{}) {
			m.Evidence.Pieces[i].Hash = nil
		}
	}
	return m
}

func (r *Refusal) encode(m *brevetv1.LogEntry, _ time.Time) {
	m.Event = &brevetv1.LogEntry_Refusal{Refusal: r.message()}
}

func (i *IdentityAttributes) encode(m *brevetv1.LogEntry, _ time.Time) {
	out := &brevetv1.IdentityAttributes{
		Kind: kinds[i.Kind], Profile: i.Profile, Labels: i.Labels, Revision: int64(i.Revision), //nolint:gosec // counts changes
		EvidenceSubject: subjectMessage(i.Subject), Rule: i.Rule,
	}
	for _, name := range i.DNSNames {
		out.Names = append(out.Names, &brevetv1.Name{Kind: &brevetv1.Name_Dns{Dns: name}})
	}
	for _, ip := range i.IPAddresses {
		out.Names = append(out.Names, &brevetv1.Name{Kind: &brevetv1.Name_Ip{Ip: ip.String()}})
	}
	for _, role := range i.Roles.List() {
		out.Roles = append(out.Roles, roles[role])
	}
	m.Event = &brevetv1.LogEntry_IdentityAttributes{IdentityAttributes: out}
}

func (t *CreatedToken) encode(m *brevetv1.LogEntry, _ time.Time) {
	out := &brevetv1.CreatedToken{
		TokenId: bytesOf(t.ID), IdentityRevision: int64(t.IdentityRevision), Profile: t.Profile, //nolint:gosec // counts changes
		ExpireTime: t.ExpiresAt.UnixMilli(), Replace: t.Replace,
		CreatorIssuerId: bytesOf(t.CreatorCertificate.Issuer), CreatorSerial: bytesOf(t.CreatorCertificate.Serial),
		Pattern: t.Pattern, Kind: kinds[t.Kind], Labels: t.Labels, KeyHash: bytesOf(t.RequiredKey),
	}
	for _, n := range t.Networks {
		out.Networks = append(out.Networks, n.String())
	}
	m.Event = &brevetv1.LogEntry_CreatedToken{CreatedToken: out}
}

func (t *BoundToken) encode(m *brevetv1.LogEntry, _ time.Time) {
	m.Event = &brevetv1.LogEntry_BoundToken{BoundToken: &brevetv1.BoundToken{
		TokenId: bytesOf(t.ID), RequestId: bytesOf(t.Request), KeyHash: bytesOf(t.Key),
	}}
}

func (r *RevokedTokens) encode(m *brevetv1.LogEntry, _ time.Time) {
	m.Event = &brevetv1.LogEntry_RevokedTokens{RevokedTokens: &brevetv1.RevokedTokens{
		TokenId: bytesOf(r.ID), Usable: int64(r.Usable), Cause: r.Cause, Comment: r.Comment,
	}}
}

func (p Part) message() *brevetv1.LogPart {
	if p == (Part{}) {
		return nil
	}
	return &brevetv1.LogPart{Number: int32(p.Number), Of: int32(p.Of)} //nolint:gosec // few
}

func (o *RequestedChange) encode(m *brevetv1.LogEntry, _ time.Time) {
	out := &brevetv1.RequestedChange{
		Reason: brevetv1.RevocationReason(o.Reason), InvalidityTime: millis(o.InvalidSince), Comment: o.Comment,
		KeyHash: bytesOf(o.Key), Part: o.Part.message(),
	}
	if o.BulkRevocation != nil {
		out.BulkRevocation = o.BulkRevocation.message()
	}
	for _, t := range o.InvalidTimes {
		out.InvalidityTimes = append(out.InvalidityTimes, millis(t))
	}
	m.Event = &brevetv1.LogEntry_RequestedChange{RequestedChange: out}
}

// selectionMessage encodes a selection. The issuer of the certificate in LineageOf is not part of the message.
func selectionMessage(s pki.Selection) *brevetv1.CertificateSelection {
	sel := &brevetv1.CertificateSelection{
		IssuerId: bytesOf(s.Issuer), Identity: s.Identity.String(), LineageSerial: bytesOf(s.LineageOf.Serial), KeyHash: bytesOf(s.Key),
		Profile: s.Profile, IssueStartTime: stamp(s.IssuedFrom), IssueEndTime: stamp(s.IssuedUntil),
	}
	if !s.Label.IsZero() {
		sel.Label = &brevetv1.Label{Name: s.Label.Name, Value: s.Label.Value}
	}
	return sel
}

func (b *BulkRevocation) message() *brevetv1.BulkRevocationRecord {
	return &brevetv1.BulkRevocationRecord{
		Id: b.ID, Selection: selectionMessage(b.Selection), LineageIssuerId: bytesOf(b.Selection.LineageOf.Issuer), Action: brevetv1.BulkRevocationAction(b.Action),
		Reason: brevetv1.RevocationReason(b.Reason), InvalidityTime: millis(b.InvalidSince), Comment: b.Comment,
		Mark: b.Mark, Reach: millis(b.Reach), AtOnce: b.AtOnce,
	}
}

func (b *BulkRevocation) encode(m *brevetv1.LogEntry, _ time.Time) {
	m.Event = &brevetv1.LogEntry_BulkRevocation{BulkRevocation: b.message()}
}

func (s *BulkStep) encode(m *brevetv1.LogEntry, _ time.Time) {
	out := &brevetv1.BulkRevocationStep{
		Id: s.ID, Expired: int64(s.Expired), Applied: int64(s.Applied), Progress: s.Progress, Done: s.Done, Part: s.Part.message(),
	}
	if s.Counted {
		out.Total = proto.Int64(int64(s.Total))
	}
	for _, t := range s.InvalidTimes {
		out.InvalidityTimes = append(out.InvalidityTimes, millis(t))
	}
	m.Event = &brevetv1.LogEntry_BulkRevocationStep{BulkRevocationStep: out}
}

func (c *CACertificate) encode(m *brevetv1.LogEntry, _ time.Time) {
	m.Event = &brevetv1.LogEntry_CaCertificate{CaCertificate: &brevetv1.CACertificate{
		IssuerId: bytesOf(c.Issuer), Subject: c.Subject, Fingerprint: c.Fingerprint, KeyHash: bytesOf(c.KeyHash), KeyLabel: c.KeyLabel,
		SignerId: bytesOf(c.Signer),
	}}
}

func (n *CRLNumber) encode(m *brevetv1.LogEntry, _ time.Time) {
	m.Event = &brevetv1.LogEntry_CrlNumber{CrlNumber: &brevetv1.CRLNumber{IssuerId: bytesOf(n.Issuer), Number: n.Number.Bytes()}}
}

func (c *PublishedCRL) encode(m *brevetv1.LogEntry, _ time.Time) {
	out := &brevetv1.PublishedCRL{
		IssuerId: bytesOf(c.Issuer), CrlPartition: int32(c.Partition), Delta: c.Delta, Number: c.Number.Bytes(),
		ThisUpdate: c.ThisUpdate.UnixMilli(), NextUpdate: c.NextUpdate.UnixMilli(), Position: int64(c.Position), //nolint:gosec // an index
		Digest: c.Digest, Size: c.Size, Entries: c.Entries, Imported: c.Imported,
	}
	if c.BaseNumber != nil {
		out.BaseNumber, out.BaseUpdate = c.BaseNumber.Bytes(), c.BaseUpdate.UnixMilli()
		out.BasePosition = int64(c.BasePosition) //nolint:gosec // an index
		if len(out.BaseNumber) == 0 {
			out.BaseNumber = []byte{0} // the number 0, beside none
		}
	}
	m.Event = &brevetv1.LogEntry_PublishedCrl{PublishedCrl: out}
}

func (p DistributionPoints) encode(m *brevetv1.LogEntry, _ time.Time) {
	out := &brevetv1.DistributionPoints{}
	for _, point := range p {
		out.Points = append(out.Points, &brevetv1.DistributionPoint{
			IssuerId: bytesOf(point.Issuer), CrlPartition: int32(point.Partition), Url: point.URL, DeltaUrl: point.DeltaURL,
		})
	}
	m.Event = &brevetv1.LogEntry_DistributionPoints{DistributionPoints: out}
}

func (p RecordPosition) message() *brevetv1.RecordPosition {
	if p == (RecordPosition{}) {
		return nil
	}
	return &brevetv1.RecordPosition{NotAfter: millis(p.NotAfter), Number: p.Number}
}

func (e *ExpiredRecords) encode(m *brevetv1.LogEntry, _ time.Time) {
	m.Event = &brevetv1.LogEntry_ExpiredRecords{ExpiredRecords: &brevetv1.ExpiredRecords{
		Certificates: int64(e.Certificates), Tokens: int64(e.Tokens), Keys: int64(e.Keys),
		After: e.After.message(), Last: e.Last.message(), Before: millis(e.Before),
	}}
}

func (p *AppliedPolicy) encode(m *brevetv1.LogEntry, _ time.Time) {
	m.Event = &brevetv1.LogEntry_AppliedPolicy{AppliedPolicy: &brevetv1.AppliedPolicy{
		Revision: int64(p.Revision), Digest: p.Digest[:], Comment: p.Comment, //nolint:gosec // counts changes
	}}
}
