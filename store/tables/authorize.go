package tables

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/rules"
)

// authorize refuses an actor that is not allowed to make a change at the given time. See caller.Callers.
//
// It reads each caller once per job, and again after a renewal that revoked a certificate. Jobs that share a transaction do
// not share this cache. So a job is refused if an earlier job in the same transaction revoked its caller.
func (tx *writeTx) authorize(ctx context.Context, by pki.Actor, need pki.Permission, at time.Time) error {
	return tx.callers.Authorize(ctx, tx, by, need, at)
}

// authorizeRecord authorizes the actor of a certificate's record, unless the guard does.
func (tx *writeTx) authorizeRecord(ctx context.Context, r *ca.Record, at time.Time) error {
	if rules.Renews(r) {
		return nil
	}
	if server := rules.DelegateOf(r); server != "" {
		return tx.callers.AuthorizeServer(ctx, tx, r.Actor, server, at)
	}
	if err := tx.authorize(ctx, r.Actor, pki.MayIssue, at); err != nil {
		return err
	}
	return tx.callers.CheckLabelsOf(ctx, tx, r.Actor, r.Identity)
}
