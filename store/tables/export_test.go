package tables

import (
	"context"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/tables/internal/acmetable"
	"github.com/brevet-pki/brevet/store/tables/internal/bulk"
	"github.com/brevet-pki/brevet/store/tables/internal/caller"
	"github.com/brevet-pki/brevet/store/tables/internal/crlindex"
	"github.com/brevet-pki/brevet/store/tables/internal/expiry"
	"github.com/brevet-pki/brevet/store/tables/internal/issuing"
)

// The statements of an issuance.
const SelectCaller = caller.Select

var (
	SelectGuarded       = selectGuarded + issuing.Unexpired(7, pki.Order{}) + fromGuarded
	SelectGuardedOrder  = selectGuarded + issuing.Unexpired(0, pki.Order{ID: acme.NewID().Request(), MaxUnexpired: 7}) + fromGuarded
	SelectIssuanceState = issuing.SelectState + issuing.Unexpired(7, pki.Order{}) + issuing.FromState
)

// The statements about ACME orders, whose number grows.
const (
	CountOpenOrders      = acmetable.CountOpen
	CountUnexpiredOrders = acmetable.CountUnexpired + `7) o`
	DeleteAuthorizations = expiry.DeleteAuthorizations
	DeleteOrders         = expiry.DeleteOrders
	IsReplaced           = acmetable.IsReplaced

	DeleteAbandonedAuthorizations = expiry.DeleteAbandonedAuthorizations
	DeleteAbandonedOrders         = expiry.DeleteAbandonedOrders

	EraseExternalKeys = expiry.EraseExternalKeys
)

// OnWriter executes a statement on the writing connection.
func (db *DB) OnWriter(ctx context.Context, statement string) error {
	return db.file.Write(ctx, "execute a statement", func(ctx context.Context, tx *engine.Tx) error {
		_, err := tx.Exec(ctx, statement)
		return err
	})
}

// OnReader runs a query for one row.
func (db *DB) OnReader(ctx context.Context, query string, dest ...any) error {
	return db.file.Read(ctx, "run a query", func(ctx context.Context, tx engine.Querier) error {
		return tx.QueryRow(ctx, query).Scan(dest...)
	})
}

// PauseBefore has the first write for each of some purposes wait until release is called. Before each wait it sends on the
// returned channel.
func (db *DB) PauseBefore(purposes ...string) (paused <-chan string, release func()) {
	p := &pausing{DB: db.file, paused: make(chan string), released: make(chan struct{}), left: map[string]bool{}}
	for _, what := range purposes {
		p.left[what] = true
	}
	db.crls = crlindex.New(p)
	return p.paused, func() { p.released <- struct{}{} }
}

// pausing is a database whose writes for some purposes wait once. One goroutine may write.
type pausing struct {
	engine.DB
	paused   chan string
	released chan struct{}
	left     map[string]bool
}

func (p *pausing) Write(ctx context.Context, what string, do func(context.Context, *engine.Tx) error) error {
	if p.left[what] {
		delete(p.left, what)
		p.paused <- what
		<-p.released
	}
	return p.DB.Write(ctx, what, do)
}

// CertificatesQuery returns the query that finds a page of certificates.
func (db *DB) CertificatesQuery(ctx context.Context, f ra.CertificateFilter, after ra.CertificatePosition) (query string, err error) {
	err = db.file.Read(ctx, "plan a page", func(ctx context.Context, tx engine.Querier) error {
		var q engine.Clause
		err := selectCertificates(ctx, tx, &q, bulk.Open{}, f, after)
		query = q.String()
		return err
	})
	return query, err
}

// TokensQuery returns the query that finds a page of tokens.
func TokensQuery(f ra.TokenFilter, after ra.TokenPosition) string {
	var q engine.Clause
	selectTokens(&q, f, time.Time{}, after)
	return q.String()
}

// Statements of a retention step, of the census and of a repeated CreateToken.
const (
	SelectExpired       = expiry.SelectExpired
	DeleteExpired       = expiry.DeleteExpired
	DeleteTokens        = expiry.DeleteTokens
	DeleteNonces        = expiry.DeleteNonces
	SelectHolder        = issuing.SelectHolder
	SelectNonce         = issuing.SelectNonce
	CountRange          = countRange
	ReplaceRequestToken = replaceRequestToken
)

// WorthPacking is how many changes are packed beside so many records, and how many are looked at.
func (db *DB) WorthPacking(packed int) (worth, looked int) { return db.crls.WorthPacking(packed) }

// PackSmall has changes packed however few they are, in segments of so many records.
func (db *DB) PackSmall(records int) { db.crls.PackFrom(1, records) }

// Hold has the writing connection until release is closed, and says when it has it. It commits nothing.
func (db *DB) Hold(held chan<- struct{}, release <-chan struct{}) error {
	errHeld := errors.New("held")
	err := db.write(context.Background(), "hold the writer", func(context.Context, *writeTx) error {
		close(held)
		<-release
		return errHeld
	})
	if errors.Is(err, errHeld) {
		return nil
	}
	return err
}

// HoldLooks has the short reads wait until release is closed, and says when they do.
func (db *DB) HoldLooks(held chan<- struct{}, release <-chan struct{}) error {
	return db.file.Look(context.Background(), "hold the short reads", func(context.Context, engine.Querier) error {
		close(held)
		<-release
		return nil
	})
}

// PanicLooking panics in a short read.
func (db *DB) PanicLooking() error {
	return db.file.Look(context.Background(), "panic", func(context.Context, engine.Querier) error { panic("on purpose") })
}

// WaitingLooks is how many short reads wait for the next transaction.
func (db *DB) WaitingLooks() int { return db.file.(interface{ WaitingLooks() int }).WaitingLooks() }

// Waiting is how many jobs wait for the next transaction.
func (db *DB) Waiting() int { return db.file.Waiting() }

// FailAfterWriting registers an identity, and fails in the same job.
func (db *DB) FailAfterWriting(id ra.Identity, err error) error {
	id.State, id.Revision = pki.Registered, 1
	return db.write(context.Background(), "fail", func(ctx context.Context, tx *writeTx) error {
		return errors.Join(tx.insertIdentity(ctx, id), err)
	})
}

// PanicAfterWriting registers an identity, and panics in the same job.
func (db *DB) PanicAfterWriting(id ra.Identity) error {
	id.State, id.Revision = pki.Registered, 1
	return db.write(context.Background(), "panic", func(ctx context.Context, tx *writeTx) error {
		if err := tx.insertIdentity(ctx, id); err != nil {
			return err
		}
		panic("on purpose")
	})
}

// Independent calls independent with records of commits.
func Independent(records ...ca.Record) int {
	all := make([]*recording, len(records))
	for i := range records {
		all[i] = &recording{Record: &records[i]}
	}
	return independent(all)
}
