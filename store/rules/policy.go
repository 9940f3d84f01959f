package rules

import (
	"crypto/sha256"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/translog"
)

// CheckPolicy refuses a policy that no store records: its document is empty or too large, or its comment is not valid.
func CheckPolicy(c ra.PolicyChange) error {
	if n := len(c.Document); n == 0 || n > ra.MaxPolicy {
		return pki.Refuse(pki.RulePolicyInvalid, "apply a document of 1 byte to 1 MiB", "the document has %d bytes", n)
	}
	return pki.CheckText("the comment", c.Comment)
}

// NextPolicy returns the revision that c creates after the newest one, which is zero if there is none. If the newest
// one has the same document, NextPolicy returns it and false.
func NextPolicy(newest ra.PolicyRevision, c ra.PolicyChange) (ra.PolicyRevision, bool, error) {
	sum := sha256.Sum256(c.Document)
	if newest.Revision > 0 && newest.SHA256 == sum {
		return newest, false, nil
	}
	if c.Based != newest.Revision {
		return ra.PolicyRevision{}, false, pki.Refuse(pki.RulePolicyRevision,
			"read the newest revision (brevet policy show), repeat your change in it, and apply the result",
			"the new policy is based on revision %d, and the newest one is %d", c.Based, newest.Revision)
	}
	return ra.PolicyRevision{
		Revision: newest.Revision + 1, SHA256: sum, AppliedBy: c.By.Named(),
		AppliedAt: c.At.Truncate(time.Millisecond).UTC(), Comment: c.Comment,
	}, true, nil
}

// NextPolicies returns the revision after which the page that follows starts, and 0 if page is the last one.
func NextPolicies(page []ra.PolicyRevision, limit int) uint64 {
	if len(page) < limit || page[len(page)-1].Revision == 1 {
		return 0
	}
	return page[len(page)-1].Revision
}

// NoPolicy returns the refusal of a revision of the policy that is not on record. Revision 0 is the newest one.
func NoPolicy(revision uint64) *pki.Refusal {
	if revision == 0 {
		return pki.Refuse(pki.RuleNotFound, "apply one (brevet policy apply)", "no policy is on record")
	}
	return pki.Refuse(pki.RuleNotFound, "see which there are (brevet policy list)",
		"the policy has no revision %d", revision)
}

// NoPolicyDocument returns the refusal of a revision of the policy that was restored from the log, which has no
// documents.
func NoPolicyDocument(revision uint64) *pki.Refusal {
	return pki.Refuse(pki.RuleNotFound, "apply the document again (brevet policy apply)",
		"the store was restored from the log, which does not have the document of revision %d of the policy", revision)
}

// PolicyEntry returns the entry of a new revision of the policy.
func PolicyEntry(p ra.PolicyRevision, by pki.Actor) translog.Entry {
	return translog.Entry{
		Time: p.AppliedAt, Actor: by, Action: translog.PolicyApplied, Outcome: translog.Done,
		Event: &translog.AppliedPolicy{Revision: p.Revision, Digest: p.SHA256, Comment: p.Comment},
	}
}
