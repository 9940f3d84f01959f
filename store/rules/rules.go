// Package rules holds the domain's rules about records: what a certificate's guard asks, how the states of
// certificates, identities and tokens follow each other, what a bulk revocation does to its members, and how the log
// records each change. Every store engine applies them in its own transactions, so that each rule stands once.
//
// The functions are pure: they take values and return the next state, the log entry, or a *pki.Refusal. They know no
// clock, no SQL and no transaction. What an engine must read for a rule is the type that the rule takes, such as
// [Issuance] or [Certificate]. A selection of very many certificates is a statement of the engine; [BulkMembers] is its
// meaning for those of one identity.
//
// [Replay] is the other direction: it turns log entries into the writes that make the records again.
package rules

import (
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// The parts of the system that change records on their own schedule.
var (
	issuerActor    = pki.ActorSystem("issuer")     // abandons certificates that no request became
	retentionActor = pki.ActorSystem("retention")  // removes expired records
	crlActor       = pki.ActorSystem("crl")        // takes CRL numbers and records distribution points
	bulkActor      = pki.ActorSystem("revocation") // counts the members of bulk revocations
)

// Earlier returns the earlier of two times.
func Earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// NextAge returns the age of the records after time has passed. It never goes back, and never past the clock.
func NextAge(age time.Time, passed time.Duration, now time.Time) time.Time {
	if !now.After(age) {
		return age
	}
	return Earlier(age.Add(passed), now)
}

// CheckLimit refuses an empty page.
func CheckLimit(limit int) error {
	if limit < 1 {
		return pki.Refuse(pki.RuleRequest, "ask for at least one", "a page of %d", limit)
	}
	return nil
}

// NoIdentity returns the refusal of an identity that is not registered.
func NoIdentity(id pki.SPIFFEID) *pki.Refusal {
	return pki.Refuse(pki.RuleIdentity, "register it first (brevet identity create)", "there is no identity %s", id)
}

// NoPredecessor returns the refusal of a renewal of a certificate that was not issued to the identity.
func NoPredecessor(ref pki.CertRef) *pki.Refusal {
	return pki.Refuse(pki.RuleRenewalUnknown, "enroll with a new token",
		"the certificate to renew, %s, is not on record", ref.Serial)
}

// NoCertificate returns the refusal of a certificate that is not on record.
func NoCertificate(serial pki.Serial) *pki.Refusal {
	return pki.Refuse(pki.RuleNotFound, "look for it with brevet cert list",
		"there is no certificate %s on record", serial)
}

// NeverDelivered returns the refusal of the lineage of a certificate that was never delivered.
func NeverDelivered(serial pki.Serial) *pki.Refusal {
	return pki.Refuse(pki.RuleNotFound, "name one that was delivered", "certificate %s was never delivered", serial)
}

// LongLineage returns the refusal of a lineage that is among more certificates of its identity than one read or one
// transaction walks through.
func LongLineage(serial pki.Serial) *pki.Refusal {
	return pki.Refuse(pki.RuleOverloaded, "select by the identity and the time of issue instead",
		"the identity of certificate %s has too many certificates to find its renewals", serial)
}

// NoIssuer returns the refusal of a CA that issued no certificate on record.
func NoIssuer(id pki.IssuerID) *pki.Refusal {
	return pki.Refuse(pki.RuleNotFound, "see which there are with brevet crl list --output json",
		"no certificate of the issuer %s is on record", id)
}

// NoKey returns the refusal of a key that was not certified.
func NoKey(key pki.KeyHash) *pki.Refusal {
	return pki.Refuse(pki.RuleNotFound,
		"look at which CA has certified it, and when: records of expired certificates are removed",
		"no certificate of the key %s is on record", key)
}

// NoToken returns the refusal of a token that is not on record.
func NoToken(id pki.TokenID) *pki.Refusal {
	return pki.Refuse(pki.RuleNotFound, "make a new token (brevet token create)", "there is no token %s", id)
}
