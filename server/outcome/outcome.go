// Package outcome maps refusals to the statuses of protocols. It has the only such table, so that a refusal means the
// same over gRPC, EST and ACME.
package outcome

import (
	"net/http"

	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/pki"
)

// Status is how each protocol reports a refusal.
type Status struct {
	GRPC codes.Code // status code of gRPC
	HTTP int        // status code of HTTP (RFC 9110 §15)
	// ACME is the last part of the type of an ACME problem (RFC 8555 §6.7), after urn:ietf:params:acme:error:.
	ACME string
}

// classes maps each class of refusals to its Status. A test fails for a class that is not in it.
var classes = map[pki.Class]Status{
	pki.InvalidArgument:    {codes.InvalidArgument, http.StatusBadRequest, "malformed"},
	pki.Unauthenticated:    {codes.Unauthenticated, http.StatusUnauthorized, "unauthorized"},
	pki.PermissionDenied:   {codes.PermissionDenied, http.StatusForbidden, "unauthorized"},
	pki.NotFound:           {codes.NotFound, http.StatusNotFound, "malformed"},
	pki.FailedPrecondition: {codes.FailedPrecondition, http.StatusConflict, "malformed"},
	pki.Aborted:            {codes.Aborted, http.StatusConflict, "malformed"},
	pki.ResourceExhausted:  {codes.ResourceExhausted, http.StatusTooManyRequests, "rateLimited"},
	pki.Unavailable:        {codes.Unavailable, http.StatusServiceUnavailable, "serverInternal"},
	pki.Unimplemented:      {codes.Unimplemented, http.StatusNotImplemented, "malformed"},
}

// problems maps rules to types of ACME problems that say more than those of their classes.
var problems = map[pki.Rule]string{
	pki.RuleCSR: "badCSR", pki.RuleCSRSignature: "badCSR", pki.RuleCSRContent: "badCSR",
	pki.RuleKeyType: "badCSR", pki.RuleKeyWeak: "badCSR", pki.RuleKeyReserved: "badCSR", pki.RuleKeyInUse: "badCSR",
	pki.RuleKeyCompromised: "badCSR", pki.RuleHardwareKey: "badCSR",
	pki.RuleNames: "rejectedIdentifier", pki.RulePolicy: "rejectedIdentifier",
	pki.RuleProfile: "invalidProfile", pki.RuleAlreadyRevoked: "alreadyRevoked", pki.RuleReason: "badRevocationReason",
	pki.RuleACMENonce: "badNonce", pki.RuleACMEAlgorithm: "badSignatureAlgorithm", pki.RuleACMEPublicKey: "badPublicKey",
	pki.RuleACMEAccount: "accountDoesNotExist", pki.RuleACMEAccountStatus: "unauthorized", pki.RuleACMEContact: "invalidContact",
	pki.RuleACMEBindingRequired: "externalAccountRequired", pki.RuleACMEIdentifier: "rejectedIdentifier",
	pki.RuleACMEIdentifierType: "unsupportedIdentifier", pki.RuleACMEProfile: "invalidProfile",
	pki.RuleACMEOrderNotReady: "orderNotReady", pki.RuleACMEReplaced: "alreadyReplaced",
	pki.RuleACMEValidationDNS: "dns", pki.RuleACMEValidationHost: "connection", pki.RuleACMEValidationDial: "connection",
	pki.RuleACMEValidationTLS: "tls", pki.RuleACMEValidationAnswer: "incorrectResponse",
}

// statuses maps rules to statuses of HTTP that say more than those of their classes. RFC 8555 requires those of ACME.
var statuses = map[pki.Rule]int{
	pki.RuleSize:              http.StatusRequestEntityTooLarge,
	pki.RuleACMEAccount:       http.StatusBadRequest,           // §7.3.1
	pki.RuleACMEAccountStatus: http.StatusUnauthorized,         // §7.3.6
	pki.RuleACMEOrderNotReady: http.StatusForbidden,            // §7.4
	pki.RuleAlreadyRevoked:    http.StatusBadRequest,           // §7.6
	pki.RuleACMEContentType:   http.StatusUnsupportedMediaType, // §6.2
}

// Of returns the Status for a rule. For a class that is not in the table it returns that of a malformed request, so that
// a refusal is never reported as success.
func Of(r pki.Rule) Status {
	s, ok := classes[r.Class()]
	if !ok {
		s = classes[pki.InvalidArgument]
	}
	if problem, ok := problems[r]; ok {
		s.ACME = problem
	}
	if status, ok := statuses[r]; ok {
		s.HTTP = status
	}
	return s
}
