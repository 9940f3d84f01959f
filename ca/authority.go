package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Request says what was decided: who gets a certificate for which key under which profile, and what must still hold
// when it is recorded.
type Request struct {
	RequestID pki.RequestID
	Identity  pki.SPIFFEID
	Profile   string
	// Issuer chooses an issuing CA; zero for the current one.
	Issuer pki.IssuerID
	Names  Names
	Key    crypto.PublicKey
	// Lifetime is zero for the profile's default.
	Lifetime time.Duration
	Guard    pki.Guard
	Actor    pki.Actor
}

// Certificate is an issued certificate, on record.
type Certificate struct {
	Ref      pki.CertRef
	DER      []byte
	NotAfter time.Time
}

// Observer is told of status changes that issuing made, after they are durable and before the certificate is
// released, so that a responder knows every certificate before a relying party can ask about it. It must not block.
type Observer interface {
	Apply(changes ...pki.StatusChange)
}

// Config is what an Authority is made of. All fields are needed.
type Config struct {
	Issuers  []Issuer // the last one is the current one
	Profiles map[string]*Profile
	Journal  Journal
	Observer Observer
	Meter    Meter
	Clock    func() time.Time
	Log      *slog.Logger
}

// Authority issues certificates. It is safe for concurrent use.
type Authority struct {
	issuers  map[pki.IssuerID]Issuer
	current  pki.IssuerID
	profiles map[string]*Profile
	lints    map[pki.IssuerID]understudy
	clock    func() time.Time
	meter    Meter
	writer   *writer
}

// New lints every profile, opens a new epoch of the journal, settles what earlier epochs left pending, and starts the
// Authority's writer. Close stops it.
func New(ctx context.Context, c Config) (*Authority, error) {
	if len(c.Issuers) == 0 {
		return nil, errors.New("ca: no issuing CA is installed: run brevet ceremony install")
	}
	a := &Authority{
		issuers: map[pki.IssuerID]Issuer{}, lints: map[pki.IssuerID]understudy{},
		profiles: c.Profiles, clock: c.Clock, meter: c.Meter,
	}
	for _, iss := range c.Issuers {
		u, err := newUnderstudy(iss)
		if err != nil {
			return nil, err
		}
		a.issuers[iss.ID], a.lints[iss.ID], a.current = iss, u, iss.ID
	}
	now := c.Clock()
	if cur := a.issuers[a.current].Certificate; now.After(cur.NotAfter) || now.Before(cur.NotBefore) {
		return nil, fmt.Errorf("ca: the issuing CA %s is not valid at %s: check the clock, or install the next CA generation",
			cur.Subject, now.UTC().Format(time.RFC3339))
	}
	for _, p := range c.Profiles {
		if err := a.lints[a.current].lintProfile(p, now); err != nil {
			return nil, err
		}
	}
	w, err := newWriter(ctx, c)
	if err != nil {
		return nil, err
	}
	a.writer = w
	return a, nil
}

// Issuer returns an issuing CA by its ID, and whether there is one.
func (a *Authority) Issuer(id pki.IssuerID) (Issuer, bool) {
	iss, ok := a.issuers[id]
	return iss, ok
}

// Current returns the CA that issues where a request names none.
func (a *Authority) Current() Issuer { return a.issuers[a.current] }

// Profile returns a profile by its name.
func (a *Authority) Profile(name string) (*Profile, error) {
	p, ok := a.profiles[name]
	if !ok {
		return nil, pki.Refuse(pki.RuleProfile, "use one of "+names(a.profiles), "there is no profile %q", name)
	}
	return p, nil
}

// Check returns the refusal that Issue would meet for what the request asks, and signs and records nothing.
func (a *Authority) Check(req Request) error {
	_, err := a.draft(req)
	return err
}

// Issue signs one certificate and returns it once it is on record: one call in, one certificate or one typed error
// out. The error is a *pki.Refusal where another request would pass, and Temporary where this one would pass later,
// under the same request ID: it may even have been recorded meanwhile, and a retry then finds the record.
//
// The steps are those of docs/architecture.md, "The life of a certificate".
func (a *Authority) Issue(ctx context.Context, req Request) (Certificate, error) {
	// 3. The certificate is built from its profile and a fresh serial.
	d, err := a.draft(req)
	if err != nil {
		return Certificate{}, err
	}
	release, err := a.writer.admit()
	if err != nil {
		return Certificate{}, err
	}
	defer release()
	// 4 and 5. CreateCertificate hands the digest to the one-shot signer, which waits for the durable intent and then
	// has the token sign, once. CreateCertificate verifies the signature it got.
	s := &oneShot{ctx: ctx, writer: a.writer, meter: a.meter, issuer: d.issuer, item: d.item}
	der, err := x509.CreateCertificate(rand.Reader, d.template, d.issuer.Certificate, req.Key, s)
	if err != nil {
		a.writer.abandon(d.item)
		return Certificate{}, signingError(err)
	}
	// 6. The record, with the guards checked again, is made durable; 7. only then is the certificate released.
	d.record.DER = der
	recorded := a.meter.Begin(ctx, StepRecord)
	err = a.writer.record(ctx, d.item, d.record)
	recorded(err)
	if err != nil {
		return Certificate{}, err
	}
	a.meter.Issued(req.Profile)
	return Certificate{Ref: d.record.Ref, DER: der, NotAfter: d.record.NotAfter}, nil
}

// draft is a certificate before its signature.
type draft struct {
	issuer   Issuer
	template *x509.Certificate
	item     *item
	record   Record
}

func (a *Authority) draft(req Request) (*draft, error) {
	if req.Issuer.IsZero() {
		req.Issuer = a.current
	}
	iss, ok := a.issuers[req.Issuer]
	if !ok {
		return nil, pki.Refuse(pki.RuleNotFound, "leave the issuer unset", "this server does not issue for %s", req.Issuer.Short())
	}
	p, err := a.Profile(req.Profile)
	if err != nil {
		return nil, err
	}
	if err := iss.checkConstraints(req.Identity, req.Names); err != nil {
		return nil, err
	}
	now := a.clock()
	serial, err := drawSerial(now)
	if err != nil {
		return nil, err
	}
	template, err := p.template(iss, req, serial, now)
	if err != nil {
		return nil, err
	}
	if p.lintEach {
		if err := a.lints[req.Issuer].lint(template, req.Key); err != nil {
			return nil, err
		}
	}
	key, err := pki.HashKey(req.Key)
	if err != nil {
		return nil, err
	}
	ref := pki.CertRef{Issuer: req.Issuer, Serial: serial}
	return &draft{
		issuer: iss, template: template,
		item: newItem(IntentItem{Ref: ref, NotAfter: template.NotAfter}),
		record: Record{
			Ref: ref, Identity: req.Identity, Profile: req.Profile, KeyHash: key, NotBefore: template.NotBefore,
			NotAfter: template.NotAfter, RequestID: req.RequestID, Actor: req.Actor, Guard: req.Guard,
		},
	}, nil
}

func drawSerial(now time.Time) (pki.Serial, error) {
	var random [pki.SerialRandomSize]byte
	if _, err := rand.Read(random[:]); err != nil {
		return pki.Serial{}, fmt.Errorf("ca: draw a serial number: %w", err)
	}
	return pki.MakeSerial(now, random)
}

// oneShot is the crypto.Signer of one certificate: it announces the digest, waits for the intent, and signs once.
type oneShot struct {
	ctx    context.Context //nolint:containedctx // crypto.Signer has no context, and this one lives for one call
	writer *writer
	meter  Meter
	issuer Issuer
	item   *item
	used   bool
}

// Public returns the issuing CA's public key.
func (s *oneShot) Public() crypto.PublicKey { return s.issuer.Signer.Public() }

// Sign signs the certificate after its intent is durable. A second call is refused.
func (s *oneShot) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if s.used {
		return nil, errors.New("ca: this signer has signed its one certificate")
	}
	s.used = true
	s.item.intent.Digest = digest
	if opts.HashFunc() == 0 {
		sum := sha256.Sum256(digest)
		s.item.intent.Digest = sum[:]
	}
	announced := s.meter.Begin(s.ctx, StepIntent)
	err := s.writer.announce(s.ctx, s.item)
	announced(err)
	if err != nil {
		return nil, err
	}
	signed := s.meter.Begin(s.ctx, StepSign)
	signature, err := s.issuer.Signer.Sign(random, digest, opts)
	signed(err)
	return signature, err
}

// signingError keeps typed errors and makes a temporary one of what the token or CreateCertificate said otherwise.
func signingError(err error) error {
	var u *unavailable
	if errors.As(err, &u) || errors.Is(err, ErrFenced) {
		return err
	}
	after := pki.RetryAfter(err)
	if after == 0 {
		after = time.Second
	}
	return &unavailable{what: "the token did not sign: the certificate was not issued", after: after, cause: err}
}

// InFlight returns how many certificates are between draft and release.
func (a *Authority) InFlight() int { return len(a.writer.slots) }

// Fenced reports whether another process has taken over the journal: this one never issues again.
func (a *Authority) Fenced() bool { return a.writer.lost.Load() }

// Close finishes what is in flight, settles it, and stops the writer. Issue calls after Close are Temporary errors. It
// returns early, with an error, when ctx ends first; what is then pending is settled by the next process.
func (a *Authority) Close(ctx context.Context) error { return a.writer.close(ctx) }
