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

// Of returns the status of a rule.
func Of(rule pki.Rule) Status {
	switch rule {
	case pki.RuleACMENonce:
		return Status{HTTP: 400, ACME: "badNonce"}
	case pki.RuleACMEAlgorithm:
		return Status{HTTP: 400, ACME: "badSignatureAlgorithm"}
	case pki.RuleACMEPublicKey:
		return Status{HTTP: 400, ACME: "badPublicKey"}
	case pki.RuleACMEURL:
		return Status{HTTP: 401, ACME: "unauthorized"}
	case pki.RuleACMEAccount:
		return Status{HTTP: 400, ACME: "accountDoesNotExist"}
	case pki.RuleOverloaded:
		return Status{HTTP: 503, ACME: "rateLimited"}
	}
	return Status{HTTP: http.StatusBadRequest, ACME: "malformed"}
}
