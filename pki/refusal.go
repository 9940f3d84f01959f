package pki

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Refusal is the error about a refused request. It says which rule the request violates, what was found, and what would
// be accepted. It contains no secret, so that the caller may see it.
type Refusal struct {
	Rule   Rule
	Detail string // what was found, in printable ASCII
	Hint   string // what would be accepted, or the next step
}

// maxDetail is the maximum length of Detail in bytes. Detail may repeat text from the request, and is part of responses
// and the log.
const maxDetail = 1024

// Refuse returns a Refusal whose detail is formatted like by [fmt.Sprintf]. The detail may contain text from the
// request. Refuse therefore escapes all characters except printable ASCII, and truncates a long text.
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

// Error formats the refusal in one line: what was found, the next step, and the name of the rule.
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

// Rule is the name of a reason to refuse a request. Clients may depend on the names, so they do not change.
type Rule string

// Class groups rules by how a caller can react. The server maps each class to a gRPC status code.
type Class uint8

// The classes of rules.
const (
	InvalidArgument    Class = iota + 1 // the request is wrong, and a corrected request would be accepted
	Unauthenticated                     // the caller has not proved its identity
	PermissionDenied                    // the caller is known, but is not allowed to do this
	NotFound                            // the request refers to something that does not exist
	FailedPrecondition                  // the current state does not allow the request
	Aborted                             // something that the caller read has changed, and the caller must read it again
	ResourceExhausted                   // the server is overloaded or a limit is reached, and a later retry may succeed
	Unavailable                         // this server cannot decide now, and another server or a later retry may succeed
	Unimplemented                       // this server does not have the RPC, but another version may have it
)

// The rules, grouped by subject.
const (
	RuleRequest            Rule = "request.malformed"           // a field is missing, too long or malformed
	RuleSize               Rule = "request.size"                // the message is larger than the server's limit
	RuleMethod             Rule = "request.method"              // there is no such RPC
	RuleTLSVersion         Rule = "connection.tls_version"      // the connection has an older version of TLS than the door accepts
	RuleCSR                Rule = "csr.malformed"               // the CSR is malformed, has trailing data, or is too large
	RuleCSRSignature       Rule = "csr.signature"               // the signature of the CSR does not verify
	RuleCSRContent         Rule = "csr.content"                 // the CSR requests something that was not granted
	RuleKeyType            Rule = "key.type"                    // the profile does not allow keys of this type or size
	RuleKeyWeak            Rule = "key.weak"                    // the key is known to be weak
	RuleKeyReserved        Rule = "key.reserved"                // the key is the key of a CA
	RuleKeyInUse           Rule = "key.in_use"                  // the key is certified for another identity
	RuleKeyCompromised     Rule = "key.compromised"             // the key was revoked for keyCompromise
	RuleKeyPossession      Rule = "key.possession"              // the signature does not prove that the caller holds the key
	RuleLifetime           Rule = "profile.lifetime"            // the lifetime exceeds that of the profile or the issuing CA
	RuleNames              Rule = "profile.names"               // the profile does not allow a name
	RuleProfile            Rule = "profile.unknown"             // there is no such profile
	RuleLint               Rule = "profile.lint"                // the certificate would break a rule of RFC 5280
	RuleReserved           Rule = "identity.reserved"           // identities under /brevet/ cannot be granted
	RuleTrustDomain        Rule = "identity.trust_domain"       // the identity is in another trust domain
	RuleIdentity           Rule = "identity.unknown"            // there is no such identity
	RuleIdentityExists     Rule = "identity.exists"             // the identity is registered with other attributes
	RuleIdentityState      Rule = "identity.state"              // the identity is suspended, retired or not yet enrolled
	RuleAlreadyEnrolled    Rule = "identity.already_enrolled"   // the identity is enrolled; replacing was not requested
	RuleIdentityRevision   Rule = "identity.revision"           // the update is for a revision that is not the newest
	RuleIdentityStale      Rule = "identity.stale"              // the identity changed during the request
	RuleEvidenceKind       Rule = "evidence.unsupported"        // this server does not accept this kind of evidence
	RuleEvidenceConflict   Rule = "identity.evidence_conflict"  // the identity is tied to evidence of another device
	RulePolicy             Rule = "policy.no_rule"              // no rule of the policy matches the evidence
	RulePolicyInvalid      Rule = "policy.invalid"              // the document of a policy has faults
	RulePolicyLimit        Rule = "policy.limit"                // a rule of the policy has reached its rate or total
	RuleHardwareKey        Rule = "key.hardware"                // the rule requires a key in hardware
	RuleEvidenceMismatch   Rule = "evidence.mismatch"           // the pieces of evidence are for different identities
	RuleChallenge          Rule = "challenge.not_needed"        // this kind of evidence needs no challenge
	RuleChallengeExpired   Rule = "challenge.expired"           // the challenge has expired
	RuleChallengeUsed      Rule = "challenge.used"              // the challenge was used before
	RulePolicyRevision     Rule = "policy.revision"             // the policy is based on a revision that is not the newest
	RuleChallengeInvalid   Rule = "challenge.invalid"           // the challenge is not from this CA, or for something else
	RuleEvidenceMalformed  Rule = "evidence.malformed"          // the evidence is not in the format of its kind
	RuleEvidenceSize       Rule = "evidence.size"               // a part of the evidence is too large, or has too many parts
	RuleEvidenceExpired    Rule = "evidence.expired"            // the evidence is no longer valid
	RuleEvidenceNotYet     Rule = "evidence.not_yet_valid"      // the evidence is not valid yet
	RuleEvidenceUntrusted  Rule = "evidence.untrusted"          // no configured source vouches for the evidence
	RuleEvidenceRevoked    Rule = "evidence.revoked"            // the source of the evidence has revoked it
	RuleEvidenceAlgorithm  Rule = "evidence.algorithm"          // a key or signature in the evidence has an unsupported algorithm
	RuleEvidenceSignature  Rule = "evidence.signature"          // a signature in the evidence does not verify
	RuleEvidenceKey        Rule = "evidence.key"                // the evidence is for another key or request
	RuleEvidenceAudience   Rule = "evidence.audience"           // the evidence is for another service
	RuleToken              Rule = "token.invalid"               // the token is unknown, expired or used; the log says which
	RuleTokenBound         Rule = "token.bound"                 // the token is bound to another request or key
	RuleTokenRevoked       Rule = "token.revoked"               // the token was revoked, or its creator is no longer trusted
	RuleTokenIdentity      Rule = "token.identity"              // the token cannot enroll the identity that the request names
	RuleTokenKey           Rule = "token.key"                   // the token is for another key
	RuleTokenNetwork       Rule = "token.network"               // the token cannot be used from this address
	RuleRenewalUnknown     Rule = "renewal.certificate_unknown" // the certificate to renew is not on record
	RuleCertificateUnknown Rule = "certificate.unknown"         // the caller's certificate is not on record
	RuleRevoked            Rule = "certificate.revoked"         // the certificate is revoked or on hold
	RuleExpired            Rule = "certificate.expired"         // the certificate is not valid at this time
	RuleCertificate        Rule = "certificate.untrusted"       // the certificate is not from this CA, or not for this use
	RuleRenewalKeyConflict Rule = "renewal.key_conflict"        // the certificate was renewed before with another key
	RuleRecoveryNewest     Rule = "recovery.not_newest"         // the certificate is not the newest one of its identity
	RuleRecoveryValid      Rule = "recovery.not_expired"        // the identity has a certificate that is still valid
	RuleRecoveryGrace      Rule = "recovery.too_late"           // the certificate expired too long ago
	RuleRecoveryLimit      Rule = "recovery.limit"              // the identity has recovered too often in a row
	RuleRenewalTooEarly    Rule = "renewal.too_early"           // an early renewal with the maximum of unexpired certificates
	RuleMaxUnexpired       Rule = "identity.max_unexpired"      // the identity has the maximum of unexpired certificates
	RuleRenewalDoor        Rule = "renewal.protocol"            // the profile does not allow renewals by this protocol
	RuleLabel              Rule = "est.label_unknown"           // the policy has no such label
	RuleLinking            Rule = "est.linking"                 // the CSR is not linked to this TLS connection
	RuleESTBody            Rule = "est.body"                    // the body of the request is not a CSR in base64
	RuleESTOperation       Rule = "est.operation_unsupported"   // the server does not offer this operation of EST
	RuleRequestIDReused    Rule = "request_id.reused"           // the request ID was used for another request
	RuleUnauthenticated    Rule = "access.unauthenticated"      // the RPC needs a client certificate
	RuleAccess             Rule = "access.denied"               // the roles or the kind of the identity do not permit this
	RuleAccessLabel        Rule = "access.label"                // the identity lacks a label of the registrar
	RuleAccessSelf         Rule = "access.self"                 // an admin cannot stop being one by itself
	RuleLogEpoch           Rule = "log.epoch_changed"           // the position is in another log, such as before a restore
	RuleNotFound           Rule = "not_found"                   // there is no such record
	RuleAlreadyRevoked     Rule = "certificate.already_revoked" // the certificate is revoked for a reason that cannot change
	RuleReason             Rule = "revocation.reason"           // the change does not allow this reason
	RuleCRL                Rule = "crl.invalid"                 // the CRL is not from this CA, or older than the published one
	RuleSubject            Rule = "ceremony.subject"            // the subject is not a CA's, or that of another generation
	RuleUnconfirmed        Rule = "rotation.unconfirmed"        // the rotation of so many certificates needs a confirmation
	RuleCAInUse            Rule = "ca.in_use"                   // the CA issues certificates, or has unexpired ones
	RuleParent             Rule = "ceremony.parent"             // the CA certificate cannot sign this, or has another key
	RuleOverloaded         Rule = "server.overloaded"           // there is more work than the limits allow
	RuleRateLimited        Rule = "server.rate_limited"         // the caller exceeds its rate limit
	RuleStale              Rule = "server.stale"                // the server does not know the newest changes of the others
)

// The rules of ACME accounts, orders and authorizations.
const (
	RuleACMEOff              Rule = "acme.off"                    // the policy does not enable ACME
	RuleACMEAccount          Rule = "acme.account_unknown"        // there is no such account
	RuleACMEAccountStatus    Rule = "acme.account_status"         // the account was deactivated or revoked
	RuleACMEAccountKey       Rule = "acme.account_key"            // the key is that of another account
	RuleACMEContact          Rule = "acme.contact"                // a contact of an account is not valid
	RuleACMEBindingRequired  Rule = "acme.binding_required"       // an account needs an external account binding
	RuleACMEBinding          Rule = "acme.binding"                // the external account binding is not valid, or was used
	RuleACMEIdentifier       Rule = "acme.identifier_rejected"    // a name cannot be in a certificate of the account
	RuleACMEIdentifierType   Rule = "acme.identifier_unsupported" // an identifier is neither a DNS name nor an IP address
	RuleACMEProfile          Rule = "acme.profile"                // the account may not have certificates of the profile
	RuleACMEOrder            Rule = "acme.order_unknown"          // the account has no such order
	RuleACMEOrderNotReady    Rule = "acme.order_not_ready"        // the order is pending, invalid or expired
	RuleACMEOrders           Rule = "acme.too_many_orders"        // the account has too many orders without a certificate
	RuleACMEReplaced         Rule = "acme.already_replaced"       // another order replaces the certificate
	RuleACMEReplaces         Rule = "acme.replaces"               // the order cannot replace the certificate
	RuleACMEAuthorization    Rule = "acme.authorization_unknown"  // the account has no such authorization or challenge
	RuleACMEAuthorized       Rule = "acme.authorization_status"   // the authorization is not pending any more
	RuleACMERevocation       Rule = "acme.revocation"             // the account or key may not revoke the certificate
	RuleACMEValidationDNS    Rule = "acme.validation_dns"         // the DNS does not answer, or has no address
	RuleACMEValidationHost   Rule = "acme.validation_address"     // the name has only addresses that are not allowed
	RuleACMEValidationDial   Rule = "acme.validation_connection"  // the host cannot be reached, or does not answer in time
	RuleACMEValidationTLS    Rule = "acme.validation_tls"         // the TLS handshake of a challenge failed
	RuleACMEValidationAnswer Rule = "acme.validation_response"    // the answer to a challenge is not the expected one
)

// The rules of signed ACME requests.
const (
	RuleACMEJWS         Rule = "acme.jws_malformed"       // the request is not a JWS of the form in RFC 8555
	RuleACMENonce       Rule = "acme.bad_nonce"           // the nonce is missing, unknown, expired or used
	RuleACMEAlgorithm   Rule = "acme.signature_algorithm" // the algorithm of the JWS is not accepted
	RuleACMEPublicKey   Rule = "acme.bad_public_key"      // the key in the JWS is not accepted
	RuleACMEURL         Rule = "acme.url_mismatch"        // the JWS was signed for another URL
	RuleACMEContentType Rule = "acme.content_type"        // the request is not declared as a JWS
)

var classes = map[Rule]Class{
	RuleRequest: InvalidArgument, RuleSize: InvalidArgument, RuleCSR: InvalidArgument,
	RuleCSRSignature: InvalidArgument, RuleCSRContent: InvalidArgument, RuleKeyType: InvalidArgument,
	RuleKeyWeak: InvalidArgument, RuleLifetime: InvalidArgument, RuleNames: InvalidArgument,
	RuleProfile: InvalidArgument, RuleLint: InvalidArgument, RuleTrustDomain: InvalidArgument,
	RuleESTBody: InvalidArgument, RuleReason: InvalidArgument, RuleCRL: InvalidArgument, RuleSubject: InvalidArgument, RuleParent: InvalidArgument,
	RulePolicyInvalid: InvalidArgument, RuleEvidenceKind: InvalidArgument, RuleChallenge: InvalidArgument,
	RuleEvidenceMalformed: InvalidArgument, RuleEvidenceSize: InvalidArgument,
	RuleUnauthenticated: Unauthenticated, RuleToken: Unauthenticated, RuleTokenRevoked: Unauthenticated,
	RuleCertificate: Unauthenticated, RuleCertificateUnknown: Unauthenticated, RuleEvidenceMismatch: Unauthenticated,
	RuleExpired: Unauthenticated, RuleKeyPossession: Unauthenticated, RuleChallengeInvalid: Unauthenticated,
	RuleChallengeExpired: Unauthenticated, RuleEvidenceExpired: Unauthenticated, RuleEvidenceNotYet: Unauthenticated,
	RuleEvidenceUntrusted: Unauthenticated, RuleEvidenceRevoked: Unauthenticated, RuleEvidenceAudience: Unauthenticated,
	RuleEvidenceAlgorithm: Unauthenticated, RuleEvidenceSignature: Unauthenticated, RuleEvidenceKey: Unauthenticated,
	RuleKeyReserved: PermissionDenied, RuleKeyInUse: PermissionDenied, RuleKeyCompromised: PermissionDenied,
	RuleReserved: PermissionDenied, RuleEvidenceConflict: PermissionDenied, RulePolicy: PermissionDenied,
	RuleHardwareKey: PermissionDenied, RuleTokenBound: PermissionDenied, RuleRevoked: PermissionDenied,
	RuleRenewalKeyConflict: PermissionDenied, RuleRenewalDoor: PermissionDenied, RuleLinking: PermissionDenied,
	RuleRecoveryNewest: PermissionDenied, RuleAccess: PermissionDenied, RuleChallengeUsed: PermissionDenied,
	RuleAccessLabel: PermissionDenied, RuleAccessSelf: PermissionDenied,
	RuleTLSVersion: PermissionDenied, RuleTokenIdentity: PermissionDenied, RuleTokenKey: PermissionDenied, RuleTokenNetwork: PermissionDenied,
	RuleLabel: NotFound, RuleIdentity: NotFound, RuleRenewalUnknown: NotFound, RuleNotFound: NotFound,
	RuleIdentityExists: FailedPrecondition, RuleIdentityState: FailedPrecondition,
	RuleAlreadyEnrolled: FailedPrecondition, RuleIdentityStale: FailedPrecondition, RuleLogEpoch: FailedPrecondition,
	RuleRecoveryValid: FailedPrecondition, RuleRecoveryGrace: FailedPrecondition, RuleRecoveryLimit: FailedPrecondition,
	RuleRequestIDReused: FailedPrecondition, RuleAlreadyRevoked: FailedPrecondition, RuleCAInUse: FailedPrecondition, RuleUnconfirmed: FailedPrecondition,
	RuleIdentityRevision: Aborted, RulePolicyRevision: Aborted,
	RuleOverloaded: ResourceExhausted, RuleRateLimited: ResourceExhausted, RuleRenewalTooEarly: ResourceExhausted,
	RuleMaxUnexpired: ResourceExhausted, RulePolicyLimit: ResourceExhausted,
	RuleStale: Unavailable, RuleMethod: Unimplemented, RuleESTOperation: Unimplemented,

	RuleACMEContact: InvalidArgument, RuleACMEIdentifier: InvalidArgument, RuleACMEIdentifierType: InvalidArgument,
	RuleACMEProfile: InvalidArgument, RuleACMEReplaces: InvalidArgument,
	RuleACMEBinding:       Unauthenticated,
	RuleACMEAccountStatus: PermissionDenied, RuleACMEBindingRequired: PermissionDenied, RuleACMERevocation: PermissionDenied,
	RuleACMEValidationDNS: PermissionDenied, RuleACMEValidationHost: PermissionDenied, RuleACMEValidationDial: PermissionDenied,
	RuleACMEValidationTLS: PermissionDenied, RuleACMEValidationAnswer: PermissionDenied,
	RuleACMEAccount: NotFound, RuleACMEOrder: NotFound, RuleACMEAuthorization: NotFound,
	RuleACMEOff: FailedPrecondition, RuleACMEAccountKey: FailedPrecondition, RuleACMEOrderNotReady: FailedPrecondition,
	RuleACMEReplaced: FailedPrecondition, RuleACMEAuthorized: FailedPrecondition,
	RuleACMEOrders: ResourceExhausted,

	RuleACMEJWS: InvalidArgument, RuleACMENonce: InvalidArgument, RuleACMEAlgorithm: InvalidArgument,
	RuleACMEPublicKey: InvalidArgument, RuleACMEContentType: InvalidArgument, RuleACMEURL: Unauthenticated,
}

// Rules returns all rules, sorted by name.
func Rules() []Rule { return slices.Sorted(maps.Keys(classes)) }

// Class returns the class of a rule. The class of an unknown rule is InvalidArgument.
func (r Rule) Class() Class {
	if c, ok := classes[r]; ok {
		return c
	}
	return InvalidArgument
}

// IsTemporary reports whether the same request may succeed later. For that, an error in the chain must have a method
// Temporary that returns true. Packages agree on this method and not on a type, so that no package must import another
// for its errors.
func IsTemporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

// RetryAfter returns how long the caller should wait before a retry, according to the error's method RetryAfter. It
// returns zero if the error does not say.
func RetryAfter(err error) time.Duration {
	var t interface{ RetryAfter() time.Duration }
	if errors.As(err, &t) {
		return t.RetryAfter()
	}
	return 0
}
