// Package rules implements the rules about records that all store engines share:
//   - the conditions of a certificate's guard
//   - the transitions between the states of certificates, identities and tokens
//   - the effect of a bulk revocation on its members
//   - the log entry of each change
//
// A store engine calls them in its own transactions. The functions are pure. They take values, and return the next state,
// the log entry, or a [*pki.Refusal]. They use no clock, no SQL and no transaction. The parameter of a rule, such as
// [Issuance] or [Certificate], holds the data that the engine must read for it.
//
// An engine may select the members of a large bulk revocation with a database query. Its result must equal that of
// [BulkMembers], which is defined for the certificates of one identity.
//
// [Replay] is the inverse of logging: it turns log entries into the writes that restore the records.
package rules

import (
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Actors of the parts of Brevet that change records on their own schedule.
var (
	issuerActor    = pki.ActorSystem("issuer")     // records abandoned certificates
	retentionActor = pki.ActorSystem("retention")  // removes expired records
	crlActor       = pki.ActorSystem("crl")        // allocates CRL numbers and records distribution points
	bulkActor      = pki.ActorSystem("revocation") // counts the members of bulk revocations
)

// Earlier returns the earlier of two times.
func Earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// NextAge returns the age of the records, as a time, after the duration passed. It is never earlier than age. It is later
// than now only if age already is.
func NextAge(age time.Time, passed time.Duration, now time.Time) time.Time {
	if !now.After(age) {
		return age
	}
	return Earlier(age.Add(passed), now)
}

// CheckLimit refuses a page size below 1.
func CheckLimit(limit int) error {
	if limit < 1 {
		return pki.Refuse(pki.RuleRequest, "request at least one", "the page size is %d", limit)
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

// NoIssuer returns the refusal of a request that names a CA of which no certificate is recorded.
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
