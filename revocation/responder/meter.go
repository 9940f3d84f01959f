package responder

import "github.com/brevet-pki/brevet/revocation/ocsp"

// Outcome classifies OCSP responses for metrics. It is the status of the certificate in the response or, for a response
// without a status, the name of its responseStatus (RFC 6960 §4.2.1).
type Outcome string

// The outcomes. Unknown is a response about a certificate that was never issued, even if the response says revoked
// because of ExtendedRevoke. Several is a response about more than one certificate.
const (
	Good          Outcome = "good"
	Revoked       Outcome = "revoked"
	Unknown       Outcome = "unknown"
	Several       Outcome = "several"
	Malformed     Outcome = "malformedRequest"
	InternalError Outcome = "internalError"
	TryLater      Outcome = "tryLater"
	Unauthorized  Outcome = "unauthorized"
)

// Outcomes returns all outcomes.
func Outcomes() []Outcome {
	return []Outcome{Good, Revoked, Unknown, Several, Malformed, InternalError, TryLater, Unauthorized}
}

// Meter counts OCSP responses. Answered is called once for each response. It must not block, and is safe for concurrent
// use.
type Meter interface {
	Answered(o Outcome)
}

type unmetered struct{}

// Answered implements Meter.
func (unmetered) Answered(Outcome) {}

func outcomeOf(r ocsp.Response) Outcome {
	singles := r.Singles
	switch {
	case len(singles) != 1:
		return Several
	case r.ExtendedRevoke:
		return Unknown
	default:
		return outcomeOfOne(singles[0].Status)
	}
}

func outcomeOfRefusal(r ocsp.Refusal) Outcome {
	switch r {
	case ocsp.MalformedRequest:
		return Malformed
	case ocsp.TryLater:
		return TryLater
	case ocsp.Unauthorized:
		return Unauthorized
	default:
		return InternalError
	}
}

func outcomeOfOne(status ocsp.CertStatus) Outcome {
	switch status {
	case ocsp.Good:
		return Good
	case ocsp.Revoked:
		return Revoked
	case ocsp.Unknown:
	}
	return Unknown
}
