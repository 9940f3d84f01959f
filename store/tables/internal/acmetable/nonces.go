package acmetable

import (
	"context"
	"sync"

	"github.com/brevet-pki/brevet/store/engine"
)

const (
	// nonceBlock is how many nonces a server numbers without reading the database.
	nonceBlock = 1 << 10
	// nonceSlots is the maximum number of rows about used nonces, which take 100 MB. Servers give fewer nonces in five
	// minutes, after which a nonce expires: that would be 3,500 a second.
	nonceSlots = 1 << 20
	// maxNonceCalls is how many calls use the database at a time, so that leases always find a connection.
	maxNonceCalls = engine.ApartConnections - 1
)

// Nonces numbers the nonces of ACME requests, and remembers which were used, for all servers of a store (package
// server/acme, UsedNonces). It needs PostgreSQL: a server that has the store for itself remembers them in memory.
//
// Each number belongs to one of nonceSlots slots, and a slot has the newest number that was used. A number that is not newer
// was used before, or is one of the oldest. So the rows need no time, and there are never more of them. They do not survive
// a crash of the database, and neither need they: a nonce keeps a request from being repeated soon, and TLS protects it.
type Nonces struct {
	file  engine.DB
	calls chan struct{} // holds a value for each call that uses the database

	mu        sync.Mutex
	next, end uint64 // of the current block
}

// NewNonces returns the used nonces of the store in a database. Each server needs only one.
func NewNonces(file engine.DB) *Nonces {
	return &Nonces{file: file, calls: make(chan struct{}, maxNonceCalls)}
}

// apart runs do on a connection of [engine.DB.Apart].
func (n *Nonces) apart(ctx context.Context, what string, do func(context.Context, *engine.Tx) error) error {
	select {
	case n.calls <- struct{}{}:
	case <-ctx.Done():
		return n.file.Fail(what, ctx.Err())
	}
	defer func() { <-n.calls }()
	return n.file.Apart(ctx, what, do)
}

// Next returns the number of a new nonce.
func (n *Nonces) Next(ctx context.Context) (uint64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next == n.end {
		var block uint64
		err := n.apart(ctx, "number nonces", func(ctx context.Context, tx *engine.Tx) error {
			return tx.QueryRow(ctx, `SELECT nextval('acme_nonce_blocks')`).Scan(&block)
		})
		if err != nil {
			return 0, err
		}
		n.next, n.end = block*nonceBlock, (block+1)*nonceBlock
	}
	n.next++
	return n.next - 1, nil
}

// Use marks a nonce as used. It returns false if the nonce was used before, or is one of the oldest.
func (n *Nonces) Use(ctx context.Context, number uint64) (isNew bool, err error) {
	err = n.apart(ctx, "use a nonce", func(ctx context.Context, tx *engine.Tx) error {
		changed, err := tx.Exec(ctx, `
			INSERT INTO acme_nonces (slot, number) VALUES (?, ?)
			ON CONFLICT (slot) DO UPDATE SET number = excluded.number WHERE acme_nonces.number < excluded.number`,
			int64(number%nonceSlots), int64(number)) //nolint:gosec // a number of Next
		isNew = changed == 1
		return err
	})
	if err == nil && !isNew {
		n.drop()
	}
	return isNew && err == nil, err
}

// drop ends the current block. On a server that is rarely used, its numbers may be among the oldest.
func (n *Nonces) drop() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.next = n.end
}
