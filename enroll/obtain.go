package enroll

import (
	"context"
	"crypto"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/enroll/tpm"
	"github.com/brevet-pki/brevet/pki"
)

// obtain tries once to get a new credential. If the current one is valid, obtain renews it. Otherwise it enrolls with a
// token, or else recovers with the key of the expired certificate, or else enrolls with the attestation of its TPM.
func (a *Agent) obtain(ctx context.Context) error {
	pair := a.Pair()
	by, recovers := a.config.Authority.(recoverer)
	if pair == nil || pair.Expired(a.now()) {
		token, err := a.token()
		if err == nil {
			return a.enroll(ctx, token)
		}
		var refused error
		if pair != nil && recovers {
			refused = a.recover(ctx, by, pair)
			if refused == nil {
				return nil
			}
			if !final(refused) {
				return fmt.Errorf("%s, and recovering with its key failed: %w", a.whyToken(), refused)
			}
		}
		if a.config.Attestation != nil {
			return a.attest(ctx)
		}
		return a.needsToken(refused, err)
	}
	err := a.renew(ctx, pair)
	if err != nil {
		a.status.RenewalFailure = failureOf(err, a.obtaining.tries+1, a.now().Round(0))
	}
	if !final(err) {
		return err
	}
	token, tokenErr := a.token()
	if tokenErr != nil {
		if !errors.Is(tokenErr, ErrNoToken) {
			a.config.Log.Warn("the renewal was refused and reading a token failed, keeping the current credential",
				"error", tokenErr)
		}
		if refusal, _ := pki.AsRefusal(err); recovers && refusal.Rule == pki.RuleExpired { // by the server's clock
			return a.recover(ctx, by, pair)
		}
		return err
	}
	a.config.Log.Warn("the renewal was refused, enrolling with a new token", "error", err)
	return a.enroll(ctx, token)
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
	if p := a.Pair(); p != nil && p.Origin.Token == t.Secret.ID().String() {
		return Token{}, fmt.Errorf("%w except the one that is already used", ErrNoToken)
	}
	return t, nil
}

// needsToken returns an error that says why the agent needs a token, and why it has none. err is the second reason.
// refused is why the agent cannot recover, or nil.
func (a *Agent) needsToken(refused, err error) error {
	why := a.whyToken()
	if refused != nil {
		why += fmt.Sprintf(", the server does not let it recover (%s)", failureOf(refused, 1, time.Time{}))
	}
	return fmt.Errorf("%s, and %w: ask an operator for an enrollment token and give it to the agent", why, err)
}

// whyToken returns why the agent cannot renew.
func (a *Agent) whyToken() string {
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

// enroll sends one Enroll request with a token, and installs the issued credential.
func (a *Agent) enroll(ctx context.Context, t Token) error {
	spent := t.Secret.ID().String()
	send := func(ctx context.Context, r EnrollRequest, _ crypto.Signer) (Credential, error) {
		r.Bootstrap, r.Evidence = t.Bootstrap, []pki.Evidence{t.Secret.Evidence()}
		return a.config.Authority.Enroll(ctx, r)
	}
	pair, err := a.first(ctx, "token "+spent, Origin{Server: t.Server, Token: spent}, send)
	if err != nil {
		return err
	}
	if pair.ID().TrustDomain() != t.TrustDomain {
		return fmt.Errorf("the certificate names %s, but the token is for trust domain %s: make a new token",
			pair.ID(), t.TrustDomain)
	}
	return a.install(pair)
}

// attest sends one Enroll request with the attestation of the TPM, and installs the issued credential.
func (a *Agent) attest(ctx context.Context) error {
	by := a.config.Attestation
	ek, err := a.config.Directory.tpm.Endorsement()
	if err != nil {
		return err
	}
	hash := hex.EncodeToString(ek.Hash[:])
	a.config.Log.Info("enrolling with the attestation of the TPM", "endorsement_key", hash)
	send := func(ctx context.Context, r EnrollRequest, key crypto.Signer) (Credential, error) {
		inTPM, ok := key.(*tpm.Key)
		if !ok {
			return Credential{}, errors.New("the key of the request is not in the TPM")
		}
		r.Bootstrap = by.Bootstrap
		return by.Client.EnrollWith(ctx, r, TPMKey(inTPM))
	}
	pair, err := a.first(ctx, "tpm "+hash, Origin{Server: by.Bootstrap.Server, Attested: true}, send)
	if err != nil {
		return err
	}
	if pair.ID().TrustDomain() != by.Bootstrap.TrustDomain {
		return fmt.Errorf("the certificate names %s, but the configured trust domain is %s: correct it",
			pair.ID(), by.Bootstrap.TrustDomain)
	}
	return a.install(pair)
}

// first sends one request for a first certificate, whose evidence send adds, and returns the new pair.
func (a *Agent) first(
	ctx context.Context, by string, from Origin, send func(context.Context, EnrollRequest, crypto.Signer) (Credential, error),
) (*Pair, error) {
	r, csr, err := a.request(by)
	if err != nil {
		return nil, err
	}
	callCtx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	c, err := send(callCtx, EnrollRequest{RequestID: r.id, CSR: csr, Lifetime: a.config.Lifetime, Identity: a.config.Identity}, r.key)
	if err != nil {
		return nil, a.refused(err)
	}
	return a.check(c, r, from)
}

// renew sends a Renew request with the current pair, and installs the issued credential. If the server does not accept
// that the new key is in hardware, renew sends another request, with the key of the current pair.
func (a *Agent) renew(ctx context.Context, current *Pair) error {
	by := "certificate " + current.Serial()
	r, csr, err := a.request(by)
	if err != nil {
		return err
	}
	req := RenewRequest{RequestID: r.id, Current: current, CSR: csr, Lifetime: a.config.Lifetime}
	if key, ok := r.key.(*tpm.Key); ok && current.Origin.Attested {
		if _, err := key.Device().Endorsement(); err != nil { // before the timeout starts, because the first call is slow
			return err
		}
		req.Prover = TPMKey(key)
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
