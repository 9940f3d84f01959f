package translog

import (
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// decoder decodes the fields of an event. After the first error it returns zero values.
type decoder struct{ err error }

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

// value decodes a field that must be set.
func value[T any](d *decoder, b []byte, parse func([]byte) (T, error)) T {
	v, err := parse(b)
	if err != nil {
		d.fail(err)
	}
	return v
}

// optional decodes a field that may be unset.
func optional[T any](d *decoder, b []byte, parse func([]byte) (T, error)) T {
	if len(b) == 0 {
		var zero T
		return zero
	}
	return value(d, b, parse)
}

// ref decodes a certificate that may be unset.
func (d *decoder) ref(issuer, serial []byte) pki.CertRef {
	r := pki.CertRef{Issuer: optional(d, issuer, pki.IssuerIDFromBytes), Serial: optional(d, serial, pki.SerialFromBytes)}
	if r.Issuer.IsZero() != r.Serial.IsZero() {
		d.fail(errors.New("a certificate lacks its issuing CA or its serial number"))
	}
	return r
}

// time decodes a time in milliseconds since 1970. If ms is 0, time returns the zero time.
func (d *decoder) time(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return d.requireTime(ms)
}

// requireTime decodes a time in milliseconds since 1970. The value 0 is 1970.
func (d *decoder) requireTime(ms int64) time.Time {
	t, err := parseTime(ms)
	if err != nil {
		d.fail(err)
	}
	return t
}

func (d *decoder) stamp(ts *timestamppb.Timestamp) time.Time {
	if ts == nil {
		return time.Time{}
	}
	return d.requireTime(ts.AsTime().UnixMilli())
}

// count decodes a number that is not negative.
func (d *decoder) count(n int64) int64 {
	if n < 0 {
		d.fail(fmt.Errorf("the number %d is negative", n))
		return 0
	}
	return n
}

func (d *decoder) partition(n int32) uint16 {
	if n < 0 || n > 1<<16-1 {
		d.fail(fmt.Errorf("%d is not a CRL partition", n))
	}
	return uint16(n) //nolint:gosec // checked above
}

func (d *decoder) reason(r brevetv1.RevocationReason) pki.Reason {
	reason, err := pki.ReasonFromCode(int(r))
	if err != nil {
		d.fail(err)
	}
	return reason
}

// hash decodes a SHA-256.
func (d *decoder) hash(b []byte) []byte {
	if len(b) != len(Hash{}) {
		d.fail(fmt.Errorf("a hash has %d bytes", len(b)))
	}
	return b
}

// maxNumber is the size of the longest CRL number in bytes (RFC 5280 section 5.2.3).
const maxNumber = 20

func (d *decoder) number(b []byte) *big.Int {
	if len(b) > maxNumber {
		d.fail(fmt.Errorf("a CRL number has %d bytes", len(b)))
	}
	return new(big.Int).SetBytes(b)
}

func (d *decoder) crlNumber(m *brevetv1.CRLNumber) CRLNumber {
	return CRLNumber{Issuer: value(d, m.GetIssuerId(), pki.IssuerIDFromBytes), Number: d.number(m.GetNumber())}
}

// parseEvent decodes the event of an entry with the given time, or returns nil if the entry has none.
func parseEvent(m *brevetv1.LogEntry, at time.Time) (Event, error) {
	var d decoder
	var e Event
	switch v := m.GetEvent().(type) {
	case nil:
	case *brevetv1.LogEntry_IssuedCertificate:
		e = d.issued(v.IssuedCertificate, at)
	case *brevetv1.LogEntry_AbandonedCertificates:
		e = d.abandoned(v.AbandonedCertificates, at, len(m.GetChanges()))
	case *brevetv1.LogEntry_Refusal:
		e = d.refusal(v.Refusal)
	case *brevetv1.LogEntry_IdentityAttributes:
		e = d.attributes(v.IdentityAttributes)
	case *brevetv1.LogEntry_CreatedToken:
		e = d.createdToken(v.CreatedToken)
	case *brevetv1.LogEntry_BoundToken:
		e = &BoundToken{
			ID: value(&d, v.BoundToken.GetTokenId(), pki.TokenIDFromBytes), Key: value(&d, v.BoundToken.GetKeyHash(), pki.KeyHashFromBytes),
			Request: value(&d, v.BoundToken.GetRequestId(), pki.RequestIDFromBytes),
		}
	case *brevetv1.LogEntry_RevokedTokens:
		e = &RevokedTokens{
			ID: optional(&d, v.RevokedTokens.GetTokenId(), pki.TokenIDFromBytes), Usable: int(d.count(v.RevokedTokens.GetUsable())),
			Cause: v.RevokedTokens.GetCause(), Comment: v.RevokedTokens.GetComment(),
		}
	case *brevetv1.LogEntry_RequestedChange:
		e = d.order(v.RequestedChange, len(m.GetChanges()))
	case *brevetv1.LogEntry_BulkRevocation:
		e = d.bulk(v.BulkRevocation)
	case *brevetv1.LogEntry_BulkRevocationStep:
		e = d.step(v.BulkRevocationStep, len(m.GetChanges()))
	case *brevetv1.LogEntry_CaCertificate:
		e = d.authority(v.CaCertificate)
	case *brevetv1.LogEntry_CrlNumber:
		n := d.crlNumber(v.CrlNumber)
		e = &n
	case *brevetv1.LogEntry_PublishedCrl:
		e = d.crl(v.PublishedCrl)
	case *brevetv1.LogEntry_DistributionPoints:
		e = d.points(v.DistributionPoints)
	case *brevetv1.LogEntry_ExpiredRecords:
		e = d.expired(v.ExpiredRecords)
	case *brevetv1.LogEntry_CreatedExternalKey:
		e = d.createdExternalKey(v.CreatedExternalKey)
	case *brevetv1.LogEntry_RevokedExternalKey:
		e = &RevokedExternalKey{
			ID: d.acmeID(v.RevokedExternalKey.GetKeyId()), Cause: v.RevokedExternalKey.GetCause(), Comment: v.RevokedExternalKey.GetComment(),
		}
	case *brevetv1.LogEntry_AcmeAccount:
		e = d.acmeAccount(v.AcmeAccount)
	case *brevetv1.LogEntry_AppliedPolicy:
		e = d.policy(v.AppliedPolicy)
	case *brevetv1.LogEntry_StartedRotation:
		e = d.startedRotation(v.StartedRotation)
	case *brevetv1.LogEntry_EndedRotation:
		e = d.endedRotation(v.EndedRotation)
	case *brevetv1.LogEntry_RestoredLog:
		e = d.restored(v.RestoredLog)
	case *brevetv1.LogEntry_AcceptedRestore:
		e = &AcceptedRestore{List: d.hashOf(v.AcceptedRestore.GetList())}
	}
	return e, d.err
}

func (d *decoder) issued(m *brevetv1.IssuedCertificate, at time.Time) *IssuedCertificate {
	ms := at.UnixMilli()
	i := &IssuedCertificate{
		Profile: m.GetProfile(), Key: value(d, m.GetKeyHash(), pki.KeyHashFromBytes),
		NotBefore: d.requireTime(ms - m.GetSinceNotBefore()), IssueTime: d.requireTime(ms - m.GetSinceIssue()),
		Partition: d.partition(m.GetCrlPartition()), Predecessor: optional(d, m.GetPredecessorSerial(), pki.SerialFromBytes),
		Token: optional(d, m.GetTokenId(), pki.TokenIDFromBytes), Enrolls: m.GetEnrolls(),
	}
	if m.GetEvidence() != nil {
		i.Evidence = d.evidence(m.GetEvidence(), m.GetTokenId(), false)
	}
	if m.GetTerms() != nil {
		i.Terms = d.terms(m.GetTerms())
	}
	return i
}

func (d *decoder) terms(m *brevetv1.EnrollmentTerms) pki.Terms {
	t := pki.Terms{HardwareKey: m.GetHardwareKey()}
	for _, name := range m.GetKeyTypes() {
		k, err := pki.ParseKeyType(name)
		if err != nil {
			d.fail(err)
		}
		t.Keys = append(t.Keys, k)
	}
	if m.GetMaxLifetime() != nil {
		if t.MaxLifetime = m.GetMaxLifetime().AsDuration(); m.GetMaxLifetime().CheckValid() != nil || t.MaxLifetime <= 0 {
			d.fail(errors.New("the maximum lifetime is not a positive duration"))
		}
	}
	return t
}

// evidence decodes the evidence of a request. The digest of the token that was spent is omitted in the entry. If the
// request was refused, other digests may be missing, too.
func (d *decoder) evidence(m *brevetv1.IssuanceEvidence, spent []byte, refused bool) IssuanceEvidence {
	e := IssuanceEvidence{Rule: m.GetRule(), Subject: d.subject(m.GetSubject())}
	e.Policy = uint64(d.count(m.GetPolicyRevision())) //nolint:gosec // not negative
	for _, p := range m.GetPieces() {
		kind, hash := d.kind(p.GetKind()), p.GetHash()
		if len(hash) == 0 && kind == pki.EvidenceToken {
			hash = spent
		}
		piece := EvidenceDigest{Kind: kind}
		if !refused || len(hash) > 0 {
			piece.Digest = d.hashOf(hash)
		}
		e.Pieces = append(e.Pieces, piece)
	}
	return e
}

// subject decodes a subject of evidence that may be unset.
func (d *decoder) subject(m *brevetv1.EvidenceHash) pki.EvidenceSubject {
	if m == nil {
		return pki.EvidenceSubject{}
	}
	return pki.EvidenceSubject{Kind: d.kind(m.GetKind()), Hash: d.hashOf(m.GetHash())}
}

func (d *decoder) kind(name string) pki.EvidenceKind {
	kind, err := pki.ParseEvidenceKind(name)
	if err != nil {
		d.fail(err)
	}
	return kind
}

// hashOf decodes a SHA-256.
func (d *decoder) hashOf(b []byte) (h Hash) {
	copy(h[:], d.hash(b))
	return h
}

func (d *decoder) abandoned(m *brevetv1.AbandonedCertificates, at time.Time, changes int) *AbandonedCertificates {
	a := &AbandonedCertificates{Duplicate: d.ref(m.GetDuplicateIssuerId(), m.GetDuplicateSerial()), Part: d.part(m.GetPart())}
	if m.GetRefusal() != nil {
		a.Refusal = d.refusal(m.GetRefusal())
	}
	if len(m.GetCertificates()) != changes {
		d.fail(fmt.Errorf("%d certificates were abandoned, in %d changes", len(m.GetCertificates()), changes))
	}
	for _, c := range m.GetCertificates() {
		a.Certificates = append(a.Certificates, AbandonedCertificate{
			IssueTime: d.requireTime(at.UnixMilli() - c.GetSinceIssue()), Partition: d.partition(c.GetCrlPartition()), Digest: c.GetDigest(),
		})
	}
	return a
}

func (d *decoder) refusal(m *brevetv1.LogRefusal) *Refusal {
	r := &Refusal{Rule: pki.Rule(m.GetRule()), Detail: m.GetDetail()}
	if m.GetEvidence() != nil {
		r.Evidence = d.evidence(m.GetEvidence(), nil, true)
	}
	return r
}

// roles returns the set of an operator's roles.
func (d *decoder) roles(list []brevetv1.OperatorRole) pki.Roles {
	var set pki.Roles
	all := pki.AllRoles()
	for _, n := range list {
		i := slices.IndexFunc(all, func(r pki.Role) bool { return roles[r] == n })
		if i < 0 {
			d.fail(fmt.Errorf("%d is not a role of an operator", n))
			return 0
		}
		set |= pki.RolesOf(all[i])
	}
	return set
}

func (d *decoder) attributes(m *brevetv1.IdentityAttributes) *IdentityAttributes {
	i := &IdentityAttributes{
		Kind: d.identityKind(m.GetKind()), Profile: m.GetProfile(), Labels: m.GetLabels(), Revision: uint64(d.count(m.GetRevision())), //nolint:gosec // not negative
		Subject: d.subject(m.GetEvidenceSubject()), Rule: m.GetRule(),
	}
	i.Roles = d.roles(m.GetRoles())
	for _, name := range m.GetNames() {
		switch k := name.GetKind().(type) {
		case *brevetv1.Name_Dns:
			i.DNSNames = append(i.DNSNames, k.Dns)
		case *brevetv1.Name_Ip:
			ip, err := netip.ParseAddr(k.Ip)
			if err != nil {
				d.fail(err)
			}
			i.IPAddresses = append(i.IPAddresses, ip)
		default:
			d.fail(errors.New("a name of an identity is of an unknown kind"))
		}
	}
	return i
}

func (d *decoder) identityKind(n brevetv1.IdentityKind) pki.Kind {
	for kind, have := range kinds {
		if have == n {
			return kind
		}
	}
	d.fail(fmt.Errorf("%d is not a kind of identity", n))
	return 0
}

func (d *decoder) createdToken(m *brevetv1.CreatedToken) *CreatedToken {
	t := &CreatedToken{
		ID: value(d, m.GetTokenId(), pki.TokenIDFromBytes), IdentityRevision: uint64(d.count(m.GetIdentityRevision())), //nolint:gosec // not negative
		Profile: m.GetProfile(), ExpiresAt: d.requireTime(m.GetExpireTime()), Replace: m.GetReplace(),
		CreatorCertificate: d.ref(m.GetCreatorIssuerId(), m.GetCreatorSerial()),
		Pattern:            m.GetPattern(), Labels: m.GetLabels(), RequiredKey: optional(d, m.GetKeyHash(), pki.KeyHashFromBytes),
	}
	if t.Pattern != "" {
		t.Kind = d.identityKind(m.GetKind())
	}
	for _, text := range m.GetNetworks() {
		n, err := netip.ParsePrefix(text)
		if err != nil {
			d.fail(err)
		}
		t.Networks = append(t.Networks, n)
	}
	return t
}

func (d *decoder) part(m *brevetv1.LogPart) Part {
	return Part{Number: int(d.count(int64(m.GetNumber()))), Of: int(d.count(int64(m.GetOf())))}
}

func (d *decoder) order(m *brevetv1.RequestedChange, changes int) *RequestedChange {
	o := &RequestedChange{
		Reason: d.reason(m.GetReason()), InvalidSince: d.time(m.GetInvalidityTime()), Comment: m.GetComment(),
		Key: optional(d, m.GetKeyHash(), pki.KeyHashFromBytes), Part: d.part(m.GetPart()),
	}
	if m.GetBulkRevocation() != nil {
		o.BulkRevocation = d.bulk(m.GetBulkRevocation())
	}
	o.InvalidTimes = d.invalidTimes(m.GetInvalidityTimes(), changes)
	return o
}

// invalidTimes decodes the invalidity times of a number of changes. It returns nil if there are none.
func (d *decoder) invalidTimes(all []int64, changes int) (times []time.Time) {
	if n := len(all); n != 0 && n != changes {
		d.fail(fmt.Errorf("%d invalidity times, in %d changes", n, changes))
	}
	for _, ms := range all {
		times = append(times, d.time(ms))
	}
	return times
}

func (d *decoder) bulk(m *brevetv1.BulkRevocationRecord) *BulkRevocation {
	b := &BulkRevocation{
		ID: d.count(m.GetId()), Action: BulkAction(m.GetAction()), Reason: d.reason(m.GetReason()), //nolint:gosec // checked below
		InvalidSince: d.time(m.GetInvalidityTime()), Comment: m.GetComment(), Mark: d.count(m.GetMark()),
		Reach: d.time(m.GetReach()), AtOnce: m.GetAtOnce(), Selection: d.selection(m.GetSelection(), m.GetLineageIssuerId()),
	}
	if m.GetAction() < 1 || m.GetAction() > brevetv1.BulkRevocationAction(BulkUnhold) {
		d.fail(fmt.Errorf("%d is not an action of a bulk revocation", m.GetAction()))
	}
	return b
}

// selection decodes a selection. The issuer is that of the certificate in lineage_serial.
func (d *decoder) selection(sel *brevetv1.CertificateSelection, issuer []byte) pki.Selection {
	s := pki.Selection{
		Issuer: optional(d, sel.GetIssuerId(), pki.IssuerIDFromBytes), LineageOf: d.ref(issuer, sel.GetLineageSerial()),
		Key: optional(d, sel.GetKeyHash(), pki.KeyHashFromBytes), Profile: sel.GetProfile(),
		Label:      pki.Label{Name: sel.GetLabel().GetName(), Value: sel.GetLabel().GetValue()},
		IssuedFrom: d.stamp(sel.GetIssueStartTime()), IssuedUntil: d.stamp(sel.GetIssueEndTime()),
	}
	if sel.GetIdentity() != "" {
		var err error
		if s.Identity, err = pki.ParseSPIFFEID(sel.GetIdentity()); err != nil {
			d.fail(err)
		}
	}
	return s
}

func (d *decoder) step(m *brevetv1.BulkRevocationStep, changes int) *BulkStep {
	return &BulkStep{
		ID: d.count(m.GetId()), Total: int(d.count(m.GetTotal())), Counted: m.Total != nil, Expired: int(d.count(m.GetExpired())),
		Applied: int(d.count(m.GetApplied())), Progress: d.count(m.GetProgress()), Done: m.GetDone(), Part: d.part(m.GetPart()),
		InvalidTimes: d.invalidTimes(m.GetInvalidityTimes(), changes),
	}
}

func (d *decoder) authority(m *brevetv1.CACertificate) *CACertificate {
	return &CACertificate{
		Issuer: value(d, m.GetIssuerId(), pki.IssuerIDFromBytes), Subject: m.GetSubject(), Fingerprint: d.hash(m.GetFingerprint()),
		KeyHash: value(d, m.GetKeyHash(), pki.KeyHashFromBytes), KeyLabel: m.GetKeyLabel(),
		Signer: optional(d, m.GetSignerId(), pki.IssuerIDFromBytes),
	}
}

func (d *decoder) crl(m *brevetv1.PublishedCRL) *PublishedCRL {
	c := &PublishedCRL{
		Issuer: value(d, m.GetIssuerId(), pki.IssuerIDFromBytes), Partition: d.partition(m.GetCrlPartition()), Delta: m.GetDelta(),
		Number: d.number(m.GetNumber()), ThisUpdate: d.requireTime(m.GetThisUpdate()), NextUpdate: d.requireTime(m.GetNextUpdate()),
		Position: uint64(d.count(m.GetPosition())), //nolint:gosec // not negative
		Digest:   d.hash(m.GetDigest()), Size: d.count(m.GetSize()), Entries: d.count(m.GetEntries()), Imported: m.GetImported(),
	}
	if len(m.GetBaseNumber()) > 0 {
		c.BaseNumber, c.BaseUpdate = d.number(m.GetBaseNumber()), d.requireTime(m.GetBaseUpdate())
		c.BasePosition = uint64(d.count(m.GetBasePosition())) //nolint:gosec // not negative
	}
	return c
}

func (d *decoder) points(m *brevetv1.DistributionPoints) DistributionPoints {
	var points DistributionPoints
	for _, p := range m.GetPoints() {
		points = append(points, DistributionPoint{
			Issuer: value(d, p.GetIssuerId(), pki.IssuerIDFromBytes), Partition: d.partition(p.GetCrlPartition()),
			URL: p.GetUrl(), DeltaURL: p.GetDeltaUrl(),
		})
	}
	return points
}

func (d *decoder) place(m *brevetv1.RecordPosition) RecordPosition {
	return RecordPosition{NotAfter: d.time(m.GetNotAfter()), Number: d.count(m.GetNumber())}
}

func (d *decoder) expired(m *brevetv1.ExpiredRecords) *ExpiredRecords {
	return &ExpiredRecords{
		Certificates: int(d.count(m.GetCertificates())), Tokens: int(d.count(m.GetTokens())), Keys: int(d.count(m.GetKeys())),
		After: d.place(m.GetAfter()), Last: d.place(m.GetLast()), Before: d.time(m.GetBefore()),
	}
}

func (d *decoder) policy(m *brevetv1.AppliedPolicy) *AppliedPolicy {
	p := &AppliedPolicy{Digest: d.hashOf(m.GetDigest()), Comment: m.GetComment()}
	p.Revision = uint64(d.count(m.GetRevision())) //nolint:gosec // not negative
	if p.Revision == 0 {
		d.fail(errors.New("a policy has no revision"))
	}
	return p
}
