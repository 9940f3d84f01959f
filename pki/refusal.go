package pki

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Refusal is a typed no: which rule a request met, what about the request met it, and what would pass.
// A Refusal never carries a secret, and is safe to show to the caller it refuses.
type Refusal struct {
	Rule   Rule
	Detail string // what was found, in printable ASCII
	Hint   string // what would pass, or the next step
}

// maxDetail bounds what a refusal repeats of a request, in octets: it goes into answers and the log.
const maxDetail = 1024

// Refuse makes a Refusal. The detail is formatted as fmt.Sprintf does. What a caller has put into it cannot deceive who
// reads it: anything but printable ASCII is escaped, and too much of it cut off.
func Refuse(rule Rule, fix, detail string, args ...any) *Refusal {
	return &Refusal{Rule: rule, Detail: escape(fmt.Sprintf(detail, args...)), Hint: fix}
}

func escape(text string) string {
	isPlain := func(c rune) bool { return c >= 0x20 && c <= 0x7e }
	if len(text) <= maxDetail && !strings.ContainsFunc(text, func(c rune) bool { return !isPlain(c) }) {
		return text
	}
	var b strings.Builder
	for _, c := range text {
		if b.Len() >= maxDetail {
			b.WriteString("...")
			break
		}
		if isPlain(c) {
			b.WriteRune(c)
		} else {
			fmt.Fprintf(&b, `\u%04x`, c)
		}
	}
	return b.String()
}

// Error formats the refusal in one line: what was found, the next step, and the rule's name.
func (r *Refusal) Error() string {
	if r.Hint == "" {
		return fmt.Sprintf("%s [%s]", r.Detail, r.Rule)
	}
	return fmt.Sprintf("%s; %s [%s]", r.Detail, r.Hint, r.Rule)
}

// AsRefusal finds a Refusal in an error's chain.
func AsRefusal(err error) (*Refusal, bool) {
	var r *Refusal
	ok := errors.As(err, &r)
	return r, ok
}

// Rule names what a request was refused by. The names are part of the wire contract: they do not change.
type Rule string

// Class groups rules by what a caller can do about them; the server maps it to a gRPC status code.
type Class uint8

// The classes of rules.
const (
	InvalidArgument    Class = iota + 1 // the request itself is wrong: another one would pass
	Unauthenticated                     // the caller has not proved who it is
	PermissionDenied                    // the caller is known, and may not
	NotFound                            // what the request names does not exist
	FailedPrecondition                  // the state of things does not allow it now
	Aborted                             // what the caller read has changed since: read it again
	ResourceExhausted                   // the server has too much to do: later would pass
	Unimplemented                       // this server has no such call: another version may have it
)

// The rules, by what they are about.
const (
	RuleRequest            Rule = "request.malformed"           // a field is missing, too long or not of its form
	RuleSize               Rule = "request.size"                // the message is over the server's bound
	RuleMethod             Rule = "request.method"              // no such call
	RuleCSR                Rule = "csr.malformed"               // not a PKCS #10 request, trailing data, or too large
	RuleCSRSignature       Rule = "csr.signature"               // the proof of possession does not hold
	RuleCSRContent         Rule = "csr.content"                 // the CSR asks for what nobody granted
	RuleKeyType            Rule = "key.type"                    // the profile does not allow this kind or size of key
	RuleKeyWeak            Rule = "key.weak"                    // a key that nobody should use
	RuleKeyReserved        Rule = "key.reserved"                // the key of a CA
	RuleKeyInUse           Rule = "key.in_use"                  // certified for another identity already
	RuleKeyCompromised     Rule = "key.compromised"             // revoked for keyCompromise once: never again
	RuleKeyPossession      Rule = "key.possession"              // the signature does not prove that the caller holds the key
	RuleLifetime           Rule = "profile.lifetime"            // longer than the profile or the issuing CA allows
	RuleNames              Rule = "profile.names"               // a name that the profile does not allow
	RuleProfile            Rule = "profile.unknown"             // no such profile
	RuleLint               Rule = "profile.lint"                // the certificate would break a rule of RFC 5280
	RuleReserved           Rule = "identity.reserved"           // identities under /brevet/ are not for granting
	RuleTrustDomain        Rule = "identity.trust_domain"       // an identity of another trust domain
	RuleIdentity           Rule = "identity.unknown"            // no such identity
	RuleIdentityExists     Rule = "identity.exists"             // registered already, with other particulars
	RuleIdentityState      Rule = "identity.state"              // suspended, retired, or not yet enrolled
	RuleAlreadyEnrolled    Rule = "identity.already_enrolled"   // enrolled already; replacing needs to be said
	RuleIdentityRevision   Rule = "identity.revision"           // an update of a revision that is not the newest
	RuleIdentityStale      Rule = "identity.stale"              // the identity changed while the request was under way
	RuleEvidenceKind       Rule = "evidence.unsupported"        // evidence of a kind that this server does not accept
	RuleEvidenceMismatch   Rule = "evidence.mismatch"           // pieces of evidence that prove different identities
	RuleChallenge          Rule = "challenge.not_needed"        // evidence of this kind answers no challenge
	RuleToken              Rule = "token.invalid"               // unknown, expired or spent: which, only the log says
	RuleTokenBound         Rule = "token.bound"                 // bound to another request or key
	RuleTokenRevoked       Rule = "token.revoked"               // its maker is no longer trusted, or an operator revoked it
	RuleRenewalUnknown     Rule = "renewal.certificate_unknown" // the certificate to renew is not on record
	RuleCertificateUnknown Rule = "certificate.unknown"         // the caller's certificate is not on record
	RuleRevoked            Rule = "certificate.revoked"         // revoked, or on hold
	RuleExpired            Rule = "certificate.expired"         // not valid at this time
	RuleCertificate        Rule = "certificate.untrusted"       // not issued by this CA, or not for this use
	RuleRenewalKeyConflict Rule = "renewal.key_conflict"        // renewed before, with another key: two hold the credential
	RuleRenewalTooEarly    Rule = "renewal.too_early"           // before half of the predecessor's life, and there are many
	RuleMaxUnexpired       Rule = "identity.max_unexpired"      // as many unexpired certificates as the identity may have
	RuleRequestIDReused    Rule = "request_id.reused"           // the request ID was used for another key
	RuleUnauthenticated    Rule = "access.unauthenticated"      // the call needs a certificate
	RuleAccess             Rule = "access.denied"               // the caller's role may not call this
	RuleNotFound           Rule = "not_found"                   // no such record
	RuleAlreadyRevoked     Rule = "certificate.already_revoked" // revoked already, for a reason that does not change
	RuleReason             Rule = "revocation.reason"           // not a reason for this order
	RuleCRL                Rule = "crl.invalid"                 // not a CRL of this CA, or older than what is published
	RuleSubject            Rule = "ceremony.subject"            // not the name of a CA, or that of another generation
	RuleCAInUse            Rule = "ca.in_use"                   // a CA that issues, or that certificates are answered for by
	RuleParent             Rule = "ceremony.parent"             // the CA certificate cannot sign this, or the key is not its own
	RuleOverloaded         Rule = "server.overloaded"           // more work than the bounds allow
	RuleRateLimited        Rule = "server.rate_limited"         // the caller calls more often than it may
)

var classes = map[Rule]Class{
	RuleRequest: InvalidArgument, RuleSize: InvalidArgument, RuleCSR: InvalidArgument, RuleCSRSignature: InvalidArgument, RuleCSRContent: InvalidArgument,
	RuleKeyType: InvalidArgument, RuleKeyWeak: InvalidArgument, RuleLifetime: InvalidArgument, RuleNames: InvalidArgument,
	RuleProfile: InvalidArgument, RuleLint: InvalidArgument, RuleTrustDomain: InvalidArgument, RuleReason: InvalidArgument, RuleCRL: InvalidArgument,
	RuleSubject: InvalidArgument, RuleParent: InvalidArgument, RuleEvidenceKind: InvalidArgument, RuleChallenge: InvalidArgument,
	RuleUnauthenticated: Unauthenticated, RuleToken: Unauthenticated, RuleTokenRevoked: Unauthenticated, RuleCertificate: Unauthenticated, RuleCertificateUnknown: Unauthenticated, RuleEvidenceMismatch: Unauthenticated, RuleExpired: Unauthenticated, RuleKeyPossession: Unauthenticated,
	RuleKeyReserved: PermissionDenied, RuleKeyInUse: PermissionDenied, RuleKeyCompromised: PermissionDenied, RuleReserved: PermissionDenied,
	RuleTokenBound: PermissionDenied, RuleRevoked: PermissionDenied, RuleRenewalKeyConflict: PermissionDenied, RuleAccess: PermissionDenied,
	RuleIdentity: NotFound, RuleRenewalUnknown: NotFound, RuleNotFound: NotFound,
	RuleIdentityExists: FailedPrecondition, RuleIdentityState: FailedPrecondition, RuleAlreadyEnrolled: FailedPrecondition,
	RuleIdentityStale: FailedPrecondition, RuleRequestIDReused: FailedPrecondition, RuleAlreadyRevoked: FailedPrecondition, RuleCAInUse: FailedPrecondition,
	RuleIdentityRevision: Aborted,
	RuleOverloaded:       ResourceExhausted, RuleRateLimited: ResourceExhausted, RuleRenewalTooEarly: ResourceExhausted, RuleMaxUnexpired: ResourceExhausted, RuleMethod: Unimplemented,
}

// Rules returns all rules, in the order of their names.
func Rules() []Rule { return slices.Sorted(maps.Keys(classes)) }

// Class returns the class of a rule; a rule that is not one of this package's is Malformed.
func (r Rule) Class() Class {
	if c, ok := classes[r]; ok {
		return c
	}
	return InvalidArgument
}

// IsTemporary reports whether an error says of itself that the same call may succeed later.
// Packages agree on the method, not on a type, so that an error crosses them without an import.
func IsTemporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

// RetryAfter returns how long an error asks its caller to wait before the next try, or zero.
func RetryAfter(err error) time.Duration {
	var t interface{ RetryAfter() time.Duration }
	if errors.As(err, &t) {
		return t.RetryAfter()
	}
	return 0
}
