package revocation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// CRLs signs new CRLs on request. It is safe for concurrent use. A request neither blocks nor fails: CRLs that list every
// change made durable before the request follow within a second, or as soon as they can be signed.
type CRLs interface {
	// Request asks for new CRLs of the issuers of these certificates, whatever their statuses are.
	Request(changes []pki.StatusChange)
	// RequestAll asks for new CRLs of every issuer.
	RequestAll()
}

// Config is what an Authority is made of.
type Config struct {
	Store    Store
	Observer pki.StatusObserver // the responders of this process
	CRLs     CRLs
	Clock    func() time.Time // nil is time.Now
	Log      *slog.Logger     // nil is slog.Default()
}

// Authority changes the status of certificates. It is safe for concurrent use.
type Authority struct {
	records  Store
	observer pki.StatusObserver
	crls     CRLs
	clock    func() time.Time
	log      *slog.Logger
	sets     bulkQueue
}

// New returns an Authority.
func New(c Config) (*Authority, error) {
	if c.Store == nil || c.Observer == nil || c.CRLs == nil {
		return nil, errors.New("an authority needs records, an observer and CRLs")
	}
	a := &Authority{records: c.Store, observer: c.Observer, crls: c.CRLs, clock: c.Clock, log: c.Log, sets: newSets()}
	if a.clock == nil {
		a.clock = time.Now
	}
	if a.log == nil {
		a.log = slog.Default()
	}
	return a, nil
}

// Apply carries out an order and returns what it has changed. When it returns without error the change is durable, the
// observer has been notified, and a new CRL follows within a second. An order's time is cut to the second; if it is zero it
// is now, and a later one is refused. A Refusal says which rule an order breaks.
//
// An order about many certificates is in effect for all of them at once, and Apply returns when their records say so too.
// If ctx ends before that, Run completes the order, in this process or in the next.
func (a *Authority) Apply(ctx context.Context, o Change) (ChangeResult, error) {
	now := a.now()
	if o.At.IsZero() {
		o.At = now
	}
	o.At, o.InvalidSince = o.At.UTC().Truncate(time.Second), o.InvalidSince.UTC().Truncate(time.Second)
	if err := o.check(now); err != nil {
		return ChangeResult{}, err
	}
	out, err := a.records.Apply(ctx, o)
	if err != nil {
		if _, refused := pki.AsRefusal(err); !refused {
			// The change may be durable all the same, and then the CRLs have to list it.
			a.sets.want()
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
	set, err := a.completeSet(ctx, out.BulkRevocation)
	if err != nil {
		return ChangeResult{}, err
	}
	out.Affected.Valid += set.Total - set.Expired
	out.Affected.Expired += set.Expired
	return out, nil
}

// check refuses an order that makes no sense whatever the records say.
func (o Change) check(now time.Time) error {
	if err := o.CheckSubject(); err != nil {
		return err
	}
	if o.At.After(now) {
		return pki.Refuse(pki.RuleRequest, "leave the time out", "an order cannot take effect at %s, which is yet to come",
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
		return pki.Refuse(pki.RuleRequest, "revoke, hold or release", "an order has no action %d", o.Action)
	}
	if !reasonFits {
		return pki.Refuse(pki.RuleReason, "revoke for any other reason of RFC 5280 section 5.3.1; hold and release take none",
			"%v is no reason to %v", o.Reason, o.Action)
	}
	if !stateFits {
		return pki.Refuse(pki.RuleRequest, "hold suspends an identity, revoking may retire it, release restores it",
			"an order to %v does not make its subject %v", o.Action, o.State)
	}
	if o.Action != Revoke && !o.InvalidSince.IsZero() {
		return pki.Refuse(pki.RuleRequest, "leave the invalidity date out, or revoke", "to %v says nothing about when something became invalid", o.Action)
	}
	if err := checkSince(o.InvalidSince, o.At); err != nil {
		return err
	}
	return checkWhy(o.Comment)
}

// CheckSubject refuses an order that is not about exactly one certificate, identity or key, and an order about a key for
// another reason than keyCompromise.
func (o Change) CheckSubject() error {
	subjects := 0
	for _, none := range []bool{o.Certificate.IsZero(), o.Identity.IsZero(), o.Key.IsZero()} {
		if !none {
			subjects++
		}
	}
	if subjects != 1 {
		return pki.Refuse(pki.RuleRequest, "name one certificate, one identity or one key", "an order is about exactly one of them")
	}
	if !o.Key.IsZero() && (o.Action != Revoke || o.Reason != pki.KeyCompromise) {
		return pki.Refuse(pki.RuleReason, "revoke it for keyCompromise", "an order about a key can do nothing else")
	}
	return nil
}

// String returns the action as a verb.
func (a Action) String() string {
	switch a {
	case Revoke:
		return "revoke"
	case Hold:
		return "hold"
	case Unhold:
		return "release"
	default:
		return fmt.Sprintf("action(%d)", uint8(a))
	}
}

// now returns the time cut to the second, as certificates, CRLs and statuses have it.
func (a *Authority) now() time.Time { return a.clock().UTC().Truncate(time.Second) }
