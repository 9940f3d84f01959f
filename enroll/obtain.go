package enroll

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// obtain makes one try for a new credential: by renewal where the present one is valid, else with a token.
func (a *Agent) obtain(ctx context.Context) error {
	pair := a.Pair()
	if pair == nil || pair.Expired(a.now()) {
		token, err := a.token()
		if err != nil {
			return a.stranded(err)
		}
		return a.enroll(ctx, token)
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
			a.config.Log.Warn("the renewal was refused, and a token cannot be had", "error", tokenErr)
		}
		return err
	}
	a.config.Log.Warn("the renewal was refused: enrolling with a new token", "error", err)
	return a.enroll(ctx, token)
}

// token returns a token that was not spent on the present credential.
func (a *Agent) token() (Token, error) {
	if a.config.Token == nil {
		return Token{}, ErrNoToken
	}
	t, err := a.config.Token()
	if err != nil {
		return Token{}, err
	}
	if p := a.Pair(); p != nil && p.Origin.Token == t.Secret.ID().String() {
		return Token{}, fmt.Errorf("%w but the one that is spent", ErrNoToken)
	}
	return t, nil
}

// stranded says why nothing can be done without a token.
func (a *Agent) stranded(err error) error {
	why := "there is no credential yet"
	if p := a.Pair(); p != nil {
		why = fmt.Sprintf("the certificate of %s ended at %s by this machine's clock", p.ID(), p.Certificate.NotAfter.Format(time.RFC3339))
		if f := a.status.RenewalFailure; f != nil {
			why += fmt.Sprintf(", its last renewal failed at %s (%s)", f.At.UTC().Format(time.RFC3339), f)
		}
	} else if a.broken != nil {
		why = a.broken.Error()
	}
	return fmt.Errorf("enroll: %s, and %w: ask an operator for an enrollment token and give it to the agent", why, err)
}

func (a *Agent) enroll(ctx context.Context, t Token) error {
	spent := t.Secret.ID().String()
	r, csr, err := a.request("token " + spent)
	if err != nil {
		return err
	}
	callCtx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := a.config.Authority.Enroll(callCtx, EnrollRequest{
		RequestID: r.id, Bootstrap: t.Bootstrap, Evidence: []pki.Evidence{t.Secret.Evidence()}, CSR: csr, Lifetime: a.config.Lifetime,
	})
	if err != nil {
		return a.refused(err)
	}
	pair, err := a.check(c, r, Origin{Server: t.Server, Token: spent})
	if err != nil {
		return err
	}
	if pair.ID().TrustDomain() != t.TrustDomain {
		return fmt.Errorf("enroll: the certificate names %s, and the token is for %s: make a new token", pair.ID(), t.TrustDomain)
	}
	return a.install(pair)
}

func (a *Agent) renew(ctx context.Context, current *Pair) error {
	r, csr, err := a.request("certificate " + current.Serial())
	if err != nil {
		return err
	}
	callCtx, cancel := context.WithTimeout(ctx, deadline(current, a.now()))
	defer cancel()
	c, err := a.config.Authority.Renew(callCtx, RenewRequest{RequestID: r.id, Current: current, CSR: csr, Lifetime: a.config.Lifetime})
	if err != nil {
		return a.refused(err)
	}
	pair, err := a.check(c, r, current.Origin)
	if err != nil {
		return err
	}
	if pair.ID() != current.ID() {
		return fmt.Errorf("enroll: the new certificate names %s instead of %s: it is not put in use", pair.ID(), current.ID())
	}
	// Asked again, the server answers with the same certificate.
	if now, from := a.now(), pair.Certificate.NotBefore; now.Before(from) && current.validAt(now) && current.validAt(from) {
		return fmt.Errorf("enroll: the new certificate is not valid before %s by this machine's clock, and the one in use stays so until then: "+
			"check this machine's clock, then the server's", from.Format(time.RFC3339))
	}
	return a.install(pair)
}

func (a *Agent) request(by string) (pending, []byte, error) {
	r, err := a.config.Directory.pend(by, a.config.KeyType)
	if err != nil {
		return r, nil, err
	}
	csr, err := newCSR(r.key)
	return r, csr, err
}

// refused forgets the request whose key was refused, so that the next one is made with a new key. All others stay:
// an answer that was lost is only found again by asking the same.
func (a *Agent) refused(err error) error {
	if refusal, ok := pki.AsRefusal(err); ok && (strings.HasPrefix(string(refusal.Rule), "key.") || refusal.Rule == pki.RuleRequestIDReused) {
		return errors.Join(err, a.config.Directory.settle())
	}
	return err
}

// check makes a pair of what an Authority answered, and refuses one that is of no use.
func (a *Agent) check(c Credential, r pending, from Origin) (*Pair, error) {
	now := a.now()
	from.Obtained, from.Renewal, from.BundleRevision = now.UTC().Round(0), c.Renewal, c.BundleRevision
	if c.Server != "" {
		from.Server = c.Server // where it was found this time: the server may have moved
	}
	pair, err := NewPair(c, r.key, from, now)
	if err != nil {
		return nil, fmt.Errorf("enroll: what the server issued is not put in use: %w", err)
	}
	if pair.Expired(now) {
		return nil, fmt.Errorf("enroll: what the server issued ended at %s by this machine's clock, and is not put in use: set the clock",
			c.Certificate.NotAfter.Format(time.RFC3339))
	}
	return pair, nil
}

// install makes a pair durable, then uses it. From the rename on it is in use, whatever fails after it.
func (a *Agent) install(p *Pair) error {
	if from := p.Certificate.NotBefore; a.now().Before(from) {
		a.config.Log.Warn("the new certificate is not valid yet by this machine's clock: set the clock", "not_before", from.Format(time.RFC3339))
	}
	dir := a.config.Directory
	if err := dir.install(p); err != nil {
		return err
	}
	if err := errors.Join(dir.settle(), dir.prune()); err != nil {
		a.config.Log.Warn("the new credential is in use, but the old one could not be cleared away", "error", err)
	}
	a.adopt(p)
	a.config.Log.Info("new credential", "identity", p.ID().String(), "serial", p.Serial(),
		"valid_until", p.Certificate.NotAfter.Format(time.RFC3339), "renew_at", a.renewAt.Format(time.RFC3339))
	return nil
}
