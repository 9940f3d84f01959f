package fill

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/internal/cli/devca"
	"github.com/brevet-pki/brevet/internal/cli/file"
	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/store/tables"
)

const (
	// PerIdentity is the number of certificates of each identity, unless a measurement needs another.
	PerIdentity = 100
	// makers is the number of identities that are registered concurrently, in shared transactions.
	makers = 32
	// batchSize is the number of certificates in a transaction.
	batchSize = 256
)

// Actor is the actor in the log entries of filling a store.
var Actor = pki.ActorCommand("bench")

// Spec describes the records that a store is filled with.
type Spec struct {
	Certificates int
	PerIdentity  int
	Labels       map[string]string // of each identity
	Made         func(pki.CertRef) // if not nil, called for each certificate, by one goroutine at a time
	Devices      *Devices          // if not nil, there is one certificate for each identity, and a device uses it
}

// Devices describes certificates that devices use afterwards. Its functions are called by several goroutines at a time.
type Devices struct {
	Key      crypto.Signer // the key of the issuing CA, which signs the certificates
	Lifetime time.Duration
	IssuedAt func() time.Time
	Keep     func(n int, certificate []byte, key *ecdsa.PrivateKey) error // n counts the devices from 0; certificate is DER
}

// Certificates fills the store of a development CA that is not running. It writes everything that issuing writes. Each
// certificate has a new key and the size of a real one. If it is not for a device, a key of this process signs it.
func Certificates(ctx context.Context, d devca.CA, f Spec, logf func(string, ...any)) (err error) {
	issuing, err := file.ReadCertificate(d.IssuingFile())
	if err != nil {
		return err
	}
	domain, err := d.Domain()
	if err != nil {
		return err
	}
	c := node.Config{StateDir: d.Dir}
	db, err := sqlite.Open(ctx, c.StorePath())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	epoch, _, err := db.CA().Begin(ctx)
	if err != nil {
		return err
	}
	p := &preloader{Spec: f, db: db, epoch: epoch, domain: domain, issuing: issuing}
	if f.Devices != nil {
		p.PerIdentity, p.signer = 1, f.Devices.Key
	} else if p.signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	records := make(chan ca.Record, batchSize)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(records)
		group, ctx := errgroup.WithContext(ctx)
		for i := range makers {
			group.Go(func() error { return p.make(ctx, i, records) })
		}
		return group.Wait()
	})
	group.Go(func() error { return p.write(ctx, records, logf) })
	return group.Wait()
}

// preloader makes and writes records. Its fields are constant, so its methods may run concurrently.
type preloader struct {
	Spec
	db      *tables.DB
	epoch   ca.Epoch
	domain  string // the trust domain
	issuing *x509.Certificate
	signer  crypto.Signer
}

// make makes every makers-th identity from the first one on, and its certificates.
func (p *preloader) make(ctx context.Context, first int, made chan<- ca.Record) error {
	n := p.Certificates
	for i := first; i*p.PerIdentity < n; i += makers {
		id, err := pki.SPIFFEIDIn(p.domain, fmt.Sprintf("preloaded/%d", i))
		if err != nil {
			return err
		}
		identity, err := p.db.RA().CreateIdentity(ctx, ra.Registration{Identity: ra.Identity{
			ID: id, Kind: pki.Device, Profile: "device", Labels: p.Labels, CreatedAt: time.Now(),
		}}, Actor)
		if err != nil {
			return err
		}
		for range min(p.PerIdentity, n-i*p.PerIdentity) {
			r, err := p.certify(i, identity)
			if err != nil {
				return err
			}
			select {
			case made <- r:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// certify returns the record of a new certificate of the identity with the number n.
func (p *preloader) certify(n int, identity ra.Identity) (ca.Record, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return ca.Record{}, err
	}
	if p.Devices == nil {
		return p.record(identity.ID, key, time.Now(), 24*time.Hour)
	}
	r, err := p.record(identity.ID, key, p.Devices.IssuedAt(), p.Devices.Lifetime)
	if err != nil {
		return ca.Record{}, err
	}
	r.Guard.Identity, r.Guard.Revision, r.Guard.Enrolls = identity.ID, identity.Revision, true
	return r, p.Devices.Keep(n, r.DER, key)
}

func (p *preloader) record(id pki.SPIFFEID, key *ecdsa.PrivateKey, now time.Time, life time.Duration) (ca.Record, error) {
	request, err := newRequestID()
	if err != nil {
		return ca.Record{}, err
	}
	var random [pki.SerialRandomSize]byte
	_, _ = rand.Read(random[:]) // never fails
	serial, err := pki.MakeSerial(now, random)
	if err != nil {
		return ca.Record{}, err
	}
	hash, err := pki.HashKey(key.Public())
	if err != nil {
		return ca.Record{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial.Int(), NotBefore: now.Add(-time.Minute).Truncate(time.Second), NotAfter: now.Add(life).Truncate(time.Second),
		Subject: ca.SubjectOf(ca.OIDUserID, id), SubjectKeyId: hash.Bytes()[:20], URIs: []*url.URL{id.URL()},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, CRLDistributionPoints: []string{"http://127.0.0.1:12345/crl/0123456789abcdef.crl"},
		OCSPServer: []string{"http://127.0.0.1:12345/ocsp"}, IssuingCertificateURL: []string{"http://127.0.0.1:12345/ca/0123456789abcdef.cer"},
	}
	parent := *p.issuing
	parent.PublicKey = p.signer.Public()
	der, err := x509.CreateCertificate(rand.Reader, template, &parent, key.Public(), p.signer)
	return ca.Record{
		Ref: pki.CertRef{Issuer: pki.IssuerOf(p.issuing), Serial: serial}, Identity: id, Profile: "device", KeyHash: hash,
		IssuedAt: now.UTC().Truncate(time.Millisecond), NotBefore: template.NotBefore, NotAfter: template.NotAfter, DER: der, RequestID: request, Actor: Actor, Guard: pki.Guard{Key: hash},
	}, err
}

// write records the certificates in batches, with an intent before each batch as the server does, and sequences the
// log.
func (p *preloader) write(ctx context.Context, records <-chan ca.Record, logf func(string, ...any)) error {
	n := p.Certificates
	var open []ca.BatchCommit
	for done := 0; done < n || len(open) > 0; {
		next := ca.BatchCommit{Intent: ca.Intent{Batch: ca.NewBatchID()}, At: time.Now()}
		for len(next.Records) < min(batchSize, n-done) {
			r, ok := <-records
			if !ok {
				return context.Cause(ctx)
			}
			digest := sha256.Sum256(r.DER)
			next.Intent.Items = append(next.Intent.Items, ca.IntentItem{Ref: r.Ref, Digest: digest[:], IssuedAt: r.IssuedAt, NotAfter: r.NotAfter})
			next.Records = append(next.Records, r)
			if p.Made != nil {
				p.Made(r.Ref)
			}
		}
		done += len(next.Records)
		var intents []ca.Intent
		if len(next.Records) > 0 {
			intents = []ca.Intent{next.Intent}
		}
		results, err := p.db.CA().Write(ctx, p.epoch, open, intents)
		if err != nil {
			return err
		}
		for _, r := range slices.Concat(results...) {
			if r.Refusal != nil {
				return r.Refusal
			}
		}
		if open = open[:0]; len(intents) > 0 {
			open = []ca.BatchCommit{next}
		}
		if _, err := p.db.Log().Sequence(ctx, 2*batchSize); err != nil {
			return err
		}
		if done/100_000 != (done-len(next.Records))/100_000 {
			logf("%d certificates are in the store", done)
		}
	}
	return nil
}
