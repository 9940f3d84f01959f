package responder

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/ocsp"
)

// The defaults of Config.
const (
	DefaultMaxAge    = time.Minute
	DefaultCRLMaxAge = 5 * time.Minute
	// DefaultStaleness is five minutes because servers that staple (nginx, HAProxy) ask no more often than that, and
	// relying parties' clocks are off by less.
	DefaultStaleness = 5 * time.Minute
)

// Config says how a Responder answers.
type Config struct {
	// MaxAge is how long caches may keep an answer that says good or revoked, as CheckMaxAge has it. Zero is DefaultMaxAge.
	MaxAge time.Duration
	// CRLMaxAge is how long caches may keep a CRL without asking for a newer one, as CheckMaxAge has it. Zero is DefaultCRLMaxAge.
	CRLMaxAge time.Duration
	// Staleness is how old the responder's knowledge may be when it answers, and how far nextUpdate lies after
	// thisUpdate. A longer one bridges longer losses of the feed; a shorter one ends a revoked certificate's life in
	// caches and staples sooner. At least twice MaxAge. Zero is DefaultStaleness, or twice MaxAge where that is more.
	Staleness time.Duration
	// ExtendedRevoke has certificates that were never issued called revoked, on hold since 1970, and not unknown: for
	// relying parties that take unknown for good (RFC 6960 §2.2).
	ExtendedRevoke bool
	Meter          Meter            // nil for none
	Clock          func() time.Time // nil is time.Now
	Log            *slog.Logger     // nil is slog.Default()
}

// The range of MaxAge and CRLMaxAge. HTTP counts in seconds, and the staleness limit grows with it.
const (
	minMaxAge = time.Second
	maxMaxAge = time.Hour
)

// CheckMaxAge reports what Config.MaxAge and CRLMaxAge cannot be: they are 1 second to 1 hour.
func CheckMaxAge(age time.Duration) error {
	if age < minMaxAge || age > maxMaxAge {
		return fmt.Errorf("%v is out of range: use %v to %v", age, minMaxAge, maxMaxAge)
	}
	return nil
}

// Responder answers for the CAs that it was given. It is safe for concurrent use.
type Responder struct {
	maxAge         time.Duration
	crlMaxAge      time.Duration
	cacheable      []string // Cache-Control of an answer that caches may keep for maxAge
	staleness      time.Duration
	extendedRevoke bool
	meter          Meter
	clock          func() time.Time
	log            *slog.Logger

	answers   *answers
	dates     dates
	freshFor  int64                     // seconds by which the knowledge may be newer than a kept answer that is given
	askedStep int64                     // seconds that pass before it is noted anew that an answer was asked for
	lasting   *budget                   // for signing answers that are kept
	once      *budget                   // for signing answers that are not
	current   atomic.Pointer[time.Time] // when the statuses were last known to be complete; nil while they are not
	forgotten atomic.Pointer[time.Time] // statuses of certificates that end before may be forgotten; nil for none

	mu      sync.RWMutex // guards the maps, not the issuers in them
	issuers map[pki.IssuerID]*issuer
	byHash  map[ocsp.IssuerHash]*issuer
	byName  map[string]*issuer // by IssuerID.Short, as in the names of files
}

// An issuer is one CA: what was issued by it, and what is published for it.
type issuer struct {
	id       pki.IssuerID
	statuses statuses

	mu          sync.RWMutex      // guards what follows
	certificate *x509.Certificate // nil while only statuses of it are known
	signer      *ocsp.Signer      // nil before the first delegate
	crls        map[string]*list  // by their paths below /crl/
}

// delegate returns what signs the answers now, or nil.
func (i *issuer) delegate() *ocsp.Signer {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.signer
}

// New makes a Responder that knows nothing yet, and answers tryLater until it has followed a feed to its end.
func New(c Config) (*Responder, error) {
	r := &Responder{
		maxAge: c.MaxAge, crlMaxAge: cmp.Or(c.CRLMaxAge, DefaultCRLMaxAge), staleness: c.Staleness, extendedRevoke: c.ExtendedRevoke,
		meter: c.Meter, clock: c.Clock, log: c.Log,
		answers: newAnswers(), lasting: newBudget(places()), once: newBudget(places()),
		issuers: map[pki.IssuerID]*issuer{}, byHash: map[ocsp.IssuerHash]*issuer{}, byName: map[string]*issuer{},
	}
	if r.maxAge == 0 {
		r.maxAge = DefaultMaxAge
	}
	if r.staleness == 0 {
		r.staleness = max(DefaultStaleness, 2*r.maxAge)
	}
	if err := CheckMaxAge(r.maxAge); err != nil {
		return nil, fmt.Errorf("responder: the age at which caches forget an answer: %w", err)
	}
	if err := CheckMaxAge(r.crlMaxAge); err != nil {
		return nil, fmt.Errorf("responder: the age at which caches ask for a newer CRL: %w", err)
	}
	if r.staleness < 2*r.maxAge || r.staleness < 2*time.Second {
		return nil, fmt.Errorf("responder: a staleness limit of %v does not go with answers that caches keep for %v: "+
			"make it at least twice that, and 2 s", r.staleness, r.maxAge)
	}
	r.cacheable, r.freshFor = []string{cacheControl(r.maxAge)}, int64(r.staleness/2/time.Second)
	r.askedStep = int64(r.staleness / askedSteps / time.Second)
	if r.meter == nil {
		r.meter = unmetered{}
	}
	if r.clock == nil {
		r.clock = time.Now
	}
	if r.log == nil {
		r.log = slog.Default()
	}
	return r, nil
}

// issuer returns the issuer of this ID, making it where it is new.
func (r *Responder) issuer(id pki.IssuerID) *issuer {
	if i := r.known(id); i != nil {
		return i
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := r.issuers[id]; i != nil {
		return i
	}
	i := &issuer{id: id, statuses: newStatuses(), crls: map[string]*list{}}
	r.issuers[id] = i
	return i
}

// known returns the issuer of this ID, or nil.
func (r *Responder) known(id pki.IssuerID) *issuer {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.issuers[id]
}

// AddIssuer has the responder publish a CA's certificate. It answers for the CA once it has a delegate; until then an
// issuing CA (of path length 0) is answered with tryLater, another one with unauthorized. Of two certificates with the
// same name and key the one that is valid for longer is published.
func (r *Responder) AddIssuer(certificate *x509.Certificate) error {
	hashes, err := ocsp.HashIssuers(certificate)
	if err != nil {
		return fmt.Errorf("responder: add %s: %w", certificate.Subject, err)
	}
	if !certificate.IsCA {
		return fmt.Errorf("responder: add %s: it is not a CA's certificate", certificate.Subject)
	}
	i := r.issuer(pki.IssuerOf(certificate))
	i.mu.Lock()
	if i.certificate == nil || i.certificate.NotAfter.Before(certificate.NotAfter) {
		i.certificate = certificate
	}
	i.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range hashes {
		r.byHash[h] = i
	}
	r.byName[i.id.Short()] = i
	return nil
}

var oidNoCheck = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}

// SetDelegate has the responder sign its answers for a CA with a delegated key from now on (RFC 6960 §4.2.2.2). Answers
// that the delegate before it signed are given until they are renewed, and end with that delegate at the latest. The
// certificate has to be valid now, issued by that CA itself, for OCSPSigning, and to carry id-pkix-ocsp-nocheck.
func (r *Responder) SetDelegate(id pki.IssuerID, certificate *x509.Certificate, key crypto.Signer) error {
	i := r.known(id)
	if i == nil {
		return fmt.Errorf("responder: issuer %s is not one of those answered for: add its certificate first", id.Short())
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.certificate == nil {
		return fmt.Errorf("responder: issuer %s is not one of those answered for: add its certificate first", id.Short())
	}
	if err := checkDelegate(certificate, i.certificate, r.clock()); err != nil {
		return fmt.Errorf("responder: delegate for %s: %w", i.certificate.Subject, err)
	}
	signer, err := ocsp.NewSigner(certificate, key)
	if err != nil {
		return fmt.Errorf("responder: delegate for %s: %w", i.certificate.Subject, err)
	}
	i.signer = signer
	return nil
}

// checkDelegate holds a delegate's certificate against RFC 6960 §4.2.2.2, as strict relying parties will.
func checkDelegate(c, ca *x509.Certificate, now time.Time) error {
	if !bytes.Equal(c.RawIssuer, ca.RawSubject) {
		return fmt.Errorf("it was issued by %s: the CA itself has to", c.Issuer)
	}
	if err := c.CheckSignatureFrom(ca); err != nil {
		return fmt.Errorf("the CA did not sign it: %w", err)
	}
	if !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) {
		return errors.New("it lacks the extended key usage OCSPSigning")
	}
	if c.IsCA || c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return errors.New("it is a CA's, or its key usage lacks digitalSignature")
	}
	if !slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidNoCheck) }) {
		return errors.New("it lacks id-pkix-ocsp-nocheck, and relying parties would ask for its own status")
	}
	if now.Before(c.NotBefore) || now.After(c.NotAfter) {
		return fmt.Errorf("it is valid from %s to %s, and not now", c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// Apply implements [pki.StatusObserver]: when it has returned, no answer is given that rests on an older status of these
// certificates. Of two statuses of one certificate the higher version counts, in whatever order they come.
func (r *Responder) Apply(changes ...pki.StatusChange) {
	var forgotten time.Time
	if at := r.forgotten.Load(); at != nil {
		forgotten = *at
	}
	for len(changes) > 0 {
		id, n := changes[0].Ref.Issuer, 1
		for n < len(changes) && n < stepSize && changes[n].Ref.Issuer == id {
			n++
		}
		r.issuer(id).statuses.apply(changes[:n], forgotten)
		for _, c := range changes[:n] {
			if c.Status.Version > 1 { // of what is heard of for the first time no answer is kept
				r.answers.drop(c.Ref.Serial)
			}
		}
		changes = changes[n:]
	}
}

// Status returns the newest known status of a certificate, and false for one that was not issued, expired more than
// an hour ago, or has not yet been heard of. CurrentAt says how old that knowledge is.
func (r *Responder) Status(ref pki.CertRef) (pki.Status, bool) {
	i := r.known(ref.Issuer)
	if i == nil {
		return pki.Status{}, false
	}
	return i.statuses.get(ref.Serial)
}

// CurrentAt returns when the responder was last known to have all statuses; zero before the first time, and while it reads them
// again because the clock was set back.
func (r *Responder) CurrentAt() time.Time {
	if at := r.current.Load(); at != nil {
		return *at
	}
	return time.Time{}
}
