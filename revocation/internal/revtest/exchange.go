package revtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/big"
	"sync"
	"sync/atomic"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
)

// Shared is the part of a Book with which servers pass CRLs to each other.
type Shared struct {
	mu     sync.Mutex
	leases map[pki.IssuerID]lease
	files  map[string][]byte
}

type lease struct {
	holder *Exchange
	until  time.Time
}

// NewShared returns an empty Shared.
func NewShared() *Shared {
	return &Shared{leases: map[pki.IssuerID]lease{}, files: map[string][]byte{}}
}

// Exchange is a server's view of a Shared. It implements [crl.Exchange].
type Exchange struct {
	*Book
	shared *Shared
	// Failing is the number of the next calls of Lead that fail.
	Failing atomic.Int64
}

// NewExchange returns the view of another server of a Book.
func NewExchange(b *Book, s *Shared) *Exchange { return &Exchange{Book: b, shared: s} }

// Lead implements crl.Exchange.
func (x *Exchange) Lead(ctx context.Context, issuer pki.IssuerID) (bool, error) {
	if x.Failing.Add(-1) >= 0 {
		return false, errors.New("the store does not respond")
	}
	x.shared.mu.Lock()
	defer x.shared.mu.Unlock()
	if l := x.shared.leases[issuer]; l.holder != x && time.Now().Before(l.until) {
		return false, ctx.Err()
	}
	x.shared.leases[issuer] = lease{x, time.Now().Add(crl.LeaseTime)}
	return true, ctx.Err()
}

// Led implements crl.Exchange.
func (x *Exchange) Led(ctx context.Context) ([]pki.IssuerID, error) {
	x.shared.mu.Lock()
	defer x.shared.mu.Unlock()
	var led []pki.IssuerID
	for id, l := range x.shared.leases {
		if time.Now().Before(l.until) {
			led = append(led, id)
		}
	}
	return led, ctx.Err()
}

// Yield implements crl.Exchange.
func (x *Exchange) Yield(ctx context.Context, issuer pki.IssuerID) error {
	x.shared.mu.Lock()
	defer x.shared.mu.Unlock()
	if x.shared.leases[issuer].holder == x {
		delete(x.shared.leases, issuer)
	}
	return ctx.Err()
}

// Leader returns the server that leads an issuer, or nil.
func (s *Shared) Leader(issuer pki.IssuerID) *Exchange {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leases[issuer].holder
}

func fileName(c crl.CRL) string { return c.Scope().Path() + c.Number.Text(16) }

// PutFile implements crl.Exchange.
func (x *Exchange) PutFile(ctx context.Context, c crl.CRL, file io.Reader) error {
	content, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	x.shared.mu.Lock()
	defer x.shared.mu.Unlock()
	x.shared.files[fileName(c)] = content
	return ctx.Err()
}

// CopyFile implements crl.Exchange.
func (x *Exchange) CopyFile(_ context.Context, c crl.CRL, w io.Writer) error {
	x.shared.mu.Lock()
	content := x.shared.files[fileName(c)]
	x.shared.mu.Unlock()
	if content == nil {
		all, err := x.CRLs(context.Background())
		if err != nil {
			return err
		}
		for _, r := range all {
			if r.Scope() == c.Scope() && sameNumber(r.Number, c.Number) {
				content = r.DER
			}
		}
	}
	_, err := io.Copy(w, bytes.NewReader(content))
	return err
}

func sameNumber(a, b *big.Int) bool { return a.Cmp(b) == 0 }

// Newest implements crl.Exchange.
func (x *Exchange) Newest(ctx context.Context) ([]crl.CRL, error) {
	all, err := x.CRLs(ctx)
	for i := range all {
		all[i].DER = nil
	}
	return all, err
}
