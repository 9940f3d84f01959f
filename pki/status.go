package pki

import (
	"fmt"
	"time"
)

// State is what may be said of a certificate's validity.
type State uint8

// A certificate is Good once issued, may be put on Hold and released, and is Revoked for ever.
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

// Predicate returns what follows "the certificate is" in a message.
func (s State) Predicate() string {
	if s == Hold {
		return "on hold"
	}
	return s.String()
}

// Status is a certificate's validity at one version.
type Status struct {
	State  State
	Reason Reason // certificateHold where State is Hold; meaningless where it is Good
	// RevokedAt is when the certificate was revoked or put on hold, to the second.
	RevokedAt time.Time
	// Version counts the changes of this certificate's status, from 1. Of two statuses the higher version is the newer.
	Version uint64
}

// StatusChange is the new status of one certificate: all that a responder needs to know of it.
type StatusChange struct {
	Ref      CertRef
	NotAfter time.Time
	Status   Status
	// Fingerprint is the certificate's SHA-256, in the change that records its issue, and nil in others.
	Fingerprint []byte
}
