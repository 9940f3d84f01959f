package acmetable

import (
	"context"
	"fmt"

	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
)

// Replay executes an operation of a replay of the log on accounts or external keys. It fails for other operations.
func Replay(ctx context.Context, tx *engine.Tx, op rules.Operation) error {
	switch op := op.(type) {
	case rules.AddExternalKey:
		return insertKey(ctx, tx, op.ExternalKey, nil)
	case rules.SetExternalKeyRevoked:
		return revokeKey(ctx, tx, op.ID, op.Cause)
	case rules.SetExternalKeysRevoked:
		_, err := revokeKeysOf(ctx, tx, op.Creator, op.Cause)
		return err
	case rules.AddAccount:
		return insertAccount(ctx, tx, op.Account)
	case rules.SetAccountKey:
		return tx.ExecOne(ctx, `UPDATE acme_accounts SET key = ?, thumbprint = ? WHERE public_id = ?`, op.Key, op.Thumbprint[:], op.ID[:])
	case rules.SetAccountDeactivated:
		return tx.ExecOne(ctx, `UPDATE acme_accounts SET status = ? WHERE public_id = ?`, numberOf(acme.AccountDeactivated), op.ID[:])
	default:
		return fmt.Errorf("the operation %T is unknown", op)
	}
}
