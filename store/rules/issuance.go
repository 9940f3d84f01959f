package rules

import (
	"slices"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/acme"
)

// Issuance holds the records that the guard of a certificate depends on. The store reads them in the transaction that
// records the certificate.
type Issuance struct {
	// Registered is true if the identity is registered. If it is not, the other fields are zero.
	Registered bool
	State      pki.IdentityState
	Revision   uint64
	// Answered is true if a certificate was already issued for the request ID.
	Answered    bool
	Predecessor Predecessor
	Key         Key
	// Token is the token that the guard names, if it is on record for this identity, or nil.
	Token *ra.Token
	// Unexpired is the number of the identity's unexpired certificates, counted up to the guard's MaxUnexpired. If the
	// guard has an order, only certificates of orders with the same names count.
	Unexpired int
	// OrdersUnexpired is the number of unexpired certificates that accounts have ordered for the identity, counted up to the
	// MaxUnexpired of the guard's order.
	OrdersUnexpired int
	// Subject is the subject of evidence that the identity is tied to, and Holder is another identity that is tied to the
	// guard's subject. Both are zero for none, and need not be read if the guard has no subject.
	Subject pki.EvidenceSubject
	Holder  pki.SPIFFEID
	// NonceUsed is true if one of the guard's nonces was consumed before.
	NonceUsed bool
	// Recovery need not be read if the guard has no recovery.
	Recovery Recovery
	// Order is the order that the guard names, or nil if it is not on record. It need not be read if the guard has none.
	Order *acme.OrderState
}

// Predecessor is the state of the certificate that a guard names as the predecessor.
type Predecessor struct {
	Found               bool // true if it was issued to this identity
	NotBefore, NotAfter time.Time
	// Status is the effective status, with the open bulk revocations. Its RevokedAt is not used.
	Status pki.Status
	// Renewed is true if the certificate was renewed before. SameKey is true if that renewal has the guard's key.
	Renewed, SameKey bool
	// Superseded is true if the renewal revoked the certificate.
	Superseded bool
}

// Key is the state of a public key in the records.
type Key struct {
	Reserved    bool // the key of a CA
	Collides    bool // another key on record has a hash with the same first bytes
	Compromised bool // revoked for keyCompromise, by itself or by an open bulk revocation
	Foreign     bool // certified for another identity
}

// Check returns the refusal to certify the key, or nil.
func (k Key) Check() *pki.Refusal {
	const hint = "generate a new key"
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

// Effects holds the changes to other records when a certificate is recorded. More effects follow from the guard:
//   - If Guard.Enrolls is set, the identity becomes enrolled in a new revision. It gets Guard.Terms, and Guard.Subject if
//     that is not zero.
//   - The order in Guard.Order becomes valid with the certificate.
//   - The token in Guard.Token is spent, and Guard.Nonces are consumed.
//   - The number of recoveries in a row of the identity becomes that of [NextRecoveries].
type Effects struct {
	// Succeeds is true if the guard's key is recorded as the successor of the predecessor.
	Succeeds bool
	// Superseded is the change of the predecessor if the certificate revokes it, and zero otherwise.
	Superseded pki.StatusChange
}

// KeyUses returns the number of certificate records that newly refer to the key: the certificate, and its predecessor if
// the key becomes the successor there.
func (e Effects) KeyUses() int {
	if e.Succeeds {
		return 2
	}
	return 1
}

// Renews reports whether the caller renews its own certificate. Then [Issuance.Check] authorizes the caller by the state
// of the predecessor.
func Renews(r *ca.Record) bool {
	before := r.Guard.Predecessor
	return !before.IsZero() && r.Actor.Caller() == pki.Caller{Identity: r.Identity, Certificate: before}
}

// DelegateOf returns the name of the server that gets the certificate of its own OCSP delegate from the CA of another
// server, and an empty name for other records. The identity of a delegate contains the CA that issues the certificate and
// the name of the server, so a server can only get those of its own delegates, and only with the profile of delegates.
func DelegateOf(r *ca.Record) string {
	server := r.Actor.Caller().Identity
	name := server.ServerName()
	if name == "" || r.Profile != ra.DelegateProfile {
		return ""
	}
	if own, err := pki.VAID(server.TrustDomain(), r.Ref.Issuer, name); err != nil || own != r.Identity {
		return ""
	}
	return name
}

// NoServer returns the refusal of a server that has never opened the store.
func NoServer(name string) *pki.Refusal {
	return pki.Refuse(pki.RuleAccess, "start the server on this store first", "no server with the name %s has opened the store", name)
}

// CheckRecord returns the refusal of a record that is invalid in every state of the store, or nil.
func CheckRecord(r *ca.Record) *pki.Refusal {
	if r.RequestID.IsZero() {
		return pki.Refuse(pki.RuleRequest, "repeat with a request ID", "the certificate has no request ID")
	}
	if r.Guard.Key != r.KeyHash {
		return pki.Refuse(pki.RuleRequest, "repeat the request", "the certificate was decided for another key")
	}
	if !r.Guard.Order.IsZero() && (r.Guard.Order.ID != r.RequestID || r.Guard.Order.Names == pki.NamesDigest{}) {
		return pki.Refuse(pki.RuleRequest, "repeat the request", "the certificate was decided for another order, or without names")
	}
	if !r.Guard.Enrolls && (!r.Guard.Subject.IsZero() || !r.Guard.Terms.IsZero()) {
		return pki.Refuse(pki.RuleRequest, "repeat the request",
			"the certificate has a subject of evidence or terms, but enrolls no identity")
	}
	if !r.Guard.Recovery.IsZero() && (!r.Guard.Enrolls || r.Guard.LosesPredecessor() && !r.Guard.Supersedes) {
		return pki.Refuse(pki.RuleRequest, "repeat the request",
			"the certificate recovers an identity, but does not enroll it, or does not revoke a certificate that was lost")
	}
	return nil
}

// Check checks the guard of a certificate again, because the records may have changed since the decision. It returns the
// effects of recording the certificate, or a refusal. Call [CheckRecord] first.
func (s *Issuance) Check(r *ca.Record, at time.Time) (Effects, *pki.Refusal) {
	var e Effects
	if refusal := s.checkIdentity(r); refusal != nil {
		return e, refusal
	}
	if refusal := s.checkOrder(&r.Guard); refusal != nil {
		return e, refusal
	}
	if !r.Guard.Token.IsZero() {
		if refusal := s.checkToken(r, at); refusal != nil {
			return e, refusal
		}
	}
	if refusal := s.checkNonces(r.Guard.Nonces, at); refusal != nil {
		return e, refusal
	}
	if refusal := s.checkRecovery(&r.Guard, at); refusal != nil {
		return e, refusal
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
		e.Succeeds = !s.Predecessor.Renewed && !r.Guard.LosesPredecessor()
		if r.Guard.Supersedes {
			e.Superseded = s.Predecessor.supersede(r.Guard.Predecessor, at)
		}
	}
	if refusal := s.Key.Check(); refusal != nil {
		return e, refusal
	}
	if refusal := r.Guard.CheckUnexpired(r.Identity, s.Unexpired); refusal != nil {
		return e, refusal
	}
	return e, r.Guard.Order.CheckUnexpired(r.Identity, s.OrdersUnexpired)
}

// checkIdentity requires a registered identity even if the guard names none. It refuses a reused request ID before a stale
// identity: the first certificate for this ID may have changed the identity, and the caller needs to know about it.
func (s *Issuance) checkIdentity(r *ca.Record) *pki.Refusal {
	if !s.Registered {
		return NoIdentity(r.Identity)
	}
	if s.Answered {
		return pki.Refuse(pki.RuleRequestIDReused,
			"repeat the request for the certificate on record, or generate a new request ID for another one",
			"a certificate was already issued for the request ID")
	}
	if r.Guard.Identity.IsZero() && !r.Guard.Enrolls {
		return nil
	}
	if r.Guard.Identity != r.Identity {
		return pki.Refuse(pki.RuleIdentity, "repeat the request",
			"the certificate of %s was decided for %s", r.Identity, r.Guard.Identity)
	}
	if refusal := r.Identity.CheckMayHold(s.State); refusal != nil {
		return refusal
	}
	// Of two devices that claim one identity at the same time, the second one learns that another device has it. That the
	// identity has changed is true as well, but a repeat would not help.
	if refusal := CheckSubject(r.Identity, s.Subject, r.Guard.Subject, s.Holder); refusal != nil {
		return refusal
	}
	if s.Revision != r.Guard.Revision {
		return identityChanged(r.Identity)
	}
	return nil
}

func identityChanged(id pki.SPIFFEID) *pki.Refusal {
	return pki.Refuse(pki.RuleIdentityStale, "repeat the request", "%s changed while the request was in progress", id)
}

// CheckSubject refuses evidence about a subject if the identity id is tied to another subject, which is have, or if
// another identity is tied to this subject, which is holder. Each of the three is zero for none.
func CheckSubject(id pki.SPIFFEID, have, subject pki.EvidenceSubject, holder pki.SPIFFEID) *pki.Refusal {
	if subject.IsZero() {
		return nil
	}
	if !have.IsZero() && have != subject {
		return id.EvidenceConflict()
	}
	return CheckSubjectFree(holder)
}

// checkNonces refuses an expired nonce before a used one, because the retention removes used nonces after they expire.
func (s *Issuance) checkNonces(nonces []pki.Nonce, at time.Time) *pki.Refusal {
	return CheckNonces(nonces, s.NonceUsed, at)
}

// CheckNonces refuses nonces that have expired, or of which one was consumed before or occurs twice.
func CheckNonces(nonces []pki.Nonce, used bool, at time.Time) *pki.Refusal {
	const hint = "request a new challenge or a new token of its issuer, and send new evidence"
	for i, n := range nonces {
		if !at.Before(n.ExpiresAt) {
			return pki.Refuse(pki.RuleChallengeExpired, hint,
				"the challenge expired at %s", n.ExpiresAt.UTC().Format(time.RFC3339))
		}
		twice := slices.ContainsFunc(nonces[:i], func(o pki.Nonce) bool { return o.ID == n.ID })
		if used || twice {
			return pki.Refuse(pki.RuleChallengeUsed, hint, "the evidence was used before")
		}
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
	if refusal, ok := pki.AsRefusal(s.Token.CheckKey(r.KeyHash)); ok {
		return refusal
	}
	refusal, _ := pki.AsRefusal(s.Token.CheckBound(r.RequestID, r.KeyHash))
	return refusal
}

// check refuses with renewal.key_conflict if another key has renewed the predecessor, even if that renewal revoked it.
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
		return pki.Refuse(pki.RuleIdentityStale, "repeat the request",
			"certificate %s was renewed while the request was in progress", g.Predecessor.Serial)
	}
	return nil
}

// caller returns the state of a caller that renews its own certificate. The status has been checked before.
func (s *Issuance) caller() pki.CallerState {
	return pki.CallerState{
		NotBefore: s.Predecessor.NotBefore, NotAfter: s.Predecessor.NotAfter,
		Status: pki.Status{State: pki.Good}, Identity: pki.CallerIdentity{State: s.State},
	}
}

func (p *Predecessor) supersede(ref pki.CertRef, at time.Time) pki.StatusChange {
	return pki.StatusChange{Ref: ref, NotAfter: p.NotAfter, Status: pki.Status{
		State: pki.Revoked, Reason: pki.Superseded, RevokedAt: at.Truncate(time.Second),
		Version: p.Status.Version + 1,
	}}
}

// SerialTaken returns the refusal of a certificate whose serial number is already on record.
func SerialTaken(serial pki.Serial) *pki.Refusal {
	return pki.Refuse(pki.RuleOverloaded, "repeat the request, which gets another serial number",
		"the serial number %s is already on record", serial)
}

// Abandoned returns the status of a certificate that was never delivered. The reason is unspecified, because no other
// reason of RFC 5280 §5.3.1 applies.
func Abandoned(at time.Time) pki.Status {
	return pki.Status{State: pki.Revoked, Reason: pki.Unspecified, RevokedAt: at.Truncate(time.Second), Version: 1}
}
