package revocation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// CRLs requests new CRLs. It is safe for concurrent use. A request neither blocks nor fails. The CRLs list every change
// that was durable before the request. They are published within a second, or as soon as they can be signed.
type CRLs interface {
	// Request requests new CRLs for the issuers of these certificates, whatever their statuses are.
	Request(changes []pki.StatusChange)
	// RequestAll requests new CRLs for every issuer.
	RequestAll()
}

// Config holds the dependencies of an Authority.
type Config struct {
	Store    Store
	Observer pki.StatusObserver // notifies the responders of this process
	CRLs     CRLs
	// Grace returns how long after its expiry a certificate can recover its identity. A change of several certificates
	// affects those that expired within it. Nil means that certificates cannot.
	Grace func() time.Duration
	Clock func() time.Time // nil is time.Now
	Log   *slog.Logger     // nil is slog.Default()
}

// Authority changes the status of certificates. It is safe for concurrent use.
type Authority struct {
	store    Store
	observer pki.StatusObserver
	crls     CRLs
	grace    func() time.Duration
	clock    func() time.Time
	log      *slog.Logger
	bulk     bulkQueue
}

// New returns an Authority.
func New(c Config) (*Authority, error) {
	if c.Store == nil || c.Observer == nil || c.CRLs == nil {
		return nil, errors.New("an authority needs a store, an observer and CRLs")
	}
	a := &Authority{store: c.Store, observer: c.Observer, crls: c.CRLs, grace: c.Grace, clock: c.Clock, log: c.Log, bulk: newBulkQueue()}
	if a.grace == nil {
		a.grace = func() time.Duration { return 0 }
	}
	if a.clock == nil {
		a.clock = time.Now
	}
	if a.log == nil {
		a.log = slog.Default()
	}
	return a, nil
}

// Apply applies a change and returns its result. If the error is nil, the change is durable, the observer has been
// notified, and new CRLs follow within a second. If the change breaks a rule, the error is a [pki.Refusal].
//
// Apply truncates the time of the change to seconds, and refuses a time in the future. A zero time means now.
//
// A change that affects many certificates becomes a bulk revocation, which is in effect for all of them at once. Apply
// returns when the bulk revocation has been applied to the records of all certificates. If ctx ends earlier, Run
// applies the rest, in this process or after a restart.
func (a *Authority) Apply(ctx context.Context, o Change) (ChangeResult, error) {
	now := a.now()
	if o.At.IsZero() {
		o.At = now
	}
	o.At, o.InvalidSince = o.At.UTC().Truncate(time.Second), o.InvalidSince.UTC().Truncate(time.Second)
	if err := o.check(now); err != nil {
		return ChangeResult{}, err
	}
	o.Grace = a.grace()
	out, err := a.store.Apply(ctx, o)
	if err != nil {
		if _, refused := pki.AsRefusal(err); !refused {
			// The change may be durable nevertheless, and the CRLs must then list it.
			a.bulk.want()
			a.crls.RequestAll()
		}
		return ChangeResult{}, err
	}
	a.observer.Apply(out.All()...)
	a.crls.Request(out.All())
	for _, c := range out.Changed {
		out.Affected.Add(c.NotAfter, o.At)
	}
	if out.BulkRevocation == 0 {
		return out, nil
	}
	bulk, err := a.completeBulk(ctx, out.BulkRevocation)
	if err != nil {
		return ChangeResult{}, err
	}
	out.Affected.Valid += bulk.Total - bulk.Expired
	out.Affected.Expired += bulk.Expired
	return out, nil
}

// check returns a refusal if the change is invalid, whatever the store contains. Otherwise it returns nil.
func (o Change) check(now time.Time) error {
	if err := o.CheckSubject(); err != nil {
		return err
	}
	if o.At.After(now) {
		return pki.Refuse(pki.RuleRequest, "leave the time out", "a change cannot take effect in the future, at %s",
			o.At.Format(time.RFC3339))
	}
	var reasonFits, stateFits bool
	switch o.Action {
	case Revoke:
		_, err := pki.ReasonFromCode(int(o.Reason))
		reasonFits = err == nil && o.Reason != pki.CertificateHold
		stateFits = o.State == 0 || o.State == pki.Retired && !o.Identity.IsZero()
	case Hold:
		reasonFits = o.Reason == pki.CertificateHold || o.Reason == pki.Unspecified
		stateFits = o.State == pki.Suspended && !o.Identity.IsZero() || o.State == 0 && o.Identity.IsZero()
	case Unhold:
		reasonFits = o.Reason == pki.Unspecified
		stateFits = o.State == 0
	default:
		return pki.Refuse(pki.RuleRequest, "revoke, hold or unhold", "a change has no action %d", o.Action)
	}
	if !reasonFits {
		return pki.Refuse(pki.RuleReason, "revoke for any other reason of RFC 5280 section 5.3.1; hold and unhold take no reason",
			"the reason %v is not allowed for the action %v", o.Reason, o.Action)
	}
	if !stateFits {
		return pki.Refuse(pki.RuleRequest, "hold suspends an identity, revoke may retire it, unhold restores its state",
			"the action %v cannot put its subject into the state %v", o.Action, o.State)
	}
	if o.Action != Revoke && !o.InvalidSince.IsZero() {
		return pki.Refuse(pki.RuleRequest, "leave the invalidity date out, or revoke", "the action %v takes no invalidity date", o.Action)
	}
	if err := checkSince(o.InvalidSince, o.At); err != nil {
		return err
	}
	return checkComment(o.Comment)
}

// CheckSubject returns a refusal unless the change names exactly one of a certificate, an identity and a key. A change
// of a key can only revoke for keyCompromise.
func (o Change) CheckSubject() error {
	subjects := 0
	for _, none := range []bool{o.Certificate.IsZero(), o.Identity.IsZero(), o.Key.IsZero()} {
		if !none {
			subjects++
		}
	}
	if subjects != 1 {
		return pki.Refuse(pki.RuleRequest, "name one certificate, one identity or one key", "a change has exactly one subject, not %d", subjects)
	}
	if !o.Key.IsZero() && (o.Action != Revoke || o.Reason != pki.KeyCompromise) {
		return pki.Refuse(pki.RuleReason, "revoke the key for keyCompromise", "a change of a key can only revoke it for keyCompromise")
	}
	return nil
}

// String returns the name of the action, a verb.
func (a Action) String() string {
	switch a {
	case Revoke:
		return "revoke"
	case Hold:
		return "hold"
	case Unhold:
		return "unhold"
	default:
		return fmt.Sprintf("action(%d)", uint8(a))
	}
}

// now returns the current time truncated to seconds, the precision of certificates, CRLs and statuses.
func (a *Authority) now() time.Time { return a.clock().UTC().Truncate(time.Second) }
