package revtest

import (
	"context"
	"crypto"
	"io"
	"math/big"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
)

// Faulty is a Book whose methods can fail on demand. Each method calls Fail with its name. Fail returns the method's
// error or nil, and whether the method takes effect in spite of the error.
type Faulty struct {
	*Book
	Fail func(call string) (applied bool, err error)
}

// Apply implements [revocation.Store].
func (f *Faulty) Apply(ctx context.Context, o revocation.Change) (revocation.ChangeResult, error) {
	applied, err := f.Fail("Apply")
	if err == nil || applied {
		out, bookErr := f.Book.Apply(ctx, o)
		if err == nil {
			return out, bookErr
		}
	}
	return revocation.ChangeResult{}, err
}

// TakeNumber implements [crl.Store].
func (f *Faulty) TakeNumber(ctx context.Context, issuer pki.IssuerID, at time.Time) (*big.Int, error) {
	applied, err := f.Fail("TakeNumber")
	if err == nil || applied {
		number, bookErr := f.Book.TakeNumber(ctx, issuer, at)
		if err == nil {
			return number, bookErr
		}
	}
	return nil, err
}

// PutCRLs implements [crl.Store].
func (f *Faulty) PutCRLs(ctx context.Context, crls []crl.CRL, by pki.Actor, at time.Time) error {
	applied, err := f.Fail("PutCRLs")
	if err == nil || applied {
		if bookErr := f.Book.PutCRLs(ctx, crls, by, at); err == nil {
			return bookErr
		}
	}
	return err
}

// CRLs implements [crl.Store].
func (f *Faulty) CRLs(ctx context.Context) ([]crl.CRL, error) {
	if _, err := f.Fail("CRLs"); err != nil {
		return nil, err
	}
	return f.Book.CRLs(ctx)
}

// CreateBulk implements [revocation.Store].
func (f *Faulty) CreateBulk(ctx context.Context, o revocation.BulkRequest) (revocation.BulkRevocation, []pki.StatusChange, error) {
	applied, err := f.Fail("CreateBulk")
	if err == nil || applied {
		set, changes, bookErr := f.Book.CreateBulk(ctx, o)
		if err == nil {
			return set, changes, bookErr
		}
	}
	return revocation.BulkRevocation{}, nil, err
}

// NotifyBulk implements [revocation.Store].
func (f *Faulty) NotifyBulk(ctx context.Context, id int64, observer pki.StatusObserver) (revocation.BulkRevocation, error) {
	if _, err := f.Fail("NotifyBulk"); err != nil {
		return revocation.BulkRevocation{}, err
	}
	return f.Book.NotifyBulk(ctx, id, observer)
}

// ApplyBulk implements [revocation.Store].
func (f *Faulty) ApplyBulk(ctx context.Context, id int64, limit int, at time.Time) ([]pki.StatusChange, revocation.BulkRevocation, error) {
	applied, err := f.Fail("ApplyBulk")
	if err == nil || applied {
		changes, set, bookErr := f.Book.ApplyBulk(ctx, id, limit, at)
		if err == nil {
			return changes, set, bookErr
		}
	}
	return nil, revocation.BulkRevocation{}, err
}

// FaultyKey is a key that can fail on demand, like [Faulty].
type FaultyKey struct {
	crypto.Signer
	Fail func(call string) (applied bool, err error)
}

// Sign implements crypto.Signer.
func (k FaultyKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if _, err := k.Fail("Sign"); err != nil {
		return nil, err
	}
	return k.Signer.Sign(random, digest, opts)
}

// Never is a Fail function that lets every call succeed.
func Never(string) (bool, error) { return false, nil }
