// Package acmetable implements acme.Store with the tables of ACME: accounts, orders, authorizations and external keys.
// It also has the part of issuing that is about orders, and of a replay of the log that is about accounts.
package acmetable

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/tables/internal/caller"
)

// Store implements acme.Store. It is safe for concurrent use.
type Store struct {
	file     engine.DB
	accounts accountCache
}

// New returns the Store of a file. A file has one Store.
func New(file engine.DB) *Store { return &Store{file: file} }

// Changed must be called after other code has changed accounts with [Replay].
func (s *Store) Changed() { s.accounts.changed() }

// writeBy runs do in a write transaction, after it has authorized the actor, who needs a permission.
func (s *Store) writeBy(
	ctx context.Context, what string, by pki.Actor, need pki.Permission, at time.Time,
	do func(context.Context, *engine.Tx, *caller.Callers) error,
) error {
	defer s.accounts.changed() // an operator may revoke accounts
	return s.file.Write(ctx, what, func(ctx context.Context, tx *engine.Tx) error {
		var callers caller.Callers
		if err := callers.Authorize(ctx, tx, by, need, at); err != nil {
			return err
		}
		return do(ctx, tx, &callers)
	})
}
