package pki

import (
	"fmt"
	"time"
)

// State is the revocation state of a certificate.
type State uint8

// A certificate is Good when it is issued. It can be put on Hold and taken off. Revoked is final.
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

// Status is the revocation status of a certificate. Each change of it makes a new version.
type Status struct {
	State  State
	Reason Reason // certificateHold if State is Hold; not used if State is Good
	// RevokedAt is when the certificate was revoked or put on hold, in whole seconds.
	RevokedAt time.Time
	// Version counts the changes of this certificate's status, from 1. Of two statuses, the higher version is newer.
	Version uint64
}

// StatusChange is the new status of one certificate: everything that a responder needs about it.
type StatusChange struct {
	Ref      CertRef
	NotAfter time.Time
	Status   Status
	// Fingerprint is the SHA-256 of the certificate, in the change that records its issuance. In others it is nil.
	Fingerprint []byte
}
