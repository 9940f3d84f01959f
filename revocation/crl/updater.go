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

// DefaultLifetime is how long a CRL is valid unless the configuration says otherwise.
const DefaultLifetime = 24 * time.Hour

// Issuer is a CA with the key that signs its CRLs.
type Issuer struct {
	Certificate *x509.Certificate
	Signer      crypto.Signer
}

// Publisher makes CRLs available to relying parties. It is safe for concurrent use, accepts the same CRL again, and never
// replaces a CRL by an older one.
type Publisher interface {
	// PublishCRL publishes the CRL in the file at a path. Another CRL will be renamed to that path later: a publisher that
	// needs this one for longer keeps the file open.
	PublishCRL(c CRL, path string) error
}

// Config is what an Updater is made of.
type Config struct {
	Issuers   []Issuer            // the CAs whose CRLs it signs
	Elsewhere []*x509.Certificate // the CAs whose CRLs are signed elsewhere, and imported
	Store     Store
	Publisher Publisher
	// Directory holds the files of published CRLs. New makes it if it is missing, and no other process writes to it.
	Directory string
	// Mirrors are directories that CRLs are copied to, for other web servers. They have to exist. Other processes may copy
	// to them too: of two CRLs the one with the higher number stays.
	Mirrors []string
	// Points are the distribution points that certificates will name from now on. They are on record when New returns, and
	// the CRLs of every point ever recorded are kept current.
	Points   []Point
	Lifetime time.Duration    // of a CRL, at least a minute; a new one is signed at half of it. A delta has a quarter. Zero is DefaultLifetime
	Clock    func() time.Time // nil is time.Now
	Log      *slog.Logger     // nil is slog.Default()
}

// Updater keeps CRLs current. It is safe for concurrent use.
type Updater struct {
	store     Store
	publisher Publisher
	published publishedDirectory
	mirrors   []*mirror
	lifetime  time.Duration
	clock     func() time.Time
	log       *slog.Logger

	issuers   map[pki.IssuerID]*issuer
	elsewhere []*x509.Certificate
	importing sync.Mutex // one import at a time: they write the same files
}

// An issuer is one CA whose CRLs this updater signs.
type issuer struct {
	Issuer
	id      pki.IssuerID
	scheme  signatureScheme
	points  []*points     // by partition
	wanted  chan struct{} // holds one request for new CRLs: a change during a round asks for another round
	compact chan struct{} // holds one request to compact what CRLs are read from
	ready   atomic.Bool   // the full CRL was published since Run began, or could not be

	mu          sync.Mutex      // one round at a time, so that CRLs are published in the order of their numbers
	last        map[Scope]CRL   // the newest that this process knows of
	covered     uint64          // the last log entry that the last round has read
	took        time.Duration   // by the last round
	renamed     map[uint16]bool // partitions whose published CRL has other names than the next one
	unpublished bool            // the last round failed after CRLs were recorded, so they may not be published
}

// New returns an Updater, and records the distribution points of its configuration. It signs nothing before Run or
// PublishNow.
func New(ctx context.Context, c Config) (*Updater, error) {
	if c.Store == nil || c.Publisher == nil || c.Directory == "" {
		return nil, errors.New("an updater needs a store, a publisher and a directory")
	}
	u := &Updater{
		store: c.Store, publisher: c.Publisher, published: publishedDirectory{c.Directory}, lifetime: c.Lifetime, clock: c.Clock, log: c.Log,
		issuers: map[pki.IssuerID]*issuer{}, elsewhere: c.Elsewhere,
	}
	if u.lifetime == 0 {
		u.lifetime = DefaultLifetime
	}
	if u.lifetime < time.Minute {
		return nil, fmt.Errorf("a CRL that is valid for %v cannot be kept current: make it a minute at least", u.lifetime)
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
	if err := u.recordPoints(ctx, c.Points); err != nil {
		return nil, err
	}
	for _, i := range u.issuers {
		if err := u.findRenamed(i); err != nil {
			return nil, err
		}
	}
	return u, nil
}

// addIssuers checks the CAs of a configuration, and adds those whose CRLs are signed here.
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
			return fmt.Errorf("the CRLs of %s are signed here or elsewhere, not both", cert.Subject)
		}
	}
	return nil
}

// mayIssueCRLs refuses a certificate with which every CRL would fail.
func mayIssueCRLs(c *x509.Certificate) error {
	if !c.IsCA || c.KeyUsage&x509.KeyUsageCRLSign == 0 || len(c.SubjectKeyId) == 0 {
		return fmt.Errorf("%s cannot issue CRLs: a CA needs the key usage cRLSign and a subject key identifier "+
			"(RFC 5280 sections 4.2.1.2 and 4.2.1.3)", c.Subject)
	}
	return nil
}

// Apply implements [pki.StatusObserver] for changes that issuing made, such as a renewal that revokes its predecessor. If a
// certificate is not good, a new CRL of its issuer follows within a second.
func (u *Updater) Apply(changes ...pki.StatusChange) {
	for _, c := range changes {
		if c.Status.State == pki.Good { // a new certificate, which no CRL lists
			continue
		}
		if i := u.issuers[c.Ref.Issuer]; i != nil {
			i.want()
		}
	}
}

// Request asks for new CRLs of everybody who issued one of these certificates, whatever their statuses are. They follow
// within a second while Run runs. It does not block.
func (u *Updater) Request(changes []pki.StatusChange) {
	for _, c := range changes {
		if i := u.issuers[c.Ref.Issuer]; i != nil {
			i.want()
		}
	}
}

// RequestAll asks for new CRLs of every issuer, as Request does.
func (u *Updater) RequestAll() {
	for _, i := range u.issuers {
		i.want()
	}
}

func (i *issuer) want() { signal(i.wanted) }

// signal leaves one request in a channel: a request that is there already covers this one.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// now returns the time cut to the second, as certificates, CRLs and statuses have it.
func (u *Updater) now() time.Time { return u.clock().UTC().Truncate(time.Second) }
