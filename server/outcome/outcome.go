// Package outcome maps refusals to statuses.
package outcome

import (
	"net/http"

	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/pki"
)

// Status is a status.
type Status struct {
	GRPC codes.Code
	HTTP int
	ACME string
}

var single = map[pki.Rule]Status{
	pki.RuleACMENonce: {HTTP: 400, ACME: "badNonce"}, pki.RuleACMEAlgorithm: {HTTP: 400, ACME: "badSignatureAlgorithm"},
	pki.RuleACMEPublicKey: {HTTP: 400, ACME: "badPublicKey"}, pki.RuleACMEURL: {HTTP: 401, ACME: "unauthorized"},
	pki.RuleACMEContentType: {HTTP: 415, ACME: "malformed"}, pki.RuleSize: {HTTP: 413, ACME: "malformed"},
	pki.RuleACMEAccount: {HTTP: 400, ACME: "accountDoesNotExist"}, pki.RuleACMEAccountStatus: {HTTP: 401, ACME: "unauthorized"},
	pki.RuleACMEBindingRequired: {HTTP: 403, ACME: "externalAccountRequired"}, pki.RuleACMEBinding: {HTTP: 401, ACME: "unauthorized"},
	pki.RuleACMEIdentifier: {HTTP: 400, ACME: "rejectedIdentifier"}, pki.RuleACMEIdentifierType: {HTTP: 400, ACME: "unsupportedIdentifier"},
	pki.RuleACMEProfile: {HTTP: 400, ACME: "invalidProfile"}, pki.RuleACMEOrderNotReady: {HTTP: 403, ACME: "orderNotReady"},
	pki.RuleACMEReplaced: {HTTP: 409, ACME: "alreadyReplaced"}, pki.RuleACMEContact: {HTTP: 400, ACME: "invalidContact"},
	pki.RuleAlreadyRevoked: {HTTP: 400, ACME: "alreadyRevoked"}, pki.RuleReason: {HTTP: 400, ACME: "badRevocationReason"},
	pki.RuleCSR: {HTTP: 400, ACME: "badCSR"}, pki.RuleCSRContent: {HTTP: 400, ACME: "badCSR"}, pki.RuleCSRSignature: {HTTP: 400, ACME: "badCSR"},
	pki.RuleACMEValidationDNS: {HTTP: 400, ACME: "dns"}, pki.RuleACMEValidationDial: {HTTP: 400, ACME: "connection"},
	pki.RuleACMEValidationHost: {HTTP: 400, ACME: "connection"}, pki.RuleACMEValidationTLS: {HTTP: 400, ACME: "tls"},
	pki.RuleACMEValidationAnswer: {HTTP: 403, ACME: "incorrectResponse"}, pki.RuleACMEAccountKey: {HTTP: 409, ACME: "malformed"},
	pki.RuleOverloaded: {HTTP: 503, ACME: "rateLimited"}, pki.RuleRateLimited: {HTTP: 429, ACME: "rateLimited"},
}

// Of returns the status of a rule.
func Of(rule pki.Rule) Status {
	if s, ok := single[rule]; ok {
		return s
	}
	switch rule.Class() {
	case pki.NotFound:
		return Status{HTTP: 404, ACME: "malformed"}
	case pki.PermissionDenied:
		return Status{HTTP: 403, ACME: "unauthorized"}
	case pki.Unauthenticated:
		return Status{HTTP: 401, ACME: "unauthorized"}
	default:
		return Status{HTTP: http.StatusBadRequest, ACME: "malformed"}
	}
}
