package ca

import "time"

// Step is a part of issuing a certificate that can take long.
type Step string

// The steps: waiting for the durable intent, the token's signature, and waiting for the durable record.
const (
	StepIntent Step = "intent"
	StepSign   Step = "sign"
	StepRecord Step = "record"
)

// Meter is told how long each step of each certificate took, and whether it failed. It must not block, and is safe for
// concurrent use.
type Meter interface {
	Step(step Step, took time.Duration, err error)
}
