package enroll

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/enroll/tpm"
	"github.com/brevet-pki/brevet/pki"
)

// obtain tries once to get a new credential. If the current one is valid, obtain renews it. If it has expired, obtain
// enrolls with a new token, or else recovers with its key, or else enrolls with other evidence.
func (a *Agent) obtain(ctx context.Context) error {
	pair := a.Pair()
	if pair == nil || pair.Expired(a.now()) {
		return a.start(ctx, pair)
	}
	err := a.renew(ctx, pair)
	if err != nil {
		a.status.RenewalFailure = failureOf(err, a.obtaining.tries+1, a.now().Round(0))
	}
	if !final(err) {
		return err
	}
	if a.config.Token != nil {
		o, offerErr := a.offer()
		if offerErr == nil {
			a.config.Log.Warn("the renewal was refused, enrolling with a new token", "error", err)
			return a.enroll(ctx, o)
		}
		if !errors.Is(offerErr, ErrNoToken) {
			a.config.Log.Warn("the renewal was refused and reading the evidence for an enrollment failed, keeping the current credential",
				"error", offerErr)
		}
	}
	if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule == pki.RuleExpired { // by the server's clock
		return a.recover(ctx, pair)
	}
	return err
}

// start gets a credential when there is none that is valid. expired is the current one, or nil.
func (a *Agent) start(ctx context.Context, expired *Pair) error {
	o, err := a.offer()
	if err == nil && (expired == nil || o.token != "") {
		return a.enroll(ctx, o)
	}
	var refused error
	if expired != nil {
		if refused = a.recover(ctx, expired); refused == nil {
			return nil
		}
		// If the key is lost, for instance with its TPM, only other evidence helps.
		if pki.IsTemporary(refused) || !final(refused) && err != nil {
			return fmt.Errorf("%s, and recovering with its key failed: %w", a.whyNoRenewal(), refused)
		}
	}
	if err != nil {
		return a.explainNoOffer(refused, err)
	}
	a.warnNotRecovered(refused)
	if err := a.enroll(ctx, o); err != nil {
		return &afterRecoveryError{err, failureOf(refused, 1, a.now())}
	}
	return nil
}

// warnNotRecovered logs why the agent cannot recover, before it enrolls with other evidence.
func (a *Agent) warnNotRecovered(err error) {
	attrs := []any{"error", err}
	if refusal, ok := pki.AsRefusal(err); ok {
		attrs = append(attrs, "rule", string(refusal.Rule), "hint", refusal.Hint)
	}
	a.config.Log.Warn("recovering with the expired certificate failed, enrolling with other evidence", attrs...)
}

// afterRecoveryError is the error of an enrollment after a recovery failed. It wraps that of the enrollment alone, which
// says whether the agent retries soon.
type afterRecoveryError struct {
	error
	recovery *Failure
}

func (e *afterRecoveryError) Unwrap() error { return e.error }

func (e *afterRecoveryError) Error() string { return e.error.Error() + e.cause() }

// cause returns a text about the recovery that follows the error of the enrollment.
func (e *afterRecoveryError) cause() string {
	return fmt.Sprintf("; recovering with the expired certificate had failed before (%s)", e.recovery)
}

// offer is what the agent enrolls with.
type offer struct {
	bootstrap Bootstrap
	evidence  []Evidence
	token     string // the ID of the token in evidence; empty if there is none
}

// offer returns everything that the agent is configured to enroll with.
func (a *Agent) offer() (offer, error) {
	if a.config.Token == nil && a.config.Evidence != nil {
		evidence, err := a.config.Evidence()
		return offer{bootstrap: a.config.Bootstrap, evidence: evidence}, err
	}
	t, err := a.token()
	if err != nil {
		return offer{}, err
	}
	return a.offerWith(t)
}

// offerWith returns a token and the other evidence that the agent is configured to enroll with.
func (a *Agent) offerWith(t Token) (offer, error) {
	o := offer{t.Bootstrap, []Evidence{t}, t.Subject()}
	if b := a.config.Bootstrap; b != (Bootstrap{}) && (b.RootFingerprint != t.RootFingerprint || b.TrustDomain != t.TrustDomain) {
		return o, fmt.Errorf("the token is for the trust domain %s with the root %x, and the configuration names %s with %x: "+
			"make a new token, or correct the configuration", t.TrustDomain, t.RootFingerprint, b.TrustDomain, b.RootFingerprint)
	}
	if a.config.Evidence == nil {
		return o, nil
	}
	more, err := a.config.Evidence()
	o.evidence = append(o.evidence, more...)
	return o, err
}

// by returns what identifies the authorization of the request, see [pending].
func (o offer) by() string {
	var all []string
	for _, e := range o.evidence {
		all = append(all, e.Kind().String()+" "+e.Subject())
	}
	return strings.Join(all, " and ")
}

// logged returns the same for the log. It says of which part of a factory certificate the hash is, because the server's log
// has another one.
func (o offer) logged() string {
	var all []string
	for _, e := range o.evidence {
		kind := e.Kind().String()
		if e.Kind() == pki.EvidenceX5C {
			kind += " certificate SHA-256"
		}
		all = append(all, kind+" "+e.Subject())
	}
	return strings.Join(all, " and ")
}

// token returns the configured token, unless the current credential was obtained with it.
func (a *Agent) token() (Token, error) {
	if a.config.Token == nil {
		return Token{}, ErrNoToken
	}
	t, err := a.config.Token()
	if err != nil {
		return Token{}, err
	}
	if p := a.Pair(); p != nil && p.Origin.Token == t.Subject() {
		return Token{}, fmt.Errorf("%w except the one that is already used", ErrNoToken)
	}
	return t, nil
}

// explainNoOffer returns an error that says why the agent must enroll, and why it has nothing to enroll with. err is
// the second reason. refused is why the agent cannot recover, or nil.
func (a *Agent) explainNoOffer(refused, err error) error {
	why := a.whyNoRenewal()
	if refused != nil {
		why += fmt.Sprintf(", the server does not let it recover (%s)", failureOf(refused, 1, time.Time{}))
	}
	if errors.Is(err, ErrNoToken) {
		return fmt.Errorf("%s, and %w: ask an operator for an enrollment token and give it to the agent", why, err)
	}
	return fmt.Errorf("%s, and the agent cannot enroll: %w", why, err)
}

// whyNoRenewal returns why the agent cannot renew.
func (a *Agent) whyNoRenewal() string {
	why := "there is no credential yet"
	if p := a.Pair(); p != nil {
		why = fmt.Sprintf("the certificate of %s expired at %s by this machine's clock", p.ID(), p.Certificate.NotAfter.Format(time.RFC3339))
		if f := a.status.RenewalFailure; f != nil {
			why += fmt.Sprintf(", its last renewal failed at %s (%s)", f.At.UTC().Format(time.RFC3339), f)
		}
	} else if a.broken != nil {
		why = a.broken.Error()
	}
	return why
}

// enroll sends one Enroll request, and installs the issued credential.
func (a *Agent) enroll(ctx context.Context, o offer) error {
	by := o.by()
	a.config.Log.Info("enrolling", "evidence", o.logged())
	r, csr, err := a.request(by)
	if err != nil {
		return err
	}
	callCtx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	c, err := a.config.Authority.Enroll(callCtx, EnrollRequest{
		RequestID: r.id, Bootstrap: o.bootstrap, Evidence: o.evidence, CSR: csr, Key: r.key, Lifetime: a.config.Lifetime,
		Identity: a.config.Identity,
	})
	if err != nil {
		return a.refused(err)
	}
	attested := slices.ContainsFunc(o.evidence, func(e Evidence) bool { return e.Kind() == pki.EvidenceTPM })
	pair, err := a.check(c, r, Origin{Server: o.bootstrap.Server, Token: o.token, Attested: attested})
	if err != nil {
		return err
	}
	if pair.ID().TrustDomain() != o.bootstrap.TrustDomain {
		return fmt.Errorf("the certificate names %s, but the agent enrolls in the trust domain %s: make a new token, or correct "+
			"trust_domain", pair.ID(), o.bootstrap.TrustDomain)
	}
	return a.install(pair)
}

// renew sends a Renew request with the current pair, and installs the issued credential. If the server does not accept
// that the new key is in hardware, renew sends another request, with the key of the current pair.
func (a *Agent) renew(ctx context.Context, current *Pair) error {
	by := "certificate " + current.Serial()
	r, csr, err := a.request(by)
	if err != nil {
		return err
	}
	req := RenewRequest{RequestID: r.id, Current: current, CSR: csr, Key: r.key, Lifetime: a.config.Lifetime}
	if key, ok := r.key.(*tpm.Key); ok && current.Origin.Attested {
		// This is before the timeout starts, because the first call is slow.
		if req.Evidence, err = Attestation(key.Device()); err != nil {
			return err
		}
	}
	callCtx, cancel := context.WithTimeout(ctx, timeoutFor(current, a.now()))
	defer cancel()
	c, err := a.config.Authority.Renew(callCtx, req)
	if refusal, _ := pki.AsRefusal(err); refusal != nil && refusal.Rule == pki.RuleHardwareKey && !sameKey(r.key, current.Key) {
		a.config.Log.Warn("the server does not accept the new key, renewing with the current one", "error", err)
		if _, err := a.config.Directory.newPending(by, current.Key); err != nil {
			return err
		}
		return a.renew(ctx, current)
	}
	if err != nil {
		return a.refused(err)
	}
	pair, err := a.check(c, r, current.Origin)
	if err != nil {
		return err
	}
	if err := a.succeeds(pair, current); err != nil {
		return err
	}
	return a.install(pair)
}

// succeeds returns an error if a new pair cannot replace the current one.
func (a *Agent) succeeds(pair, current *Pair) error {
	if pair.ID() != current.ID() {
		return fmt.Errorf("the new certificate names %s instead of %s and is discarded",
			pair.ID(), current.ID())
	}
	// Discarding the new certificate does not lose it: the server returns it again when the agent repeats the request.
	if now, from := a.now(), pair.Certificate.NotBefore; now.Before(from) && current.validAt(now) && current.validAt(from) {
		return fmt.Errorf("the new certificate is not valid before %s by this machine's clock, and the current one is until then: "+
			"check this machine's clock, then the server's", from.Format(time.RFC3339))
	}
	return nil
}

// sameKey reports whether two keys have the same public key.
func sameKey(a, b crypto.Signer) bool {
	public, ok := a.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(b.Public())
}

// request returns the request in progress with this authorization, or else a new one. It also returns the request's
// CSR. See [pending] for by.
func (a *Agent) request(by string) (pending, []byte, error) {
	r, err := a.config.Directory.preparePending(by, a.config.KeyType)
	if err != nil {
		return r, nil, err
	}
	csr, err := newCSR(r.key)
	return r, csr, err
}

// refused discards the request in progress if the server refused its key, so that the next request has a new key. It
// keeps all other requests, because the server returns a lost response only to the same request.
func (a *Agent) refused(err error) error {
	if refusal, ok := pki.AsRefusal(err); ok && (strings.HasPrefix(string(refusal.Rule), "key.") || refusal.Rule == pki.RuleRequestIDReused) {
		return errors.Join(err, a.config.Directory.removePending())
	}
	return err
}

// check makes a pair from the Authority's response. It returns an error if the pair cannot be used.
func (a *Agent) check(c Credential, r pending, from Origin) (*Pair, error) {
	pair, err := a.newPair(c, r, from)
	if err != nil {
		return nil, err
	}
	if pair.Expired(a.now()) {
		return nil, fmt.Errorf("the issued certificate expired at %s by this machine's clock and is discarded: set the clock",
			c.Certificate.NotAfter.Format(time.RFC3339))
	}
	return pair, nil
}

// newPair makes a pair from the Authority's response, which may have expired.
func (a *Agent) newPair(c Credential, r pending, from Origin) (*Pair, error) {
	now := a.now()
	from.Obtained, from.Renewal, from.BundleRevision, from.TPM = now.UTC().Round(0), c.Renewal, c.BundleRevision, homeOf(r.key)
	if c.Server != "" {
		from.Server = c.Server // the agent may have been configured with a new address
	}
	pair, err := NewPair(c, r.key, from, now)
	if err != nil {
		return nil, fmt.Errorf("the issued certificate is discarded: %w", err)
	}
	return pair, nil
}

// install stores a pair and then puts it in use. If a step after the rename fails, the pair stays in use.
func (a *Agent) install(p *Pair) error {
	if from := p.Certificate.NotBefore; a.now().Before(from) {
		a.config.Log.Warn("the new certificate is not valid yet by this machine's clock, set the clock",
			"not_before", from.Format(time.RFC3339))
	}
	dir := a.config.Directory
	if err := dir.install(p); err != nil {
		return err
	}
	if err := errors.Join(dir.removePending(), dir.prune()); err != nil {
		a.config.Log.Warn("removing an old credential failed, the new one is in use", "error", err)
	}
	a.adopt(p)
	a.config.Log.Info("new credential", "identity", p.ID().String(), "serial", p.Serial(),
		"valid_until", p.Certificate.NotAfter.Format(time.RFC3339), "renew_at", a.renewAt.Format(time.RFC3339))
	return nil
}
