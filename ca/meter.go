package ca

import (
	"context"

	"github.com/brevet-pki/brevet/pki"
)

// Step is a part of issuing a certificate that can take long.
type Step string

// The steps: waiting for the durable intent, the token's signature, and waiting for the durable record.
const (
	StepIntent Step = "intent"
	StepSign   Step = "sign"
	StepRecord Step = "record"
)

// Steps are all steps, in their order.
func Steps() []Step { return []Step{StepIntent, StepSign, StepRecord} }

// Meter is told of the steps of each certificate, and of the certificates. It must not block, and is safe for
// concurrent use.
type Meter interface {
	// Begin is told that a step begins for a certificate of an issuer, in the context of the call that it belongs to. The
	// function that it returns is called once, when the step has ended, with what it failed with.
	Begin(ctx context.Context, step Step, issuer pki.IssuerID) (end func(err error))
	// Issued is told of a certificate that is on record, and of its profile.
	Issued(profile string)
}
