package crl

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// DefaultLifetime is the default lifetime of CRLs.
const DefaultLifetime = 24 * time.Hour

// Issuer is a CA with the key that signs its CRLs.
type Issuer struct {
	Certificate *x509.Certificate
	Signer      crypto.Signer
}

// Publisher makes CRLs available to relying parties. It is safe for concurrent use. It accepts the same CRL twice, and
// never replaces a CRL with an older one.
type Publisher interface {
	// PublishCRL publishes the CRL in the file at a path. The updater later renames a new CRL to the same path. A
	// publisher that still needs this one must keep the file open.
	PublishCRL(c CRL, path string) error
}

// Config holds the configuration of an Updater.
type Config struct {
	Issuers   []Issuer            // CAs whose CRLs the Updater signs
	Elsewhere []*x509.Certificate // CAs whose CRLs are signed elsewhere and imported
	Store     Store
	Exchange  Exchange // nil if no other server shares the store
	Publisher Publisher
	// Directory contains the files of published CRLs. The Updater creates it. No other process may write to it.
	Directory string
	// Mirrors are existing directories to which CRLs are copied, for other web servers. Other processes may also copy
	// CRLs to them. The CRL with the higher number stays.
	Mirrors []string
	// Lifetime is how long a CRL is valid, at least a minute. After half of it a new CRL is signed. A delta is valid
	// for a quarter of it. Zero means DefaultLifetime.
	Lifetime time.Duration
	Clock    func() time.Time // nil is time.Now
	Log      *slog.Logger     // nil is slog.Default()
}

// Updater keeps CRLs current. It is safe for concurrent use.
type Updater struct {
	store     Store
	exchange  Exchange // nil if no other server shares the store
	publisher Publisher
	published publishedDirectory
	mirrors   []*mirror
	lifetime  time.Duration
	clock     func() time.Time
	log       *slog.Logger

	issuers   map[pki.IssuerID]*issuer
	elsewhere []*x509.Certificate
	importing sync.Mutex // held during an import, because all imports write the same files
	adding    sync.Mutex // serializes AddPoints

	shown    shown
	silent   map[pki.IssuerID]*silence // CAs without a leader; only the goroutine of follow uses it
	unsigned atomic.Pointer[[]*x509.Certificate]
}

// issuer is a CA whose CRLs this updater signs.
type issuer struct {
	Issuer
	id        pki.IssuerID
	scheme    signatureScheme
	wanted    chan struct{} // holds one element if new CRLs were requested; a request during a round causes another round
	compact   chan struct{} // holds one element if the index of revoked certificates must be compacted
	ready     atomic.Bool   // whether Run has published the full CRL, or tried and failed
	confirmed time.Time     // when the lease was extended last; it belongs to keepCurrent
	leads     atomic.Bool   // whether this server signs the CRLs, if several share the store

	points atomic.Pointer[[]points] // distribution points; replaced with the mutex held, so that they do not change during a round

	mu          sync.Mutex      // held during a round, so that CRLs are published in the order of their numbers
	last        map[Scope]CRL   // newest known CRL of each scope
	covered     uint64          // index of the last log entry that the last round read
	took        time.Duration   // duration of the last round
	renamed     map[uint16]bool // partitions whose distribution point has other URLs than their published CRL
	unpublished bool            // whether CRLs of the last round were recorded, but perhaps not published
}

// New returns an Updater. It keeps the CRLs of all distribution points current that were ever recorded. It signs no CRLs:
// Run and PublishNow do that.
func New(ctx context.Context, c Config) (*Updater, error) {
	if c.Store == nil || c.Publisher == nil || c.Directory == "" {
		return nil, errors.New("an updater needs a store, a publisher and a directory")
	}
	u := &Updater{
		store: c.Store, exchange: c.Exchange, publisher: c.Publisher, published: publishedDirectory{c.Directory}, lifetime: c.Lifetime, clock: c.Clock, log: c.Log,
		issuers: map[pki.IssuerID]*issuer{}, elsewhere: c.Elsewhere, silent: map[pki.IssuerID]*silence{},
	}
	if u.lifetime == 0 {
		u.lifetime = DefaultLifetime
	}
	if u.lifetime < time.Minute {
		return nil, fmt.Errorf("a CRL lifetime of %v is too short: use at least a minute", u.lifetime)
	}
	if u.clock == nil {
		u.clock = time.Now
	}
	if u.log == nil {
		u.log = slog.Default()
	}
	if err := u.addIssuers(c); err != nil {
		return nil, err
	}
	for _, path := range c.Mirrors {
		u.mirrors = append(u.mirrors, newMirror(path, u.published, bundleOf(c)))
	}
	if err := u.readPoints(ctx); err != nil {
		return nil, err
	}
	return u, nil
}

// addIssuers checks the CAs in a configuration, and adds those whose CRLs the Updater signs.
func (u *Updater) addIssuers(c Config) error {
	for _, i := range c.Issuers {
		if err := mayIssueCRLs(i.Certificate); err != nil {
			return err
		}
		if public, ok := i.Certificate.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(i.Signer.Public()) {
			return fmt.Errorf("the key given for %s is not the one in its certificate", i.Certificate.Subject)
		}
		scheme, err := schemeOf(i.Certificate.PublicKey)
		if err != nil {
			return fmt.Errorf("%s: %w", i.Certificate.Subject, err)
		}
		id := pki.IssuerOf(i.Certificate)
		u.issuers[id] = &issuer{
			Issuer: i, id: id, scheme: scheme, wanted: make(chan struct{}, 1), compact: make(chan struct{}, 1),
			last: map[Scope]CRL{}, renamed: map[uint16]bool{},
		}
	}
	for _, cert := range c.Elsewhere {
		if err := mayIssueCRLs(cert); err != nil {
			return err
		}
		if u.issuers[pki.IssuerOf(cert)] != nil {
			return fmt.Errorf("the CRLs of %s cannot be both signed here and imported", cert.Subject)
		}
	}
	return nil
}

// mayIssueCRLs returns an error if relying parties would refuse all CRLs of the CA.
func mayIssueCRLs(c *x509.Certificate) error {
	if !c.IsCA || c.KeyUsage&x509.KeyUsageCRLSign == 0 || len(c.SubjectKeyId) == 0 {
		return fmt.Errorf("%s cannot issue CRLs: a CA needs the key usage cRLSign and a subject key identifier "+
			"(RFC 5280 sections 4.2.1.2 and 4.2.1.3)", c.Subject)
	}
	return nil
}

// Apply implements [pki.StatusObserver]. It is called for changes that the issuing of certificates makes, such as a
// renewal that revokes the old certificate. If a certificate is not good, new CRLs of its issuer are signed within a
// second.
func (u *Updater) Apply(changes ...pki.StatusChange) {
	for _, c := range changes {
		if c.Status.State == pki.Good { // no CRL lists a new certificate
			continue
		}
		if i := u.issuers[c.Ref.Issuer]; i != nil {
			i.want()
		}
	}
}

// Request requests new CRLs of the issuers of these certificates, whatever their statuses are. If Run is running, they
// are signed within a second. Request does not block.
func (u *Updater) Request(changes []pki.StatusChange) {
	for _, c := range changes {
		if i := u.issuers[c.Ref.Issuer]; i != nil {
			i.want()
		}
	}
}

// RequestAll requests new CRLs of every issuer, like Request.
func (u *Updater) RequestAll() {
	for _, i := range u.issuers {
		i.want()
	}
}

func (i *issuer) want() { signal(i.wanted) }

// signal sends to a channel with a buffer of one. If the buffer is full, it does nothing, because the receiver has not
// yet seen the earlier element.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// now returns the current time truncated to seconds, the precision of certificates, CRLs and statuses.
func (u *Updater) now() time.Time { return u.clock().UTC().Truncate(time.Second) }
