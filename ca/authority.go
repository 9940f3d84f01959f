package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Request says what was decided: who gets a certificate for which key under which profile, and what must still hold
// when it is recorded.
type Request struct {
	RequestID pki.RequestID
	Identity  pki.SPIFFEID
	Profile   string
	// IssuingCA chooses an issuing CA; zero for the current one.
	IssuingCA pki.IssuerID
	Names     Names
	Key       crypto.PublicKey
	// Lifetime is zero for the profile's default.
	Lifetime time.Duration
	Guard    pki.Guard
	Actor    pki.Actor
	// MayWait has Issue wait where as many certificates are in flight as may be, instead of refusing.
	MayWait bool
}

// Certificate is an issued certificate, on record.
type Certificate struct {
	Ref      pki.CertRef
	DER      []byte
	NotAfter time.Time
}

// Config is what an Authority is made of. All fields are needed.
type Config struct {
	IssuingCAs []IssuingCA // the last one is the current one
	Profiles   map[string]*Profile
	// Partitions is how many parts the CRL of each issuing CA has, over which the certificates of partitioned profiles are
	// spread: 1 to MaxPartitions. It may be another number than before: what was issued keeps its partition.
	Partitions int
	Journal    Journal
	Observer   pki.StatusObserver // notified before a certificate is delivered
	Meter      Meter
	Clock      func() time.Time
	Log        *slog.Logger
}

// Authority issues certificates. It is safe for concurrent use.
type Authority struct {
	issuingCAs map[pki.IssuerID]IssuingCA
	current    pki.IssuerID
	profiles   map[string]*Profile
	lints      map[pki.IssuerID]lintSigner
	trialCAs   map[pki.IssuerID]*trialCA
	encoders   map[encoderKey]*tbsEncoder
	parts      int // of a CRL
	clock      func() time.Time
	meter      Meter
	writer     *writer
}

// New lints every profile, opens a new epoch of the journal, settles what earlier epochs left pending, and starts the
// Authority's writer. Close stops it.
func New(ctx context.Context, c Config) (*Authority, error) {
	if len(c.IssuingCAs) == 0 {
		return nil, errors.New("ca: no issuing CA is installed: run brevet ceremony install")
	}
	if err := CheckPartitions(c.Partitions); err != nil {
		return nil, fmt.Errorf("ca: partitions of CRLs: %w", err)
	}
	a := &Authority{
		issuingCAs: map[pki.IssuerID]IssuingCA{}, lints: map[pki.IssuerID]lintSigner{}, trialCAs: map[pki.IssuerID]*trialCA{},
		encoders: map[encoderKey]*tbsEncoder{}, profiles: c.Profiles, parts: c.Partitions, clock: c.Clock, meter: c.Meter,
	}
	for _, iss := range c.IssuingCAs {
		u, err := newLintSigner(iss)
		if err != nil {
			return nil, err
		}
		if a.trialCAs[iss.ID], err = newTrialCA(iss); err != nil {
			return nil, err
		}
		a.issuingCAs[iss.ID], a.lints[iss.ID], a.current = iss, u, iss.ID
	}
	now := c.Clock()
	if err := a.Current().checkTime(now); err != nil {
		return nil, err
	}
	if err := a.encoderFor(now); err != nil {
		return nil, err
	}
	w, err := newWriter(ctx, c)
	if err != nil {
		return nil, err
	}
	a.writer = w
	return a, nil
}

// encoderKey names a layout.
type encoderKey struct {
	issuer  pki.IssuerID
	profile *Profile
}

// encoderFor prepares what each CA issues, be it not valid now, and lints what the current one does.
func (a *Authority) encoderFor(now time.Time) error {
	for id, u := range a.lints {
		within := now
		if c := u.issuer.Certificate; now.Before(c.NotBefore) {
			within = c.NotBefore
		} else if !now.Before(c.NotAfter) {
			within = c.NotAfter.Add(-time.Second)
		}
		for _, p := range a.profiles {
			l, err := u.encoder(p, within)
			if err != nil {
				return err
			}
			a.encoders[encoderKey{id, p}] = l
			if id != a.current {
				continue
			}
			if err := u.lintProfile(p, l, now); err != nil {
				return err
			}
		}
	}
	return nil
}

// Chain returns the CA certificates that go with a certificate of an issuing CA, and their root. It refuses a CA that is
// not served here any more.
func (a *Authority) Chain(id pki.IssuerID) (chain []*x509.Certificate, root *x509.Certificate, err error) {
	iss, ok := a.issuingCAs[id]
	if !ok {
		return nil, nil, pki.Refuse(pki.RuleNotFound, "renew or enroll anew", "the certificate's CA %s is not served here any more", id.Short())
	}
	return iss.Chain, iss.Root, nil
}

// Current returns the CA that issues where a request names none.
func (a *Authority) Current() IssuingCA { return a.issuingCAs[a.current] }

// Profile returns a profile by its name.
func (a *Authority) Profile(name string) (*Profile, error) {
	p, ok := a.profiles[name]
	if !ok {
		return nil, pki.Refuse(pki.RuleProfile, "use one of "+names(a.profiles), "there is no profile %q", name)
	}
	return p, nil
}

// CheckNames refuses names that the current CA's chain excludes by a name constraint.
func (a *Authority) CheckNames(id pki.SPIFFEID, n Names) error {
	return a.trialCAs[a.current].checkNames(id, n)
}

// Draft is a certificate before its signature, and what must still hold when it is recorded. It is issued once.
type Draft struct {
	issuingCA IssuingCA
	encoder   *tbsEncoder
	tbs       []byte // TBSCertificate
	message   []byte // what the key signs of it
	item      *item
	record    Record
	mayWait   bool
	used      atomic.Bool
}

// Draft builds the certificate of a request from its profile and a fresh serial, or returns the *pki.Refusal of what the
// request asks. It signs and records nothing: a draft may be dropped.
func (a *Authority) Draft(req Request) (*Draft, error) {
	if req.IssuingCA.IsZero() {
		req.IssuingCA = a.current
	}
	iss, ok := a.issuingCAs[req.IssuingCA]
	if !ok {
		return nil, pki.Refuse(pki.RuleNotFound, "leave the issuer unset", "this server does not issue for %s", req.IssuingCA.Short())
	}
	p, err := a.Profile(req.Profile)
	if err != nil {
		return nil, err
	}
	if err := a.trialCAs[req.IssuingCA].checkNames(req.Identity, req.Names); err != nil {
		return nil, err
	}
	now := a.clock()
	serial, err := newSerial(now)
	if err != nil {
		return nil, err
	}
	partition := p.partitionOf(serial, a.parts)
	template, err := p.template(iss, req, serial, partition, now)
	if err != nil {
		return nil, err
	}
	l := a.encoders[encoderKey{req.IssuingCA, p}]
	tbs, err := l.tbs(template)
	if err != nil {
		return nil, fmt.Errorf("ca: write the certificate of %s: %w", req.Identity, err)
	}
	if p.lintEach {
		if err := a.lints[req.IssuingCA].lint(l, tbs); err != nil {
			return nil, err
		}
	}
	message, ref := l.message(tbs), pki.CertRef{Issuer: req.IssuingCA, Serial: serial}
	return &Draft{
		issuingCA: iss, encoder: l, tbs: tbs, message: message, mayWait: req.MayWait,
		item: newItem(IntentItem{Ref: ref, Digest: digestOf(message, l.hash), NotAfter: template.NotAfter, Partition: partition}),
		record: Record{
			Ref: ref, Identity: req.Identity, Profile: req.Profile, KeyHash: pki.HashSPKI(template.RawSubjectPublicKeyInfo),
			NotBefore: template.NotBefore, NotAfter: template.NotAfter, Partition: partition,
			RequestID: req.RequestID, Actor: req.Actor, Guard: req.Guard,
		},
	}, nil
}

// digestOf is what an intent keeps of a message: for Ed25519, which signs the message itself, its SHA-256.
func digestOf(message []byte, hash crypto.Hash) []byte {
	if hash != 0 {
		return message
	}
	sum := sha256.Sum256(message)
	return sum[:]
}

// Issue signs one certificate and returns it once it is on record: one draft in, one certificate or one typed error
// out. The error is a *pki.Refusal where another request would pass, and Temporary where this one would pass later,
// under the same request ID: it may even have been recorded meanwhile, and a retry then finds the record.
//
// The steps are those of docs/architecture.md, "The life of a certificate".
func (a *Authority) Issue(ctx context.Context, d *Draft) (Certificate, error) {
	if d.used.Swap(true) {
		return Certificate{}, errors.New("ca: this draft was issued before")
	}
	release, err := a.admit(ctx, d)
	if err != nil {
		return Certificate{}, err
	}
	defer release()
	// Whatever ends this before the record is handed over, a panic included, the batch must not wait for it.
	handed := false
	defer func() {
		if !handed {
			a.writer.abandon(d.item)
		}
	}()
	// 4. The intent is durable before the key is used.
	end := a.meter.Begin(ctx, StepIntent, d.issuingCA.ID)
	err = a.writer.prepare(ctx, d.item)
	end(err)
	if err != nil {
		return Certificate{}, err
	}
	if now := a.clock(); !now.Before(d.record.NotAfter) {
		return Certificate{}, &unavailable{what: "the certificate was over before its turn came", after: time.Second}
	}
	// 5. The token signs once, and what it gave is checked.
	end = a.meter.Begin(ctx, StepSign, d.issuingCA.ID)
	signature, err := d.encoder.sign(d.issuingCA.Certificate, d.issuingCA.Signer, d.tbs, d.message)
	end(err)
	if err == nil {
		d.record.DER, err = d.encoder.certificate(d.tbs, signature)
	}
	if err != nil {
		return Certificate{}, signingError(err)
	}
	// 6. The record, with the guards checked again, is made durable; 7. only then is the certificate released.
	handed = true
	end = a.meter.Begin(ctx, StepRecord, d.issuingCA.ID)
	err = a.writer.record(ctx, d.item, d.record)
	end(err)
	if err != nil {
		return Certificate{}, err
	}
	a.meter.Issued(d.record.Profile)
	return Certificate{Ref: d.record.Ref, DER: d.record.DER, NotAfter: d.record.NotAfter}, nil
}

func newSerial(now time.Time) (pki.Serial, error) {
	var random [pki.SerialRandomSize]byte
	if _, err := rand.Read(random[:]); err != nil {
		return pki.Serial{}, fmt.Errorf("ca: draw a serial number: %w", err)
	}
	return pki.MakeSerial(now, random)
}

// signingError keeps typed errors and makes a temporary one of what the token said otherwise.
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
