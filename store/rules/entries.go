package rules

import (
	"crypto/sha256"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/store/retention"
	"github.com/brevet-pki/brevet/translog"
)

// MaxChanges is how many changes an entry has at most. It keeps entries well below translog.MaxEntrySize.
const MaxChanges = 4096

// SplitEntry returns an entry with more than MaxChanges changes as several entries.
func SplitEntry(e translog.Entry) []translog.Entry {
	chunks := slices.Collect(slices.Chunk(e.Changes, MaxChanges))
	parts := make([]translog.Entry, len(chunks))
	for i, changes := range chunks {
		parts[i] = e
		parts[i].Changes = changes
		parts[i].Facts = map[string]string{"part": strconv.Itoa(i+1) + "/" + strconv.Itoa(len(chunks))}
		maps.Copy(parts[i].Facts, e.Facts)
	}
	return parts
}

// IssuedEntry records a certificate, and the one that it supersedes unless that is zero.
func IssuedEntry(r *ca.Record, at time.Time, superseded pki.StatusChange) translog.Entry {
	fingerprint := sha256.Sum256(r.DER)
	facts := map[string]string{"profile": r.Profile}
	if !r.RequestID.IsZero() {
		facts["request"] = r.RequestID.String()
	}
	if !r.Guard.Token.IsZero() {
		facts["token"] = r.Guard.Token.String()
	}
	if !r.Guard.Predecessor.IsZero() {
		facts["predecessor"] = r.Guard.Predecessor.Serial.String()
	}
	e := translog.Entry{
		Time: at, Actor: r.Actor, Action: translog.CertificateIssued, Outcome: translog.Done, Identity: r.Identity,
		Changes: []pki.StatusChange{{
			Ref: r.Ref, NotAfter: r.NotAfter, Status: pki.Status{State: pki.Good, Version: 1},
			Fingerprint: fingerprint[:],
		}},
		Facts: facts,
	}
	if !superseded.Ref.IsZero() {
		e.Changes = append(e.Changes, superseded)
	}
	return e
}

// AbandonedEntry records certificates that no request became.
func AbandonedEntry(at time.Time, changes []pki.StatusChange) translog.Entry {
	return translog.Entry{
		Time: at, Actor: issuerActor, Action: translog.CertificateAbandoned, Outcome: translog.Done,
		Changes: changes,
	}
}

// RefusedCertificateEntry records a certificate that its guard refused.
func RefusedCertificateEntry(
	r *ca.Record, why *pki.Refusal, at time.Time, changes []pki.StatusChange,
) translog.Entry {
	e := AbandonedEntry(at, changes)
	e.Actor, e.Identity, e.Facts = r.Actor, r.Identity, refusalFacts(why)
	return e
}

// DuplicateEntry records an abandoned certificate whose serial number is on record. The certificate on record is
// another one, and keeps its status.
func DuplicateEntry(item ca.IntentItem, at time.Time) translog.Entry {
	return translog.Entry{
		Time: at, Actor: issuerActor, Action: translog.CertificateAbandoned, Outcome: translog.Refused,
		Facts: map[string]string{
			"serial": item.Ref.Serial.String(), "issuer": item.Ref.Issuer.String(),
			"detail": "the serial number is on record already",
		},
	}
}

// RefusedEntry records a refusal.
func RefusedEntry(by pki.Actor, identity pki.SPIFFEID, why *pki.Refusal, at time.Time) translog.Entry {
	return translog.Entry{
		Time: at, Actor: by, Action: translog.RequestRefused, Outcome: translog.Refused, Identity: identity,
		Facts: refusalFacts(why),
	}
}

func refusalFacts(why *pki.Refusal) map[string]string {
	return map[string]string{"rule": string(why.Rule), "detail": why.Detail}
}

// RegisteredEntry records a new identity.
func RegisteredEntry(id ra.Identity, by pki.Actor) translog.Entry {
	return identityEntry(id, translog.IdentityRegistered, by, id.CreatedAt)
}

// UpdatedEntry records an identity's new profile, labels or names.
func UpdatedEntry(id ra.Identity, by pki.Actor, at time.Time) translog.Entry {
	return identityEntry(id, translog.IdentityUpdated, by, at)
}

func identityEntry(id ra.Identity, action translog.Action, by pki.Actor, at time.Time) translog.Entry {
	facts := map[string]string{"kind": id.Kind.String(), "profile": id.Profile}
	if len(id.DNSNames) > 0 {
		facts["dns_names"] = strings.Join(id.DNSNames, " ")
	}
	if len(id.IPAddresses) > 0 {
		var ips []string
		for _, ip := range id.IPAddresses {
			ips = append(ips, ip.String())
		}
		facts["ip_addresses"] = strings.Join(ips, " ")
	}
	return translog.Entry{Time: at, Actor: by, Action: action, Outcome: translog.Done, Identity: id.ID, Facts: facts}
}

// TokenCreatedEntry records a new token.
func TokenCreatedEntry(t *ra.Token) translog.Entry {
	facts := map[string]string{
		"token": t.ID.String(), "profile": t.Profile, "expires": t.ExpiresAt.UTC().Format(time.RFC3339),
	}
	if t.Replace {
		facts["replace"] = "true"
	}
	return translog.Entry{
		Time: t.CreatedAt, Actor: t.CreatedBy, Action: translog.TokenCreated, Outcome: translog.Done,
		Identity: t.Identity, Facts: facts,
	}
}

// TokenBoundEntry records what a token was bound to.
func TokenBoundEntry(t *ra.Token, at time.Time) translog.Entry {
	return translog.Entry{
		Time: at, Actor: pki.ActorToken(t.ID), Action: translog.TokenBound, Outcome: translog.Done,
		Identity: t.Identity,
		Facts:    map[string]string{"token": t.ID.String(), "request": t.Request.String(), "key": t.Key.String()},
	}
}

// TokenRevokedEntry records the revocation of one token.
func TokenRevokedEntry(v ra.TokenRevocation, t *ra.Token) translog.Entry {
	return tokensEntry(v, t.Identity, map[string]string{"token": t.ID.String()})
}

// TokensRevokedEntry records the revocation of all tokens of a maker, of which so many could have been used.
func TokensRevokedEntry(v ra.TokenRevocation, maker pki.SPIFFEID, cause string, usable int) translog.Entry {
	facts := map[string]string{"made_by": maker.String(), "tokens": strconv.Itoa(usable), "cause": cause}
	return tokensEntry(v, maker, facts)
}

func tokensEntry(v ra.TokenRevocation, id pki.SPIFFEID, facts map[string]string) translog.Entry {
	if v.Comment != "" {
		facts["comment"] = v.Comment
	}
	return translog.Entry{
		Time: v.At, Actor: v.By, Action: translog.TokenRevoked, Outcome: translog.Done, Identity: id,
		Facts: facts,
	}
}

// certificateActions are the log's actions for what orders do to certificates.
var certificateActions = map[revocation.Action]translog.Action{
	revocation.Revoke: translog.CertificateRevoked, revocation.Hold: translog.CertificateHeld,
	revocation.Unhold: translog.CertificateUnheld,
}

// CertificateEntry records an order about one certificate of an identity.
func CertificateEntry(o revocation.Change, id pki.SPIFFEID, out revocation.ChangeResult) translog.Entry {
	return orderEntry(o, certificateActions[o.Action], id, out)
}

// KeyEntry records an order about a key of an identity.
func KeyEntry(o revocation.Change, id pki.SPIFFEID, out revocation.ChangeResult) translog.Entry {
	e := orderEntry(o, translog.CertificateRevoked, id, out)
	e.Facts["key"] = o.Key.String()
	return e
}

// IdentityEntry records an order about an identity, by the action of [MoveIdentity].
func IdentityEntry(o revocation.Change, action translog.Action, out revocation.ChangeResult) translog.Entry {
	return orderEntry(o, action, o.Identity, out)
}

func orderEntry(o revocation.Change, action translog.Action, id pki.SPIFFEID, out revocation.ChangeResult) translog.Entry {
	e := translog.Entry{
		Time: o.At, Actor: o.Actor, Action: action, Outcome: translog.Done, Identity: id, Changes: out.Changed,
		Facts: orderFacts(o),
	}
	if out.BulkRevocation != 0 {
		e.Facts["set"] = strconv.FormatInt(out.BulkRevocation, 10)
	}
	return e
}

// orderFacts returns an order's reason, invalidity date and comment, as far as it has them.
func orderFacts(o revocation.Change) map[string]string {
	facts := map[string]string{}
	if o.Action == revocation.Revoke {
		facts["reason"] = o.Reason.String()
	}
	if !o.InvalidSince.IsZero() {
		facts["invalid_since"] = o.InvalidSince.UTC().Format(time.RFC3339)
	}
	if o.Comment != "" {
		facts["comment"] = o.Comment
	}
	return facts
}

// BulkEntry records a bulk revocation, and what it selects by.
func BulkEntry(s revocation.BulkRevocation) translog.Entry {
	facts := orderFacts(BulkOrder(s.BulkRequest))
	facts["set"] = strconv.FormatInt(s.ID, 10)
	for name, value := range map[string]string{
		"issuer": textOf(s.Issuer), "lineage_of": textOf(s.LineageOf.Serial), "key": textOf(s.Key),
		"profile":     s.Profile,
		"issued_from": timeText(s.IssuedFrom), "issued_until": timeText(s.IssuedUntil),
	} {
		if value != "" {
			facts[name] = value
		}
	}
	if !s.Label.IsZero() {
		facts["label"] = s.Label.Name + "=" + s.Label.Value
	}
	return translog.Entry{
		Time: s.At, Actor: s.Actor, Action: translog.BulkRevocationCreated, Outcome: translog.Done,
		Identity: s.Identity, Facts: facts,
	}
}

func textOf(v interface {
	IsZero() bool
	String() string
}) string {
	if v.IsZero() {
		return ""
	}
	return v.String()
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.999Z07:00")
}

// BulkStepEntry records a step of a bulk revocation: certificates whose records say now what it has ordered.
func BulkStepEntry(s revocation.BulkRevocation, at time.Time, identity pki.SPIFFEID, changes []pki.StatusChange) translog.Entry {
	e := translog.Entry{
		Time: at, Actor: s.Actor, Action: certificateActions[s.Action], Outcome: translog.Done, Identity: identity,
		Changes: changes,
		Facts:   map[string]string{"set": strconv.FormatInt(s.ID, 10)},
	}
	if s.Action == revocation.Revoke {
		e.Facts["reason"] = s.Reason.String()
	}
	return e
}

// CRLEntry records a CRL, with its partition unless it is the full one.
func CRLEntry(c crl.CRL, by pki.Actor, at time.Time) translog.Entry {
	facts := map[string]string{"issuer": c.Issuer.String(), "number": c.Number.String()}
	if c.Partition != 0 {
		facts["partition"] = strconv.Itoa(int(c.Partition))
	}
	if c.Delta {
		facts["base"] = c.Base.Number.String()
	}
	return translog.Entry{Time: at, Actor: by, Action: translog.CRLPublished, Outcome: translog.Done, Facts: facts}
}

// ExpiredEntry records which certificates were removed, by the range of their ends from the oldest on.
func ExpiredEntry(at, oldest time.Time, gone retention.Expired) translog.Entry {
	facts := map[string]string{
		"certificates": strconv.Itoa(gone.Certificates), "tokens": strconv.Itoa(gone.Tokens),
		"keys": strconv.Itoa(gone.Keys),
	}
	if gone.Certificates > 0 {
		facts["not_after_from"] = oldest.Format(time.RFC3339)
		facts["not_after_to"] = gone.Next.NotAfter.Format(time.RFC3339)
	}
	return translog.Entry{
		Time: at, Actor: retentionActor, Action: translog.RecordsExpired, Outcome: translog.Done, Facts: facts,
	}
}
