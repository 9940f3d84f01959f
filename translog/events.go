package translog

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// Event is the part of an entry that its status changes do not contain. It is one of the types below. Each type belongs
// to certain actions.
type Event interface {
	// facts adds the event to texts by name, for printing.
	facts(f facts)
	// encode adds the event to the message of an entry with the given time.
	encode(m *brevetv1.LogEntry, at time.Time)
}

// IssuedCertificate is the event of [CertificateIssued]. Times have millisecond precision.
type IssuedCertificate struct {
	Profile   string
	Key       pki.KeyHash
	NotBefore time.Time
	IssueTime time.Time
	Partition uint16
	// Predecessor is the serial number of the certificate that was renewed; zero for none.
	Predecessor pki.Serial
	Token       pki.TokenID // the token that was spent; zero for none
	Enrolls     bool        // the identity became enrolled, in a new revision
	// Evidence is the evidence for which the certificate was issued; zero for none.
	Evidence IssuanceEvidence
	// Terms are those of the enrollment, from this entry on. They are zero unless Enrolls is set.
	Terms pki.Terms
}

// IssuanceEvidence is the evidence for which a certificate was issued or refused, and the decision about it.
type IssuanceEvidence struct {
	Pieces []EvidenceDigest
	Rule   string // of the policy; empty if no rule was necessary, or none matched
	Policy uint64 // revision of the policy; zero for none
	// Subject is that of the evidence; zero for none. An issued certificate ties the identity to it.
	Subject pki.EvidenceSubject
}

// EvidenceDigest is the kind and the SHA-256 of one piece of evidence. The digest is zero if the log does not have it.
type EvidenceDigest struct {
	Kind   pki.EvidenceKind
	Digest Hash
}

// isZero reports whether there was no evidence.
func (e IssuanceEvidence) isZero() bool {
	return len(e.Pieces) == 0 && e.Rule == "" && e.Policy == 0 && e.Subject.IsZero()
}

// AbandonedCertificates is the event of [CertificateAbandoned]. Certificates has one element for each change.
type AbandonedCertificates struct {
	Certificates []AbandonedCertificate
	Refusal      *Refusal // nil unless a guard refused the certificate
	// Duplicate is a certificate that was not recorded, because its serial number is already on record; zero for none.
	Duplicate pki.CertRef
	Part      Part
}

// AbandonedCertificate is a certificate that was never delivered.
type AbandonedCertificate struct {
	IssueTime time.Time
	Partition uint16
	Digest    []byte // the digest that the HSM was to sign
}

// Refusal is the event of [RequestRefused].
type Refusal struct {
	Rule   pki.Rule
	Detail string
	// Evidence is the evidence of a refused enrollment; zero for none.
	Evidence IssuanceEvidence
}

// IdentityAttributes is the event of [IdentityRegistered] and [IdentityUpdated]: all attributes after the change.
type IdentityAttributes struct {
	Kind        pki.Kind
	Profile     string
	Labels      map[string]string
	DNSNames    []string
	IPAddresses []netip.Addr
	Revision    uint64
	Subject     pki.EvidenceSubject // that the identity is tied to; zero for none
	Rule        string              // of the policy, that registered the identity; empty for none
	Roles       pki.Roles           // of an operator
}

// CreatedToken is the event of [TokenCreated].
type CreatedToken struct {
	ID               pki.TokenID
	IdentityRevision uint64
	Profile          string
	ExpiresAt        time.Time
	Replace          bool
	// CreatorCertificate is the certificate of the caller; zero if the server itself created the token.
	CreatorCertificate pki.CertRef
	// Pattern, Kind and Labels are those of the identities that the token can enroll; empty for a token of one identity.
	Pattern     string
	Kind        pki.Kind
	Labels      map[string]string
	Networks    []netip.Prefix // from which the token can be used; empty for all
	RequiredKey pki.KeyHash    // the only key for which the token can be used; zero for any
}

// BoundToken is the event of [TokenBound]. A token with a pattern was also bound to the identity of the entry.
type BoundToken struct {
	ID      pki.TokenID
	Request pki.RequestID
	Key     pki.KeyHash
}

// RevokedTokens is the event of [TokenRevoked]. Without an ID, all tokens that the entry's identity created were
// revoked.
type RevokedTokens struct {
	ID      pki.TokenID
	Usable  int    // how many of the revoked tokens were usable
	Cause   string // the reason that refusals of the tokens state
	Comment string
}

// Part numbers the entries of a change with too many certificates for one entry. The zero value means that the change
// has one entry.
type Part struct{ Number, Of int }

// RequestedChange is the event of a change of one certificate, of a key's certificates, or of an identity.
type RequestedChange struct {
	Reason       pki.Reason
	InvalidSince time.Time // zero if unknown
	Comment      string
	// Key is the key whose certificates were revoked, because it is compromised; zero for none.
	Key pki.KeyHash
	// BulkRevocation is the bulk revocation that changes the certificates; nil if the entry has their changes.
	BulkRevocation *BulkRevocation
	// InvalidTimes are the invalidity times of the changes, zero for none; nil if all have InvalidSince.
	InvalidTimes []time.Time
	Part         Part
}

// BulkAction is what a bulk revocation does to each certificate. The numbers are those of
// brevet.v1.BulkRevocationAction.
type BulkAction uint8

// The actions of a bulk revocation.
const (
	BulkRevoke BulkAction = iota + 1
	BulkHold
	BulkUnhold
)

// BulkRevocation is the event of [BulkRevocationCreated].
type BulkRevocation struct {
	ID        int64
	Selection pki.Selection
	Action    BulkAction
	Reason    pki.Reason
	// InvalidSince is the invalidity time; zero if unknown.
	InvalidSince time.Time
	Comment      string
	Mark         int64     // the row ID of the newest certificate record; later ones are not affected
	Reach        time.Time // certificates that expired before it are not affected; zero for no limit
	AtOnce       bool      // the certificates are changed in the same transaction
}

// BulkStep is the event of a step of a bulk revocation, and of [BulkRevocationCounted].
type BulkStep struct {
	ID       int64
	Total    int
	Counted  bool // Total is known
	Expired  int
	Applied  int
	Progress int64 // the row ID of the last record that was changed
	Done     bool
	// InvalidTimes are the invalidity times of the changes, zero for none. If it is nil, all have that of the bulk
	// revocation, or keep their own if it has none.
	InvalidTimes []time.Time
	Part         Part
}

// ExpiredRecords is the event of [RecordsExpired]: how many records one step removed, and which range it examined.
type ExpiredRecords struct {
	Certificates, Tokens, Keys int
	After, Last                RecordPosition
	Before                     time.Time
}

// RecordPosition is a position among the certificate records, which are sorted by notAfter and row ID.
type RecordPosition struct {
	NotAfter time.Time
	Number   int64
}

// facts are texts by name.
type facts map[string]string

// add adds a text that is not empty.
func (f facts) add(name, value string) {
	if value != "" {
		f[name] = value
	}
}

func (f facts) addTime(name string, t time.Time) {
	if !t.IsZero() {
		f[name] = t.UTC().Format("2006-01-02T15:04:05.999Z07:00")
	}
}

func (f facts) addNumber(name string, n int64) {
	if n != 0 {
		f[name] = strconv.FormatInt(n, 10)
	}
}

func (f facts) addFlag(name string, set bool) {
	if set {
		f[name] = "true"
	}
}

// addID adds the text of an identifier that is not zero.
func (f facts) addID(name string, id interface {
	IsZero() bool
	String() string
}) {
	if !id.IsZero() {
		f[name] = id.String()
	}
}

// Facts returns the event, and the request ID, as texts by name, for printing. A fact that the event does not have is
// left out.
func (e Entry) Facts() map[string]string {
	f := facts{}
	f.addID("request", e.RequestID)
	if e.Event != nil {
		e.Event.facts(f)
	}
	return f
}

func (i *IssuedCertificate) facts(f facts) {
	f.add("profile", i.Profile)
	f.addID("key", i.Key)
	f.addTime("not_before", i.NotBefore)
	f.addTime("issued", i.IssueTime)
	f.addNumber("partition", int64(i.Partition))
	f.addID("predecessor", i.Predecessor)
	f.addID("token", i.Token)
	f.addFlag("enrolls", i.Enrolls)
	i.Evidence.facts(f)
	f.addFlag("hardware_key", i.Terms.HardwareKey)
	f.add("key_types", pki.JoinKeyTypes(i.Terms.Keys))
	if i.Terms.MaxLifetime > 0 {
		f["max_lifetime"] = i.Terms.MaxLifetime.String()
	}
}

func (e IssuanceEvidence) facts(f facts) {
	var pieces []string
	for _, p := range e.Pieces {
		text := p.Kind.String()
		if p.Digest != (Hash{}) {
			text += ":" + p.Digest.String()
		}
		pieces = append(pieces, text)
	}
	f.add("evidence", strings.Join(pieces, " "))
	f.addID("evidence_subject", e.Subject)
	f.add("policy_rule", e.Rule)
	f.addNumber("policy_revision", int64(e.Policy)) //nolint:gosec // counts changes
}

func (a *AbandonedCertificates) facts(f facts) {
	if a.Refusal != nil {
		a.Refusal.facts(f)
	}
	if !a.Duplicate.IsZero() {
		f.addID("issuer", a.Duplicate.Issuer)
		f.addID("serial", a.Duplicate.Serial)
		f["detail"] = "the serial number is already on record"
	}
}

func (r *Refusal) facts(f facts) {
	f.add("rule", string(r.Rule))
	f.add("detail", r.Detail)
	r.Evidence.facts(f)
}

func (i *IdentityAttributes) facts(f facts) {
	f.add("kind", i.Kind.String())
	f.add("profile", i.Profile)
	f.add("dns_names", strings.Join(i.DNSNames, " "))
	var ips []string
	for _, ip := range i.IPAddresses {
		ips = append(ips, ip.String())
	}
	f.add("ip_addresses", strings.Join(ips, " "))
	for name, value := range i.Labels {
		f["label."+name] = value
	}
	f.addNumber("revision", int64(i.Revision)) //nolint:gosec // counts changes
	f.addID("evidence_subject", i.Subject)
	f.add("policy_rule", i.Rule)
	f.add("roles", i.Roles.String())
}

func (t *CreatedToken) facts(f facts) {
	f.addID("token", t.ID)
	f.add("profile", t.Profile)
	f.addTime("expires", t.ExpiresAt)
	f.addFlag("replace", t.Replace)
	f.addID("creator_serial", t.CreatorCertificate.Serial)
	f.add("pattern", t.Pattern)
	if t.Pattern != "" {
		f["kind"] = t.Kind.String()
	}
	for name, value := range t.Labels {
		f["label."+name] = value
	}
	var networks []string
	for _, n := range t.Networks {
		networks = append(networks, n.String())
	}
	f.add("networks", strings.Join(networks, " "))
	f.addID("required_key", t.RequiredKey)
}

func (t *BoundToken) facts(f facts) {
	f.addID("token", t.ID)
	f.addID("request", t.Request)
	f.addID("key", t.Key)
}

func (r *RevokedTokens) facts(f facts) {
	f.addID("token", r.ID)
	f.addNumber("tokens", int64(r.Usable))
	f.add("cause", r.Cause)
	f.add("comment", r.Comment)
}

func (p Part) facts(f facts) {
	if p.Of > 0 {
		f["part"] = strconv.Itoa(p.Number) + "/" + strconv.Itoa(p.Of)
	}
}

func (o *RequestedChange) facts(f facts) {
	f.add("reason", reasonText(o.Reason))
	f.addTime("invalid_since", o.InvalidSince)
	f.add("comment", o.Comment)
	f.addID("key", o.Key)
	if o.BulkRevocation != nil {
		f["bulk_revocation"] = strconv.FormatInt(o.BulkRevocation.ID, 10)
	}
	o.Part.facts(f)
}

// reasonText returns the name of a reason, and nothing for unspecified.
func reasonText(r pki.Reason) string {
	if r == pki.Unspecified {
		return ""
	}
	return r.String()
}

func (b *BulkRevocation) facts(f facts) {
	f["bulk_revocation"] = strconv.FormatInt(b.ID, 10)
	f.add("reason", reasonText(b.Reason))
	f.addTime("invalid_since", b.InvalidSince)
	f.add("comment", b.Comment)
	f.addSelection(b.Selection)
	f.addNumber("mark", b.Mark)
	f.addTime("reach", b.Reach)
}

func (f facts) addSelection(s pki.Selection) {
	f.addID("issuer", s.Issuer)
	f.addID("identity", s.Identity)
	f.addID("lineage_of", s.LineageOf.Serial)
	f.addID("key", s.Key)
	f.add("profile", s.Profile)
	if !s.Label.IsZero() {
		f["label"] = s.Label.Name + "=" + s.Label.Value
	}
	f.addTime("issued_from", s.IssuedFrom)
	f.addTime("issued_until", s.IssuedUntil)
}

func (s *BulkStep) facts(f facts) {
	f["bulk_revocation"] = strconv.FormatInt(s.ID, 10)
	if s.Counted {
		f["total"] = strconv.Itoa(s.Total)
	}
	f.addNumber("expired", int64(s.Expired))
	f.addNumber("applied", int64(s.Applied))
	f.addFlag("done", s.Done)
	s.Part.facts(f)
}

func (e *ExpiredRecords) facts(f facts) {
	f["certificates"], f["tokens"], f["keys"] = strconv.Itoa(e.Certificates), strconv.Itoa(e.Tokens), strconv.Itoa(e.Keys)
	f.addTime("not_after_to", e.Last.NotAfter)
}
