package revocation

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

// Sink is told of every change before Apply returns: the responders of this process. It is safe for concurrent use,
// may hear of a change twice or late, and goes by the version of each status.
type Sink interface {
	Apply(changes ...pki.StatusChange)
}

// Publisher makes CRLs available to relying parties. It is safe for concurrent use, takes the same CRL again without
// complaint, and never replaces a CRL by an older one.
type Publisher interface {
	// PublishCRL publishes the CRL that is in the file at a path. Another one will be renamed to that path later: whoever
	// needs this one for longer keeps the file open.
	PublishCRL(c CRL, path string) error
}

// Config says what an Authority works with.
type Config struct {
	Issuers   []Issuer            // the CAs whose CRLs it signs
	Elsewhere []*x509.Certificate // the CAs whose CRLs are signed elsewhere, and imported
	Records   Records
	Sink      Sink
	Publisher Publisher
	// Directory is where the files of CRLs lie; it is made where it is missing, and no other process writes to it.
	Directory string
	// Directories are further ones that CRLs are published to, for other web servers. They have to exist. Other processes may
	// publish to them too: of two CRLs the one with the higher number stays.
	Directories []string
	// Points are the distribution points that certificates will name from now on. They are on record when New returns, and
	// what was ever on record is kept current.
	Points   []Point
	Lifetime time.Duration    // of a CRL, at least a minute; a new one is signed at half of it. A delta has a quarter. Zero is DefaultLifetime
	Clock    func() time.Time // nil is time.Now
	Log      *slog.Logger     // nil is slog.Default()
}

// Authority writes status and signs CRLs. It is safe for concurrent use.
type Authority struct {
	records     Records
	sink        Sink
	publisher   Publisher
	shelf       shelf
	directories []*directory
	lifetime    time.Duration
	clock       func() time.Time
	log         *slog.Logger

	issuers   map[pki.IssuerID]*issuer
	elsewhere []*x509.Certificate
	sets      sets
	importing sync.Mutex // one at a time, for the sake of their files
}

// An issuer is one CA whose CRLs this authority signs.
type issuer struct {
	Issuer
	id     pki.IssuerID
	scheme scheme
	points []*points     // by partition
	wanted chan struct{} // holds one request for new CRLs: a change made while some are being signed asks for others
	packed chan struct{} // holds one request to pack what CRLs are read from
	begun  atomic.Bool   // the full CRL was published since Run began, or could not be

	mu          sync.Mutex      // one round at a time, so that CRLs are published in the order of their numbers
	last        map[Scope]CRL   // the newest that this process knows of
	looked      uint64          // the log entry up to which the last round has looked for changes
	took        time.Duration   // by the last round
	renamed     map[uint16]bool // partitions whose published CRL has other names than the next one
	unpublished bool            // the last round has failed where CRLs were on record, and they may not be out
}

// New makes an Authority, and records the distribution points that it is given. Nothing is signed before Run or PublishNow.
func New(ctx context.Context, c Config) (*Authority, error) {
	if c.Records == nil || c.Sink == nil || c.Publisher == nil || c.Directory == "" {
		return nil, errors.New("revocation: an authority needs records, a sink, a publisher and a directory")
	}
	a := &Authority{
		records: c.Records, sink: c.Sink, publisher: c.Publisher, shelf: shelf{c.Directory}, lifetime: c.Lifetime, clock: c.Clock, log: c.Log,
		issuers: map[pki.IssuerID]*issuer{}, elsewhere: c.Elsewhere, sets: newSets(),
	}
	if a.lifetime == 0 {
		a.lifetime = DefaultLifetime
	}
	if a.lifetime < time.Minute {
		return nil, fmt.Errorf("revocation: a CRL that is valid for %v cannot be kept current: make it a minute at least", a.lifetime)
	}
	if a.clock == nil {
		a.clock = time.Now
	}
	if a.log == nil {
		a.log = slog.Default()
	}
	for _, i := range c.Issuers {
		if err := mayIssueCRLs(i.Certificate); err != nil {
			return nil, err
		}
		if public, ok := i.Certificate.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(i.Signer.Public()) {
			return nil, fmt.Errorf("revocation: the key given for %s is not the one in its certificate", i.Certificate.Subject)
		}
		scheme, err := schemeOf(i.Certificate.PublicKey)
		if err != nil {
			return nil, fmt.Errorf("revocation: %s: %w", i.Certificate.Subject, err)
		}
		id := pki.IssuerOf(i.Certificate)
		a.issuers[id] = &issuer{
			Issuer: i, id: id, scheme: scheme, wanted: make(chan struct{}, 1), packed: make(chan struct{}, 1),
			last: map[Scope]CRL{}, renamed: map[uint16]bool{},
		}
	}
	for _, c := range c.Elsewhere {
		if err := mayIssueCRLs(c); err != nil {
			return nil, err
		}
		if a.issuers[pki.IssuerOf(c)] != nil {
			return nil, fmt.Errorf("revocation: the CRLs of %s are signed here or elsewhere, not both", c.Subject)
		}
	}
	for _, path := range c.Directories {
		a.directories = append(a.directories, newDirectory(path, a.shelf, chainOf(c)))
	}
	if err := a.prepare(ctx, c.Points); err != nil {
		return nil, err
	}
	return a, nil
}

// prepare makes durable what has to be before certificates are issued, and learns what is on record.
func (a *Authority) prepare(ctx context.Context, points []Point) error {
	if err := a.recordPoints(ctx, points); err != nil {
		return err
	}
	for _, i := range a.issuers {
		if err := a.findRenamed(i); err != nil {
			return err
		}
	}
	return nil
}

// mayIssueCRLs finds out early what would otherwise fail with every CRL.
func mayIssueCRLs(c *x509.Certificate) error {
	if !c.IsCA || c.KeyUsage&x509.KeyUsageCRLSign == 0 || len(c.SubjectKeyId) == 0 {
		return fmt.Errorf("revocation: %s cannot issue CRLs: a CA needs the key usage cRLSign and a subject key identifier "+
			"(RFC 5280 sections 4.2.1.2 and 4.2.1.3)", c.Subject)
	}
	return nil
}

// Apply carries out an order and returns what it has changed. When it returns without error the change is durable, every
// responder of this process has been told, and a new CRL follows within a second. An order's time is cut to the second;
// where it is zero it is now, and it is never later. A Refusal says which rule an order breaks.
//
// An order about many certificates is in effect for all of them at once, and Apply returns when their records say so too.
// If ctx ends before that, Run completes the order, in this process or in the next.
func (a *Authority) Apply(ctx context.Context, o Order) (Outcome, error) {
	now := a.now()
	if o.At.IsZero() {
		o.At = now
	}
	o.At, o.InvalidSince = o.At.UTC().Truncate(time.Second), o.InvalidSince.UTC().Truncate(time.Second)
	if err := o.check(now); err != nil {
		return Outcome{}, err
	}
	out, err := a.records.Apply(ctx, o)
	if err != nil {
		if _, refused := pki.AsRefusal(err); !refused {
			// The change may have become durable all the same, and then the CRLs have to say so.
			a.sets.want()
			a.wantCRLs()
		}
		return Outcome{}, err
	}
	a.tell(out.All())
	a.wantCRLsOf(out.All())
	for _, c := range out.Changed {
		out.Reached.Add(c.NotAfter, o.At)
	}
	if out.Set == 0 {
		return out, nil
	}
	set, err := a.completeSet(ctx, out.Set)
	if err != nil {
		return Outcome{}, err
	}
	out.Reached.Valid += set.Total - set.Ended
	out.Reached.Ended += set.Ended
	return out, nil
}

// tell has the responders know how certificates stand.
func (a *Authority) tell(changes []pki.StatusChange) { a.sink.Apply(changes...) }

// wantCRLsOf asks for a new CRL of everybody who issued one of these certificates.
func (a *Authority) wantCRLsOf(changes []pki.StatusChange) {
	for _, c := range changes {
		if i := a.issuers[c.Ref.Issuer]; i != nil {
			i.want()
		}
	}
}

// Recorded hears of changes that became durable without an order, such as a renewal that revokes what it renews. Where one is
// not good, a new CRL of its issuer follows within a second. The sink is told by whoever recorded them. It does not block.
func (a *Authority) Recorded(changes ...pki.StatusChange) {
	for _, c := range changes {
		if c.Status.State == pki.Good { // most are, and no CRL has them
			continue
		}
		if i := a.issuers[c.Ref.Issuer]; i != nil {
			i.want()
		}
	}
}

// check refuses an order that makes no sense whatever the records say.
func (o Order) check(now time.Time) error {
	if err := o.CheckSubject(); err != nil {
		return err
	}
	if o.At.After(now) {
		return pki.Refuse(pki.RuleRequest, "leave the time out", "an order cannot take effect at %s, which is yet to come",
			o.At.Format(time.RFC3339))
	}
	var reasonFits, stateFits bool
	switch o.Action {
	case Revoke:
		_, err := pki.ReasonFromCode(int(o.Reason))
		reasonFits = err == nil && o.Reason != pki.CertificateHold
		stateFits = o.State == 0 || o.State == pki.Retired && !o.Identity.IsZero()
	case Hold:
		reasonFits = o.Reason == pki.CertificateHold || o.Reason == pki.Unspecified
		stateFits = o.State == pki.Suspended && !o.Identity.IsZero() || o.State == 0 && o.Identity.IsZero()
	case Release:
		reasonFits = o.Reason == pki.Unspecified
		stateFits = o.State == 0
	default:
		return pki.Refuse(pki.RuleRequest, "revoke, hold or release", "an order has no action %d", o.Action)
	}
	if !reasonFits {
		return pki.Refuse(pki.RuleReason, "revoke for any other reason of RFC 5280 section 5.3.1; hold and release take none",
			"%v is no reason to %v", o.Reason, o.Action)
	}
	if !stateFits {
		return pki.Refuse(pki.RuleRequest, "hold suspends an identity, revoking may retire it, release restores it",
			"an order to %v does not make its subject %v", o.Action, o.State)
	}
	if o.Action != Revoke && !o.InvalidSince.IsZero() {
		return pki.Refuse(pki.RuleRequest, "leave the invalidity date out, or revoke", "to %v says nothing about when something became invalid", o.Action)
	}
	if err := checkSince(o.InvalidSince, o.At); err != nil {
		return err
	}
	return checkWhy(o.Why)
}

// CheckSubject refuses an order that is not about exactly one certificate, identity or key, and an order about a key for
// another reason than keyCompromise.
func (o Order) CheckSubject() error {
	subjects := 0
	for _, none := range []bool{o.Certificate.IsZero(), o.Identity.IsZero(), o.Key.IsZero()} {
		if !none {
			subjects++
		}
	}
	if subjects != 1 {
		return pki.Refuse(pki.RuleRequest, "name one certificate, one identity or one key", "an order is about exactly one of them")
	}
	if !o.Key.IsZero() && (o.Action != Revoke || o.Reason != pki.KeyCompromise) {
		return pki.Refuse(pki.RuleReason, "revoke it for keyCompromise", "an order about a key can do nothing else")
	}
	return nil
}

// String returns the action as a verb.
func (a Action) String() string {
	switch a {
	case Revoke:
		return "revoke"
	case Hold:
		return "hold"
	case Release:
		return "release"
	default:
		return fmt.Sprintf("action(%d)", uint8(a))
	}
}

// wantCRLs asks for a new CRL of every issuer.
func (a *Authority) wantCRLs() {
	for _, i := range a.issuers {
		i.want()
	}
}

func (i *issuer) want() { request(i.wanted) }

// request asks whoever reads the channel, once: what is asked for already sees this too.
func request(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// now is the clock cut to the second, as certificates, CRLs and statuses have it.
func (a *Authority) now() time.Time { return a.clock().UTC().Truncate(time.Second) }
