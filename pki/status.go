package pki

import (
	"fmt"
	"time"
)

// State is the revocation state of a certificate.
type State uint8

// A new certificate is Good. It can be put on Hold, and become Good again. Revoked cannot be undone.
const (
	Good State = iota + 1
	Hold
	Revoked
)

// String returns the state's name.
func (s State) String() string {
	switch s {
	case Good:
		return "good"
	case Hold:
		return "hold"
	case Revoked:
		return "revoked"
	default:
		return fmt.Sprintf("state(%d)", uint8(s))
	}
}

// Predicate returns the text that follows "the certificate is" in a message.
func (s State) Predicate() string {
	if s == Hold {
		return "on hold"
	}
	return s.String()
}

// Status is the revocation status of a certificate. Each change increments its version.
type Status struct {
	State  State
	Reason Reason // certificateHold if State is Hold; unused if State is Good
	// RevokedAt is when the certificate was revoked or put on hold, in whole seconds.
	RevokedAt time.Time
	// Version counts the changes of the certificate's status, starting with 1. The status with the higher version is
	// newer.
	Version uint64
}

// StatusChange is the new status of one certificate, with everything that a responder needs to know.
type StatusChange struct {
	Ref      CertRef
	NotAfter time.Time
	Status   Status
	// Fingerprint is the SHA-256 of the certificate if the change records its issuance. Otherwise it is nil.
	Fingerprint []byte
}
