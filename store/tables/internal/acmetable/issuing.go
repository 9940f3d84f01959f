package acmetable

import (
	"context"
	"strconv"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
)

// ReadGuarded reads what the guard of a certificate for an order depends on: the state of the order, which is nil if it is
// not on record, and the number of unexpired certificates of orders with the same names, up to most. It reads nothing if
// the guard has no order.
func ReadGuarded(
	ctx context.Context, q engine.Querier, guard pki.Order, at time.Time, most int,
) (st *acme.OrderState, unexpired int, err error) {
	if guard.IsZero() {
		return nil, 0, nil
	}
	have, err := readOrder(ctx, q, acme.ID(guard.ID.Bytes()), at)
	if err == nil {
		st = &have
	} else if !isMissing(err) {
		return nil, 0, err
	}
	err = q.QueryRow(ctx, CountUnexpired+strconv.Itoa(most)+`) o`, guard.Names[:], engine.Millis(at)).Scan(&unexpired)
	return st, unexpired, err
}

// CountUnexpired counts the unexpired certificates of orders with the same names, up to the limit that follows.
const CountUnexpired = `SELECT count(*) FROM (SELECT 1 FROM acme_orders WHERE names = ? AND not_after > ? LIMIT `

// isMissing reports whether err is the refusal of a record that does not exist.
func isMissing(err error) bool {
	refusal, ok := pki.AsRefusal(err)
	return ok && refusal.Rule.Class() == pki.NotFound
}

// Refusal returns the refusal that a guard for an order would return, or nil, and the number of unexpired certificates
// that counts for it.
func Refusal(ctx context.Context, q engine.Querier, guard pki.Order, at time.Time, most int) (*pki.Refusal, int, error) {
	st, unexpired, err := ReadGuarded(ctx, q, guard, at, most)
	if err != nil {
		return nil, 0, err
	}
	return rules.CheckACMEOrder(st), unexpired, nil
}

// AccountOf returns the ID of the account that an actor is as a column, and NULL if the actor is none.
func AccountOf(by pki.Actor) any { return optionalID(acme.AccountOf(by)) }

// Complete records the certificate of an order, which becomes valid. The guard was checked in the same transaction.
func Complete(ctx context.Context, tx *engine.Tx, guard pki.Order, certificate pki.CertRef, notAfter time.Time) error {
	id := acme.ID(guard.ID.Bytes())
	return tx.ExecOne(ctx, `UPDATE acme_orders SET certificate = ?, names = ?, not_after = ? WHERE public_id = ? AND certificate IS NULL`,
		column.EncodeRef(certificate), guard.Names[:], engine.Millis(notAfter), id[:])
}
