package rules

import (
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// Issuance is what is on record when a certificate is about to be recorded: all that its guard asks about, in the
// transaction that records it.
type Issuance struct {
	// Registered reports whether the identity is registered. If it is not, the other fields are zero.
	Registered bool
	State      pki.IdentityState
	Revision   uint64
	// Answered reports whether the identity's request was answered with a certificate before.
	Answered    bool
	Predecessor Predecessor
	Key         Key
	// Token is the token that the guard names, if it is on record for this identity; nil otherwise.
	Token *ra.Token
	// Unexpired counts the identity's unexpired certificates, up to the guard's MaxUnexpired.
	Unexpired int
}

// Predecessor is the certificate that a guard renews.
type Predecessor struct {
	Found               bool // it was issued to this identity
	NotBefore, NotAfter time.Time
	// Status has every open bulk revocation applied. Its RevokedAt is not needed.
	Status pki.Status
	// Renewed reports whether it was renewed before, and SameKey whether that was with the guard's key.
	Renewed, SameKey bool
	// Superseded reports whether its renewal revoked it.
	Superseded bool
}

// Key is what is on record of a public key.
type Key struct {
	Reserved    bool // a CA has it
	Collides    bool // another key with the same first bytes of its hash is on record
	Compromised bool // it was revoked for keyCompromise, or an open bulk revocation does
	Foreign     bool // it was certified for another identity
}

// Check returns why the key may not be certified, or nil.
func (k Key) Check() *pki.Refusal {
	const hint = "make a new key"
	switch {
	case k.Reserved:
		return pki.Refuse(pki.RuleKeyReserved, hint, "the key is that of a CA")
	case k.Collides:
		return pki.Refuse(pki.RuleKeyInUse, hint,
			"the first bytes of the key's hash are those of another key on record")
	case k.Compromised:
		return pki.Refuse(pki.RuleKeyCompromised, hint, "the key was revoked as compromised")
	case k.Foreign:
		return pki.Refuse(pki.RuleKeyInUse, hint, "the key is certified for another identity")
	default:
		return nil
	}
}

// Effects is what recording a certificate changes beside it. The guard says the rest: Enrolls enrolls the identity in a
// new revision, and Token is spent.
type Effects struct {
	// Succeeds reports whether the predecessor gets the guard's key as its successor.
	Succeeds bool
	// Superseded is the next status of the predecessor if the certificate revokes it; zero otherwise.
	Superseded pki.StatusChange
}

// KeyUses returns how many certificates name the key anew: the certificate itself, and the one that it renews.
func (e Effects) KeyUses() int {
	if e.Succeeds {
		return 2
	}
	return 1
}

// Renews reports whether a record is its caller's own renewal. Then the predecessor is the caller's certificate, and
// [Issuance.Check] authorizes the caller by it.
func Renews(r *ca.Record) bool {
	before := r.Guard.Predecessor
	return !before.IsZero() && r.Actor.Caller() == pki.Caller{Identity: r.Identity, Certificate: before}
}

// CheckRecord returns the refusal of a record that no state of the store could accept, or nil.
func CheckRecord(r *ca.Record) *pki.Refusal {
	if r.RequestID.IsZero() {
		return pki.Refuse(pki.RuleRequest, "ask again with a request ID", "the certificate answers no request")
	}
	if r.Guard.Key != r.KeyHash {
		return pki.Refuse(pki.RuleRequest, "ask again", "the certificate was decided for another key")
	}
	return nil
}

// Check returns what recording a certificate changes, or its refusal if something no longer holds that was true when
// the certificate was decided. [CheckRecord] comes before it.
func (s *Issuance) Check(r *ca.Record, at time.Time) (Effects, *pki.Refusal) {
	var e Effects
	if refusal := s.checkIdentity(r); refusal != nil {
		return e, refusal
	}
	if !r.Guard.Token.IsZero() {
		if refusal := s.checkToken(r, at); refusal != nil {
			return e, refusal
		}
	}
	if !r.Guard.Predecessor.IsZero() {
		if refusal := s.Predecessor.check(&r.Guard); refusal != nil {
			return e, refusal
		}
		if Renews(r) {
			if refusal, ok := pki.AsRefusal(r.Actor.Caller().Authorize(s.caller(), at)); ok {
				return e, refusal
			}
		}
		e.Succeeds = !s.Predecessor.Renewed
		if r.Guard.Supersedes {
			e.Superseded = s.Predecessor.supersede(r.Guard.Predecessor, at)
		}
	}
	if refusal := s.Key.Check(); refusal != nil {
		return e, refusal
	}
	return e, r.Guard.CheckUnexpired(r.Identity, s.Unexpired)
}

// checkIdentity requires a registered identity even if the guard names none. It refuses a repeated request first: its
// caller needs to know that the answer is on record, not that this answer has changed the identity.
func (s *Issuance) checkIdentity(r *ca.Record) *pki.Refusal {
	if !s.Registered {
		return NoIdentity(r.Identity)
	}
	if s.Answered {
		return pki.Refuse(pki.RuleRequestIDReused,
			"ask again for the certificate on record, or draw a new request ID for another one",
			"the request ID was answered with a certificate before")
	}
	if r.Guard.Identity.IsZero() && !r.Guard.Enrolls {
		return nil
	}
	if r.Guard.Identity != r.Identity {
		return pki.Refuse(pki.RuleIdentity, "ask again",
			"the certificate of %s was decided for %s", r.Identity, r.Guard.Identity)
	}
	if refusal := r.Identity.CheckMayHold(s.State); refusal != nil {
		return refusal
	}
	if s.Revision != r.Guard.Revision {
		return pki.Refuse(pki.RuleIdentityStale, "ask again", "%s changed while the request was under way", r.Identity)
	}
	return nil
}

func (s *Issuance) checkToken(r *ca.Record, at time.Time) *pki.Refusal {
	if s.Token == nil || s.Token.Spent || !at.Before(s.Token.ExpiresAt) {
		return ra.RefuseToken()
	}
	if refusal, ok := pki.AsRefusal(s.Token.CheckRevoked()); ok {
		return refusal
	}
	refusal, _ := pki.AsRefusal(s.Token.CheckBound(r.RequestID, r.KeyHash))
	return refusal
}

// check reports a clone as one even if the renewal with the other key has revoked the predecessor.
func (p *Predecessor) check(g *pki.Guard) *pki.Refusal {
	if !p.Found {
		return NoPredecessor(g.Predecessor)
	}
	if p.Renewed && !p.SameKey && (p.Status.State == pki.Good || p.Superseded) {
		return g.Predecessor.Cloned()
	}
	if refusal := g.Predecessor.CheckRenewable(p.Status); refusal != nil {
		return refusal
	}
	if p.Renewed && !g.Renewed {
		return pki.Refuse(pki.RuleIdentityStale, "ask again",
			"certificate %s was renewed while the request was under way", g.Predecessor.Serial)
	}
	return nil
}

// caller is what is on record of a caller that renews. Its certificate is good by then.
func (s *Issuance) caller() pki.CallerState {
	return pki.CallerState{
		NotBefore: s.Predecessor.NotBefore, NotAfter: s.Predecessor.NotAfter,
		Status: pki.Status{State: pki.Good}, Identity: s.State,
	}
}

func (p *Predecessor) supersede(ref pki.CertRef, at time.Time) pki.StatusChange {
	return pki.StatusChange{Ref: ref, NotAfter: p.NotAfter, Status: pki.Status{
		State: pki.Revoked, Reason: pki.Superseded, RevokedAt: at.Truncate(time.Second),
		Version: p.Status.Version + 1,
	}}
}

// SerialTaken returns the refusal of a record whose serial number is on record.
func SerialTaken(serial pki.Serial) *pki.Refusal {
	return pki.Refuse(pki.RuleOverloaded, "ask again: the next certificate has another number",
		"the serial number %s is on record already", serial)
}

// Abandoned returns the status of a certificate that was never delivered. Its reason is unspecified: nothing happened
// to its key or holder that another reason would name.
func Abandoned(at time.Time) pki.Status {
	return pki.Status{State: pki.Revoked, Reason: pki.Unspecified, RevokedAt: at.Truncate(time.Second), Version: 1}
}
