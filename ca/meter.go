package ca

import (
	"context"

	"github.com/brevet-pki/brevet/pki"
)

// Step is a step of issuing a certificate that can take long.
type Step string

// The steps: waiting for the durable intent, signing in the HSM, and waiting for the durable record.
const (
	StepIntent Step = "intent"
	StepSign   Step = "sign"
	StepRecord Step = "record"
)

// Steps returns all steps in order.
func Steps() []Step { return []Step{StepIntent, StepSign, StepRecord} }

// Meter measures the issuance of certificates. Its methods must not block, and are safe for concurrent use.
type Meter interface {
	// Begin records the start of a step for a certificate of an issuing CA. The returned function is called once, when
	// the step has ended, with its error or nil.
	Begin(ctx context.Context, step Step, issuer pki.IssuerID) (end func(err error))
	// Issued records that a certificate of a profile is on record.
	Issued(profile string)
}
