package ra

import (
	"context"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// operatorFactor is how many times the profile's max_unexpired an identity may have where an operator asks for one more: with
// a token that replaces, or with an order.
const operatorFactor = 16

// minRenewal is the shortest lifetime that a renewal may ask for, unless the profile's own is shorter. Two renewals pass in
// each, however many certificates there are.
const minRenewal = time.Minute

// checkRenewalLifetime refuses a renewal that asks for too short a lifetime.
func checkRenewalLifetime(p *ca.Profile, req ca.Request) error {
	least := min(minRenewal, p.Lifetime())
	if req.Guard.Predecessor.IsZero() || req.Lifetime == 0 || req.Lifetime >= least {
		return nil
	}
	return pki.Refuse(pki.RuleLifetime, "ask for "+least.String()+" at least, or leave it to the profile",
		"profile %s does not allow a renewal for %s", p.Name(), req.Lifetime)
}

// bound returns how many unexpired certificates the identity of a request may have, the new one included, or zero where the
// request passes however many there are. Those are an identity's first certificate, and the first renewal of a predecessor
// past half of its life, or of a retired CA. So each certificate passes once.
func (r *Registrar) bound(st IssuanceState, p *ca.Profile, req ca.Request) int {
	before := req.Guard.Predecessor
	if before.IsZero() {
		if st.Identity.State == pki.Registered {
			return 0
		}
		return operatorFactor * p.MaxUnexpired()
	}
	always := slices.Contains(r.retired, before.Issuer) || !r.clock().Before(halfLife(st.Predecessor))
	if always && st.Predecessor.Successor.IsZero() {
		return 0
	}
	return p.MaxUnexpired()
}

// halfLife returns the middle of a certificate's life. That begins when the certificate was issued: what its profile backdates is
// no part of it.
func halfLife(p Predecessor) time.Time {
	return p.IssuedAt.Add(p.NotAfter.Sub(p.IssuedAt) / 2)
}

// checkBound refuses a request of an identity that has as many unexpired certificates as the bound allows.
func (r *Registrar) checkBound(ctx context.Context, st IssuanceState, req ca.Request) error {
	most := req.Guard.MaxUnexpired
	if most == 0 {
		return nil
	}
	n, err := r.store.Unexpired(ctx, st.Identity.ID, r.clock(), most)
	if err != nil || n < most {
		return err
	}
	if req.Guard.Predecessor.IsZero() {
		return req.Guard.CheckUnexpired(st.Identity.ID, n)
	}
	return r.tooEarly(req.Guard.Predecessor, st.Predecessor)
}

// tooEarlyError is the refusal of a renewal that passes later.
type tooEarlyError struct {
	*pki.Refusal
	after time.Duration
}

// Unwrap returns the refusal.
func (e *tooEarlyError) Unwrap() error { return e.Refusal }

// RetryAfter returns how long it takes until the renewal passes.
func (e *tooEarlyError) RetryAfter() time.Duration { return e.after }

// tooEarly refuses a renewal at the bound. One whose predecessor was renewed before does not pass later by itself.
func (r *Registrar) tooEarly(ref pki.CertRef, p Predecessor) error {
	at := halfLife(p)
	if !p.Successor.IsZero() {
		return pki.Refuse(pki.RuleMaxUnexpired, "renew the newest certificate, or have max_unexpired of the profile raised",
			"certificate %s was renewed before, and its identity has as many unexpired certificates as its profile allows", ref.Serial)
	}
	return &tooEarlyError{
		pki.Refuse(pki.RuleRenewalTooEarly, "renew from "+at.UTC().Format(time.RFC3339)+" on, or have max_unexpired of the profile raised",
			"certificate %s has not lived half of its life, and its identity has as many unexpired certificates as its profile allows", ref.Serial),
		max(at.Sub(r.clock()), time.Second),
	}
}
