package acmetable

import (
	"context"
	"fmt"

	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
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
		return setStatus(ctx, tx, op.ID, acme.AccountDeactivated)
	case rules.SetAccountRevoked:
		return setStatus(ctx, tx, op.ID, acme.AccountRevoked)
	default:
		return fmt.Errorf("the operation %T is unknown", op)
	}
}
