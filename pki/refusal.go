package pki

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Refusal is an error that rejects a request. It names the rule that the request violates, says what was found, and
// what would be accepted. A Refusal contains no secret and is safe to show to the caller.
type Refusal struct {
	Rule   Rule
	Detail string // what was found, in printable ASCII
	Hint   string // what would be accepted, or the next step
}

// maxDetail bounds the text of a request that a refusal repeats, in bytes: the text goes into responses and the log.
const maxDetail = 1024

// Refuse returns a Refusal whose detail is formatted as by [fmt.Sprintf]. Since the detail may contain text from the
// request, Refuse escapes all characters except printable ASCII and truncates a long text.
func Refuse(rule Rule, hint, detail string, args ...any) *Refusal {
	return &Refusal{Rule: rule, Detail: escape(fmt.Sprintf(detail, args...)), Hint: hint}
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

// AsRefusal returns the Refusal in an error's chain, if there is one.
func AsRefusal(err error) (*Refusal, bool) {
	var r *Refusal
	ok := errors.As(err, &r)
	return r, ok
}

// Rule is the name of a reason for refusal. The names are part of the wire contract and do not change.
type Rule string

// Class groups rules by what a caller can do about them. The server maps each class to a gRPC status code.
type Class uint8

// The classes of rules.
const (
	InvalidArgument    Class = iota + 1 // the request itself is wrong: a corrected one would pass
	Unauthenticated                     // the caller did not prove its identity
	PermissionDenied                    // the caller is known, and is not allowed to do this
	NotFound                            // the request names something that does not exist
	FailedPrecondition                  // the current state does not allow it
	Aborted                             // what the caller read has changed: the caller must read it again
	ResourceExhausted                   // the server is overloaded, or a limit is reached: a later retry may pass
	Unimplemented                       // this server does not have the RPC: another version may have it
)

// The rules, grouped by subject.
const (
	RuleRequest            Rule = "request.malformed"           // a field is missing, too long or malformed
	RuleSize               Rule = "request.size"                // the message exceeds the server's limit
	RuleMethod             Rule = "request.method"              // no such RPC
	RuleCSR                Rule = "csr.malformed"               // not a PKCS #10 request, trailing data, or too large
	RuleCSRSignature       Rule = "csr.signature"               // the proof of possession does not verify
	RuleCSRContent         Rule = "csr.content"                 // the CSR requests something that was not granted
	RuleKeyType            Rule = "key.type"                    // the profile does not allow this kind or size of key
	RuleKeyWeak            Rule = "key.weak"                    // a key that is known to be weak
	RuleKeyReserved        Rule = "key.reserved"                // the key of a CA
	RuleKeyInUse           Rule = "key.in_use"                  // the key is certified for another identity
	RuleKeyCompromised     Rule = "key.compromised"             // the key was revoked for keyCompromise, which is final
	RuleKeyPossession      Rule = "key.possession"              // the signature does not prove that the caller holds the key
	RuleLifetime           Rule = "profile.lifetime"            // longer than the profile or the issuing CA allows
	RuleNames              Rule = "profile.names"               // a name that the profile does not allow
	RuleProfile            Rule = "profile.unknown"             // no such profile
	RuleLint               Rule = "profile.lint"                // the certificate would break a rule of RFC 5280
	RuleReserved           Rule = "identity.reserved"           // identities under /brevet/ cannot be granted
	RuleTrustDomain        Rule = "identity.trust_domain"       // an identity of another trust domain
	RuleIdentity           Rule = "identity.unknown"            // no such identity
	RuleIdentityExists     Rule = "identity.exists"             // registered already, with other attributes
	RuleIdentityState      Rule = "identity.state"              // suspended, retired, or not yet enrolled
	RuleAlreadyEnrolled    Rule = "identity.already_enrolled"   // enrolled already; replacing must be requested explicitly
	RuleIdentityRevision   Rule = "identity.revision"           // an update of a revision that is not the newest
	RuleIdentityStale      Rule = "identity.stale"              // the identity changed during the request
	RuleEvidenceKind       Rule = "evidence.unsupported"        // evidence of a kind that this server does not accept
	RuleEvidenceMismatch   Rule = "evidence.mismatch"           // pieces of evidence that prove different identities
	RuleChallenge          Rule = "challenge.not_needed"        // evidence of this kind uses no challenge
	RuleToken              Rule = "token.invalid"               // unknown, expired or used; only the log says which
	RuleTokenBound         Rule = "token.bound"                 // bound to another request or key
	RuleTokenRevoked       Rule = "token.revoked"               // its creator is no longer trusted, or an operator revoked it
	RuleRenewalUnknown     Rule = "renewal.certificate_unknown" // the certificate to renew is not on record
	RuleCertificateUnknown Rule = "certificate.unknown"         // the caller's certificate is not on record
	RuleRevoked            Rule = "certificate.revoked"         // revoked, or on hold
	RuleExpired            Rule = "certificate.expired"         // not valid at this time
	RuleCertificate        Rule = "certificate.untrusted"       // not issued by this CA, or not for this use
	RuleRenewalKeyConflict Rule = "renewal.key_conflict"        // renewed before, with another key: two parties hold it
	RuleRenewalTooEarly    Rule = "renewal.too_early"           // before half of the predecessor's lifetime, too often
	RuleMaxUnexpired       Rule = "identity.max_unexpired"      // the identity has the maximum of unexpired certificates
	RuleRequestIDReused    Rule = "request_id.reused"           // the request ID was used for something else
	RuleUnauthenticated    Rule = "access.unauthenticated"      // the RPC needs a client certificate
	RuleAccess             Rule = "access.denied"               // the caller's role may not call this RPC
	RuleLogEpoch           Rule = "log.epoch_changed"           // a position of another log, such as the one before a restore
	RuleNotFound           Rule = "not_found"                   // no such record
	RuleAlreadyRevoked     Rule = "certificate.already_revoked" // revoked already, for a reason that does not change
	RuleReason             Rule = "revocation.reason"           // a reason that this change cannot have
	RuleCRL                Rule = "crl.invalid"                 // not a CRL of this CA, or older than the published one
	RuleSubject            Rule = "ceremony.subject"            // not a CA's name, or the name of another generation
	RuleCAInUse            Rule = "ca.in_use"                   // a CA that issues, or that has unexpired certificates
	RuleParent             Rule = "ceremony.parent"             // the CA certificate cannot sign this, or has another key
	RuleOverloaded         Rule = "server.overloaded"           // more work than the limits allow
	RuleRateLimited        Rule = "server.rate_limited"         // the caller exceeds its rate
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
	RuleIdentityStale: FailedPrecondition, RuleLogEpoch: FailedPrecondition, RuleRequestIDReused: FailedPrecondition, RuleAlreadyRevoked: FailedPrecondition, RuleCAInUse: FailedPrecondition,
	RuleIdentityRevision: Aborted,
	RuleOverloaded:       ResourceExhausted, RuleRateLimited: ResourceExhausted, RuleRenewalTooEarly: ResourceExhausted, RuleMaxUnexpired: ResourceExhausted, RuleMethod: Unimplemented,
}

// Rules returns all rules, in the order of their names.
func Rules() []Rule { return slices.Sorted(maps.Keys(classes)) }

// Class returns the class of a rule. The class of an unknown rule is InvalidArgument.
func (r Rule) Class() Class {
	if c, ok := classes[r]; ok {
		return c
	}
	return InvalidArgument
}

// IsTemporary reports whether the same request may succeed later, according to the error's method Temporary. Packages
// agree on the method and not on a type, so that no package imports another for its errors.
func IsTemporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

// RetryAfter returns how long the error asks the caller to wait before a retry, or zero.
func RetryAfter(err error) time.Duration {
	var t interface{ RetryAfter() time.Duration }
	if errors.As(err, &t) {
		return t.RetryAfter()
	}
	return 0
}
