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
	// DefaultValidity is five minutes, because servers that staple (nginx, HAProxy) do not refresh more often. The
	// clocks of relying parties are usually wrong by less.
	DefaultValidity = 5 * time.Minute
)

// Config configures a Responder.
type Config struct {
	// MaxAge is how long HTTP caches may keep a response with the status good or revoked. CheckMaxAge checks it. Zero
	// means DefaultMaxAge.
	MaxAge time.Duration
	// CRLMaxAge is how long HTTP caches may keep a CRL before they revalidate it. CheckMaxAge checks it. Zero means
	// DefaultCRLMaxAge.
	CRLMaxAge time.Duration
	// Validity is the maximum age of the statuses in responses, and the time from thisUpdate to nextUpdate. A longer
	// time tolerates longer failures of the feed. A shorter time limits how long caches and stapled responses report a
	// revoked certificate as good. It must be at least twice MaxAge. Zero means DefaultValidity, or twice MaxAge if
	// that is longer.
	Validity time.Duration
	// MaxStaleness is the maximum age of the statuses if other processes change them, too. If they are older, the
	// responder sends tryLater, and IsStale returns true. CheckMaxStaleness checks it. Zero means that all changes are
	// made by this process, which calls Apply with them. The statuses may then be as old as Validity.
	MaxStaleness time.Duration
	// ExtendedRevoke makes the responder report certificates that were never issued as revoked (on hold since 1970),
	// and not as unknown. It protects relying parties that treat unknown as good (RFC 6960 §2.2).
	ExtendedRevoke bool
	Meter          Meter            // nil for no metrics
	Clock          func() time.Time // nil for time.Now
	Log            *slog.Logger     // nil for slog.Default()
}

// The range of MaxAge and CRLMaxAge. The minimum is the resolution of HTTP. The default of Staleness grows with MaxAge,
// hence the maximum.
const (
	minMaxAge = time.Second
	maxMaxAge = time.Hour
)

// CheckMaxAge returns an error unless age is in the range of Config.MaxAge and CRLMaxAge: 1 second to 1 hour.
func CheckMaxAge(age time.Duration) error {
	if age < minMaxAge || age > maxMaxAge {
		return fmt.Errorf("%v is out of range: use %v to %v", age, minMaxAge, maxMaxAge)
	}
	return nil
}

// DefaultMaxStaleness is the default of servers that share a store.
const DefaultMaxStaleness = 5 * time.Second

// The range of MaxStaleness. A server that polls twice a second at a busy store must not become stale. Relying parties
// expect that responses are at most as old as DefaultValidity.
const (
	minMaxStaleness = 2 * time.Second
	maxMaxStaleness = DefaultValidity
)

// CheckMaxStaleness returns an error unless age is in the range of Config.MaxStaleness: 2 seconds to 5 minutes.
func CheckMaxStaleness(age time.Duration) error {
	if age < minMaxStaleness || age > maxMaxStaleness {
		return fmt.Errorf("%v is out of range: use %v to %v", age, minMaxStaleness, maxMaxStaleness)
	}
	return nil
}

// Responder serves OCSP responses, CRLs and CA certificates for the CAs that AddIssuer adds. It is safe for concurrent
// use.
type Responder struct {
	maxAge         time.Duration
	crlMaxAge      time.Duration
	cacheable      []string // Cache-Control of a response that caches may keep for maxAge
	validity       time.Duration
	maxStaleness   time.Duration // zero if no other process changes the statuses
	extendedRevoke bool
	meter          Meter
	clock          func() time.Time
	log            *slog.Logger

	cache         *responseCache
	dates         dates
	maxLag        int64                     // how much older than the statuses a cached response may be, in seconds
	lastUseStep   int64                     // resolution of cacheEntry.lastUse, in seconds
	cachedQueue   *signQueue                // queue for signing responses that will be cached
	uncachedQueue *signQueue                // queue for signing other responses
	current       atomic.Pointer[time.Time] // when the statuses were last known to be complete; nil if incomplete
	expiredBefore atomic.Pointer[time.Time] // statuses of certificates that expired before may be missing; nil for none

	mu      sync.RWMutex // guards the maps below, not the issuers in them
	issuers map[pki.IssuerID]*issuer
	byHash  map[ocsp.IssuerHash]*issuer
	byName  map[string]*issuer // keyed by IssuerID.Short, which is in URL paths
}

// An issuer is one CA, with the statuses of its certificates and its published CRLs.
type issuer struct {
	id       pki.IssuerID
	statuses statuses

	mu          sync.RWMutex             // guards the fields below
	certificate *x509.Certificate        // nil before AddIssuer
	signer      *ocsp.Signer             // nil before the first SetDelegate
	crls        map[string]*publishedCRL // keyed by their paths below /crl/
}

// delegate returns the signer that currently signs the responses, or nil.
func (i *issuer) delegate() *ocsp.Signer {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.signer
}

// New returns a Responder without statuses. It responds tryLater until Follow has read a feed to its end.
func New(c Config) (*Responder, error) {
	r := &Responder{
		maxAge: c.MaxAge, crlMaxAge: cmp.Or(c.CRLMaxAge, DefaultCRLMaxAge), validity: c.Validity, maxStaleness: c.MaxStaleness,
		extendedRevoke: c.ExtendedRevoke, meter: c.Meter, clock: c.Clock, log: c.Log,
		cache: newResponseCache(), cachedQueue: newSignQueue(maxSigning()), uncachedQueue: newSignQueue(maxSigning()),
		issuers: map[pki.IssuerID]*issuer{}, byHash: map[ocsp.IssuerHash]*issuer{}, byName: map[string]*issuer{},
	}
	if r.maxAge == 0 {
		r.maxAge = DefaultMaxAge
	}
	if r.validity == 0 {
		r.validity = max(DefaultValidity, 2*r.maxAge)
	}
	if err := CheckMaxAge(r.maxAge); err != nil {
		return nil, fmt.Errorf("maximum age of a cached response: %w", err)
	}
	if err := CheckMaxAge(r.crlMaxAge); err != nil {
		return nil, fmt.Errorf("maximum age of a cached CRL: %w", err)
	}
	if r.validity < 2*r.maxAge || r.validity < 2*time.Second {
		return nil, fmt.Errorf("responses are valid for %v, and caches keep responses for %v: "+
			"set it to at least twice that, and at least 2s", r.validity, r.maxAge)
	}
	if r.maxStaleness != 0 {
		if err := CheckMaxStaleness(r.maxStaleness); err != nil {
			return nil, fmt.Errorf("maximum age of the statuses: %w", err)
		}
	}
	r.cacheable, r.maxLag = []string{cacheControl(r.maxAge)}, int64(r.validity/2/time.Second)
	r.lastUseStep = int64(r.validity / lastUseSteps / time.Second)
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

// issuer returns the issuer with an ID. It adds a new issuer if there is none.
func (r *Responder) issuer(id pki.IssuerID) *issuer {
	if i := r.known(id); i != nil {
		return i
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := r.issuers[id]; i != nil {
		return i
	}
	i := &issuer{id: id, statuses: newStatuses(), crls: map[string]*publishedCRL{}}
	r.issuers[id] = i
	return i
}

// known returns the issuer with an ID, or nil if there is none.
func (r *Responder) known(id pki.IssuerID) *issuer {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.issuers[id]
}

// AddIssuer publishes a CA's certificate and accepts requests about the CA. Before SetDelegate is called for it, the
// response is tryLater for an issuing CA (path length 0), and unauthorized for any other CA. If two certificates have
// the same name and key, the one with the later expiry is published.
func (r *Responder) AddIssuer(certificate *x509.Certificate) error {
	hashes, err := ocsp.HashIssuers(certificate)
	if err != nil {
		return fmt.Errorf("add %s: %w", certificate.Subject, err)
	}
	if !certificate.IsCA {
		return fmt.Errorf("add %s: this is not a CA certificate", certificate.Subject)
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

// SetDelegate sets the key that signs the responses for a CA from now on (RFC 6960 §4.2.2.2). Cached responses that the
// previous delegate signed are sent until they are renewed. None is valid longer than the certificate of its delegate.
// The new certificate must be valid now, be issued by the CA itself for OCSPSigning, and contain id-pkix-ocsp-nocheck.
func (r *Responder) SetDelegate(id pki.IssuerID, certificate *x509.Certificate, key crypto.Signer) error {
	i := r.known(id)
	if i == nil {
		return fmt.Errorf("issuer %s is unknown: add its certificate first", id.Short())
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.certificate == nil {
		return fmt.Errorf("issuer %s is unknown: add its certificate first", id.Short())
	}
	if err := checkDelegate(certificate, i.certificate, r.clock()); err != nil {
		return fmt.Errorf("delegate for %s: %w", i.certificate.Subject, err)
	}
	signer, err := ocsp.NewSigner(certificate, key)
	if err != nil {
		return fmt.Errorf("delegate for %s: %w", i.certificate.Subject, err)
	}
	i.signer = signer
	return nil
}

// checkDelegate checks a delegate's certificate according to RFC 6960 §4.2.2.2, as strict relying parties do.
func checkDelegate(c, ca *x509.Certificate, now time.Time) error {
	if !bytes.Equal(c.RawIssuer, ca.RawSubject) {
		return fmt.Errorf("it was issued by %s: have the CA itself issue it", c.Issuer)
	}
	if err := c.CheckSignatureFrom(ca); err != nil {
		return fmt.Errorf("the CA did not sign it: %w", err)
	}
	if !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) {
		return errors.New("it lacks the extended key usage OCSPSigning")
	}
	if c.IsCA || c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return errors.New("it is a CA certificate, or its key usage lacks digitalSignature")
	}
	if !slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidNoCheck) }) {
		return errors.New("it lacks id-pkix-ocsp-nocheck: without it, relying parties request the status of the delegate too")
	}
	if now.Before(c.NotBefore) || now.After(c.NotAfter) {
		return fmt.Errorf("it is valid from %s to %s: it must be valid now", c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// Apply implements [pki.StatusObserver]. After it has returned, no response contains an older status of these
// certificates. If there are several statuses of one certificate, the one with the highest version stays, whatever
// their order.
func (r *Responder) Apply(changes ...pki.StatusChange) {
	var forgotten time.Time
	if at := r.expiredBefore.Load(); at != nil {
		forgotten = *at
	}
	for len(changes) > 0 {
		id, n := changes[0].Ref.Issuer, 1
		for n < len(changes) && n < stepSize && changes[n].Ref.Issuer == id {
			n++
		}
		r.issuer(id).statuses.apply(changes[:n], forgotten)
		for _, c := range changes[:n] {
			if c.Status.Version > 1 { // no response about a new certificate is cached
				r.cache.drop(c.Ref.Serial)
			}
		}
		changes = changes[n:]
	}
}

// Status returns the newest known status of a certificate. It returns false if the certificate was not issued, expired
// more than an hour ago, or has not yet been read from the feed. See CurrentAt for the age of the statuses.
func (r *Responder) Status(ref pki.CertRef) (pki.Status, bool) {
	i := r.known(ref.Issuer)
	if i == nil {
		return pki.Status{}, false
	}
	return i.statuses.get(ref.Serial)
}

// CurrentAt returns when the statuses were last known to be complete. It is zero before Follow has read the feed to its
// end. It is also zero while Follow reads the feed again because the clock was set back.
func (r *Responder) CurrentAt() time.Time {
	if at := r.current.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

// IsStale reports whether the statuses may lack a change that another process made longer ago than MaxStaleness. It
// is false if no other process changes the statuses.
func (r *Responder) IsStale() bool {
	if r.maxStaleness == 0 {
		return false
	}
	_, known := r.knownAt(r.clock())
	return !known
}
