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
	"slices"
	"sync/atomic"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Request describes a certificate to issue: the decided identity, names, key and profile, and the guard that must still
// hold when the certificate is recorded.
type Request struct {
	RequestID pki.RequestID
	Identity  pki.SPIFFEID
	// Profile is one of those that Prepare has returned.
	Profile *Profile
	// IssuingCA selects an issuing CA; zero selects the current one.
	IssuingCA pki.IssuerID
	Names     Names
	Key       crypto.PublicKey
	// Lifetime is the requested lifetime; zero means the profile's default.
	Lifetime time.Duration
	Guard    pki.Guard
	Actor    pki.Actor
	// Evidence is recorded in the log. It is zero if the request has none.
	Evidence pki.EvidenceRecord
	// MayWait makes Issue wait for a slot, instead of refusing, if too many certificates are in flight.
	MayWait bool
}

// Certificate is an issued certificate that is on record.
type Certificate struct {
	Ref      pki.CertRef
	DER      []byte
	IssuedAt time.Time // to the millisecond
	NotAfter time.Time
}

// Config configures an Authority. All fields are required unless they say otherwise.
type Config struct {
	TrustDomain string      // of the identities that certificates are issued to
	IssuingCAs  []IssuingCA // the last one is the current one
	// Trust has the chains of IssuingCAs. Nil means that it has nothing else.
	Trust *Trust
	// Partitions is the number of partitions of each issuing CA's CRL, 1 to MaxPartitions. Certificates of partitioned
	// profiles are spread over them. The number may change: certificates keep the partition that they were issued with.
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
	trust      *Trust
	lints      map[pki.IssuerID]lintSigner
	trialCAs   map[pki.IssuerID]*trialCA
	sample     pki.SPIFFEID // the identity in samples that the trial CAs verify
	parts      int          // number of CRL partitions
	clock      func() time.Time
	meter      Meter
	writer     *writer
}

// New opens a new epoch of the journal. It commits the intents that earlier epochs left pending, and starts the writer,
// which Close stops. The Authority issues certificates of the profiles that Prepare returns.
func New(ctx context.Context, c Config) (*Authority, error) {
	if len(c.IssuingCAs) == 0 {
		return nil, errors.New("no issuing CA is installed: run brevet ceremony install")
	}
	if err := CheckPartitions(c.Partitions); err != nil {
		return nil, fmt.Errorf("partitions of CRLs: %w", err)
	}
	sample, err := pki.ServerID(c.TrustDomain, "")
	if err != nil {
		return nil, err
	}
	if c.Trust == nil {
		c.Trust = trustIn(c.IssuingCAs, c.Clock)
	}
	a := &Authority{
		issuingCAs: map[pki.IssuerID]IssuingCA{}, lints: map[pki.IssuerID]lintSigner{}, trialCAs: map[pki.IssuerID]*trialCA{},
		trust: c.Trust, sample: sample, parts: c.Partitions, clock: c.Clock, meter: c.Meter,
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
	if err := a.Current().checkTime(c.Clock()); err != nil {
		return nil, err
	}
	w, err := newWriter(ctx, c)
	if err != nil {
		return nil, err
	}
	a.writer = w
	return a, nil
}

// Chain returns the CA certificates that go with a certificate of an issuing CA, and their root. The cross-certificates
// of the root are last: with them, parties that trust only another root of the trust bundle verify the certificate.
// The key of the CA may be in the HSM of another server. Chain refuses a CA that is not installed.
func (a *Authority) Chain(id pki.IssuerID) (chain []*x509.Certificate, root *x509.Certificate, err error) {
	iss, ok := a.issuingCAs[id]
	if !ok {
		iss, ok = a.trust.chainOf(id)
	}
	if !ok {
		return nil, nil, pki.Refuse(pki.RuleNotFound, "renew or enroll again", "the certificate's CA %s is not served here any more", id.Short())
	}
	cross, _ := a.trust.CrossOf(iss.Root)
	return slices.Concat(iss.Chain, cross), iss.Root, nil
}

// Trust returns the CA certificates of the trust domain.
func (a *Authority) Trust() *Trust { return a.trust }

// Current returns the CA that issues if a request selects none.
func (a *Authority) Current() IssuingCA { return a.issuingCAs[a.current] }

// CheckNames refuses names that a name constraint in the current CA's chain excludes.
func (a *Authority) CheckNames(id pki.SPIFFEID, n Names) error {
	return a.trialCAs[a.current].checkNames(id, n)
}

// Draft is a certificate before its signature, with the guard that must still hold when it is recorded. It can be
// issued once.
type Draft struct {
	issuingCA IssuingCA
	encoder   *tbsEncoder
	tbs       []byte // TBSCertificate
	message   []byte // the digest or message that the issuing key signs
	item      *item
	record    Record
	mayWait   bool
	issued    atomic.Bool
}

// Draft builds the certificate of a request from its profile and a new serial number. If the request is not allowed,
// the error is a [*pki.Refusal]. Draft signs and records nothing, so the caller may drop the result.
func (a *Authority) Draft(req Request) (*Draft, error) {
	if req.IssuingCA.IsZero() {
		req.IssuingCA = a.current
	}
	iss, ok := a.issuingCAs[req.IssuingCA]
	if !ok {
		return nil, pki.Refuse(pki.RuleNotFound, "leave the issuer unset",
			"this server does not issue for %s", req.IssuingCA.Short())
	}
	p := req.Profile
	l := p.encoders[req.IssuingCA]
	if l == nil {
		return nil, fmt.Errorf("profile %s was not prepared: this is a defect of brevet", p.name)
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
	tbs, err := l.tbs(template)
	if err != nil {
		return nil, fmt.Errorf("write the certificate of %s: %w", req.Identity, err)
	}
	if p.lintEach {
		if err := a.lints[req.IssuingCA].lint(l, tbs); err != nil {
			return nil, err
		}
	}
	issuedAt := now.UTC().Truncate(time.Millisecond)
	message, ref := l.message(tbs), pki.CertRef{Issuer: req.IssuingCA, Serial: serial}
	return &Draft{
		issuingCA: iss, encoder: l, tbs: tbs, message: message, mayWait: req.MayWait,
		item: newItem(IntentItem{Ref: ref, Digest: digestOf(message, l.hash), IssuedAt: issuedAt, NotAfter: template.NotAfter, Partition: partition}),
		record: Record{
			Ref: ref, Identity: req.Identity, Profile: p.name, KeyHash: pki.HashSPKI(template.RawSubjectPublicKeyInfo),
			IssuedAt: issuedAt, NotBefore: template.NotBefore, NotAfter: template.NotAfter, Partition: partition,
			RequestID: req.RequestID, Actor: req.Actor, Guard: req.Guard, Evidence: req.Evidence,
		},
	}, nil
}

// digestOf returns the digest that an intent stores for a message. Ed25519 signs the message itself, so its digest is
// the SHA-256 of the message.
func digestOf(message []byte, hash crypto.Hash) []byte {
	if hash != 0 {
		return message
	}
	sum := sha256.Sum256(message)
	return sum[:]
}

// Issue signs the certificate of a draft and returns it once it is on record. If the error is a [*pki.Refusal], only
// another request can succeed. If the error is temporary, the same request ID may be retried: the certificate may
// already be on record, and the retry returns that record.
//
// The steps are those of docs/code-map.md, "The life of a certificate".
func (a *Authority) Issue(ctx context.Context, d *Draft) (Certificate, error) {
	if d.issued.Swap(true) {
		return Certificate{}, errors.New("this draft was issued before")
	}
	release, err := a.admit(ctx, d)
	if err != nil {
		return Certificate{}, err
	}
	defer release()
	// If a step before delivery fails or panics, the batch must not wait for this item.
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
		return Certificate{}, &unavailable{what: "the certificate expired before it was signed", after: time.Second}
	}
	// 5. The HSM signs once, and the signature is verified.
	end = a.meter.Begin(ctx, StepSign, d.issuingCA.ID)
	signature, err := d.encoder.sign(d.issuingCA.Certificate, d.issuingCA.Signer, d.tbs, d.message)
	end(err)
	if err == nil {
		d.record.DER, err = d.encoder.certificate(d.tbs, signature)
	}
	if err != nil {
		return Certificate{}, signingError(err)
	}
	// 6. The record becomes durable after its guards are checked again. 7. Only then is the certificate delivered.
	handed = true
	end = a.meter.Begin(ctx, StepRecord, d.issuingCA.ID)
	err = a.writer.record(ctx, d.item, d.record)
	end(err)
	if err != nil {
		return Certificate{}, err
	}
	a.meter.Issued(d.record.Profile)
	return Certificate{Ref: d.record.Ref, DER: d.record.DER, IssuedAt: d.record.IssuedAt, NotAfter: d.record.NotAfter}, nil
}

// newSerial returns a random serial number. It begins with the time, so that an index of serial numbers grows at its end.
func newSerial(now time.Time) (pki.Serial, error) {
	var random [pki.SerialRandomSize]byte
	if _, err := rand.Read(random[:]); err != nil {
		return pki.Serial{}, fmt.Errorf("generate a serial number: %w", err)
	}
	return pki.MakeSerial(now, random)
}

// signingError returns typed errors unchanged and turns any other error of the HSM into a temporary one.
func signingError(err error) error {
	var u *unavailable
	if errors.As(err, &u) || errors.Is(err, ErrFenced) {
		return err
	}
	after := pki.RetryAfter(err)
	if after == 0 {
		after = time.Second
	}
	return &unavailable{what: "the HSM did not sign, so the certificate was not issued", after: after, cause: err}
}

// InFlight returns the number of certificates that are being issued.
func (a *Authority) InFlight() int { return len(a.writer.slots) }

// Fenced reports whether a newer process of this server has taken over the journal. If so, this process never issues
// again.
func (a *Authority) Fenced() bool { return a.writer.replacedOut.Load() }

// Close waits for the certificates in flight, commits them and stops the writer. Later calls of Issue fail with a
// temporary error. If ctx ends first, Close returns an error, and the next process commits the pending intents.
func (a *Authority) Close(ctx context.Context) error { return a.writer.close(ctx) }
