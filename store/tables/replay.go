package tables

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/retention"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/acmetable"
	"github.com/brevet-pki/brevet/store/tables/internal/bulk"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
	"github.com/brevet-pki/brevet/store/tables/internal/crlshare"
	"github.com/brevet-pki/brevet/store/tables/internal/cross"
	"github.com/brevet-pki/brevet/store/tables/internal/expiry"
	"github.com/brevet-pki/brevet/store/tables/internal/issuing"
	"github.com/brevet-pki/brevet/store/tables/internal/logtable"
	"github.com/brevet-pki/brevet/store/tables/internal/restoring"
	"github.com/brevet-pki/brevet/store/tables/internal/rotations"
	"github.com/brevet-pki/brevet/translog"
)

// Replay appends entries that continue the log, such as those of an archive, and restores their records, in one transaction.
// The restored records have an empty DER. If the entries do not continue the log, Replay returns a *translog.ChainError. It
// also fails if the restored records would differ from what the entries say.
func (l *Log) Replay(ctx context.Context, entries []translog.Sequenced) error {
	if len(entries) == 0 {
		return nil
	}
	defer l.db.acme.Changed()
	return l.db.write(ctx, "replay the log", func(ctx context.Context, tx *writeTx) error {
		head, err := logtable.ReadHead(ctx, tx)
		if err != nil {
			return err
		}
		verifier := translog.NewVerifier(head)
		for _, s := range entries {
			if err := verifier.Add(s); err != nil {
				return err
			}
			if err := tx.replay(ctx, s); err != nil {
				return err
			}
		}
		return logtable.InsertHead(ctx, tx.Tx, verifier.Head())
	})
}

// replay restores the records of one entry, and appends the entry.
func (tx *writeTx) replay(ctx context.Context, s translog.Sequenced) error {
	e, err := translog.ParseEntry(s.Entry)
	if err != nil {
		return err
	}
	if err := tx.execute(ctx, s.Index, e); err != nil {
		return err
	}
	return logtable.Insert(ctx, tx.Tx, s) // fails if this store has an unsequenced entry with the same index
}

// record restores the records of a new entry, and appends the entry.
func record(ctx context.Context, tx *engine.Tx, e translog.Entry) error {
	index, err := logtable.ReadNextIndex(ctx, tx)
	if err == nil {
		err = (&writeTx{Tx: tx}).execute(ctx, index, e)
	}
	if err != nil {
		return err
	}
	return logtable.Append(ctx, tx, e)
}

// execute executes the operations of an entry.
func (tx *writeTx) execute(ctx context.Context, index uint64, e translog.Entry) error {
	ops, err := rules.Replay(index, e)
	if err != nil {
		return err
	}
	for _, op := range ops {
		if err := tx.replayOperation(ctx, op); err != nil {
			return fmt.Errorf("replay log entry %d, %s: %w", index, e.Action, err)
		}
	}
	return nil
}

// replayOperation executes one operation.
func (tx *writeTx) replayOperation(ctx context.Context, op rules.Operation) error {
	switch op := op.(type) {
	case rules.AddIdentity:
		return tx.insertIdentity(ctx, op.Identity)
	case rules.SetIdentity:
		return tx.replaySetIdentity(ctx, op.Identity)
	case rules.ChangeIdentity:
		_, err := tx.setIdentityState(ctx, op.Change)
		return err
	case rules.AddToken:
		return tx.insertToken(ctx, op.Token)
	case rules.SetTokenBinding:
		return tx.bindToken(ctx, op.ID, op.Request, op.Key, op.Identity)
	case rules.SetTokenRevoked:
		return tx.ExecOne(ctx, `UPDATE tokens SET revoked = ? WHERE token = ?`, op.Cause, op.ID.Bytes())
	case rules.SetTokensRevoked:
		_, err := tx.Exec(ctx, `
			INSERT INTO token_revocations (creator, era, reason) SELECT m.id, `+nextEra+`, ? FROM identities m WHERE m.spiffe_id = ?`,
			op.Cause, op.Creator.String())
		return err
	case rules.AddCertificate:
		return tx.replayCertificate(ctx, op)
	case rules.AddAbandoned:
		isNew, err := tx.insertAbandoned(ctx, op.IntentItem, op.Status, op.Index)
		if err == nil && !isNew {
			err = errRepeated
		}
		return err
	case rules.SetStatus:
		return tx.replayStatus(ctx, op)
	case rules.MarkKey:
		return tx.markKey(ctx, column.KeyID(op.Key), op.At)
	case rules.AddBulk:
		return tx.replayBulk(ctx, op.RecordedBulk)
	case rules.SetBulkProgress:
		return tx.replayStep(ctx, op)
	default:
		return tx.replayAuthority(ctx, op)
	}
}

// replayAuthority executes an operation on CAs, CRLs, the policy or rotations, or removes expired records.
func (tx *writeTx) replayAuthority(ctx context.Context, op rules.Operation) error {
	switch op := op.(type) {
	case rules.KnowIssuer:
		_, err := tx.issuer(ctx, op.Issuer)
		return err
	case rules.PutInstallation:
		return tx.replayInstallation(ctx, op)
	case rules.PutCross:
		_, err := cross.Put(ctx, tx.Tx, cross.Row{
			Signer: op.Signer, Subject: op.Issuer, Fingerprint: op.Fingerprint, DER: []byte{}, At: op.At,
		})
		return err
	case rules.SetInstallationState:
		return tx.replayInstallationState(ctx, op)
	case rules.SetCRLNumber:
		id, err := tx.issuer(ctx, op.Issuer)
		if err != nil {
			return err
		}
		return tx.setNumber(ctx, id, op.Number)
	case rules.PutCRL:
		id, err := tx.issuer(ctx, op.Issuer)
		if err != nil {
			return err
		}
		return crlshare.Put(ctx, tx.Tx, id, op.CRL)
	case rules.AddPoints:
		for _, p := range op.Points {
			if _, err := tx.putPoint(ctx, p); err != nil {
				return err
			}
		}
		return nil
	case rules.AddPolicy:
		return tx.insertPolicy(ctx, op.PolicyRevision)
	case rules.Expire:
		return tx.replayExpire(ctx, op)
	case rules.AddRotation:
		return rotations.Insert(ctx, tx.Tx, &op.RecordedRotation)
	case rules.EndRotation:
		return rotations.SetEnd(ctx, tx.Tx, op.End)
	case rules.RestoreLog:
		return restoring.Apply(ctx, tx.Tx, op.RestoredLog)
	case rules.AcceptRestore:
		return restoring.ApplyAccepted(ctx, tx.Tx, op.AcceptedRestore)
	default:
		return acmetable.Replay(ctx, tx.Tx, op)
	}
}

func (tx *writeTx) replaySetIdentity(ctx context.Context, id ra.Identity) error {
	have, err := readIdentity(ctx, tx, id.ID)
	if err != nil {
		return err
	}
	if err := tx.replaceLabels(ctx, have, id); err != nil {
		return err
	}
	return tx.setAttributes(ctx, id)
}

// errRepeated is the error of a log that records one serial number twice.
var errRepeated = errors.New("the serial number is on record already")

func (tx *writeTx) replayCertificate(ctx context.Context, op rules.AddCertificate) error {
	g := guarded{effects: rules.Effects{Superseded: op.Superseded}}
	if err := tx.QueryRow(ctx, `SELECT id, recoveries FROM identities WHERE spiffe_id = ?`, op.Identity.String()).Scan(&g.identity, &g.recoveries); err != nil {
		return err
	}
	if !op.Guard.Token.IsZero() {
		if err := tx.QueryRow(ctx, `SELECT id FROM tokens WHERE token = ?`, op.Guard.Token.Bytes()).Scan(&g.token); err != nil {
			return err
		}
	}
	if before := op.Guard.Predecessor.Serial; !before.IsZero() {
		row := tx.QueryRow(ctx, `SELECT id, successor IS NULL FROM certificates WHERE serial = ?`, before.Bytes())
		if err := row.Scan(&g.predecessor, &g.effects.Succeeds); err != nil {
			return err
		}
		g.effects.Succeeds = g.effects.Succeeds && !op.Guard.LosesPredecessor()
	}
	if op.DER == nil {
		op.DER = []byte{} // NULL means that the certificate was not delivered
	}
	id, err := tx.insertIssued(ctx, &op.Record, g.identity)
	if err == nil && id == 0 {
		err = errRepeated
	}
	if err != nil {
		return err
	}
	if err := tx.Later(ctx, issuing.ClaimKey, issuing.Claim(op.KeyHash, g.identity, g.effects.KeyUses())...); err != nil {
		return err
	}
	return tx.consume(ctx, &op.Guard, g, id)
}

func (tx *writeTx) replayStatus(ctx context.Context, op rules.SetStatus) error {
	c, err := readRow(ctx, tx, op.Ref)
	if err != nil {
		return err
	}
	if err := tx.writeStatus(ctx, c.id, op.Status, engine.OptionalMillis(op.InvalidSince), op.Index); err != nil {
		return err
	}
	if op.CompromisedAt.IsZero() || !c.key.Valid {
		return nil
	}
	return tx.markKey(ctx, c.key.Int64, op.CompromisedAt)
}

// certificateRow holds the columns of a certificate that are needed to replay a status.
type certificateRow struct {
	id    int64
	key   sql.NullInt64
	state pki.State
	since sql.NullInt64
}

func readRow(ctx context.Context, tx *writeTx, ref pki.CertRef) (certificateRow, error) {
	var c certificateRow
	err := tx.QueryRow(ctx, `
		SELECT id, key, state, invalid_since FROM certificates WHERE serial = ? AND issuer = (SELECT id FROM issuers WHERE issuer = ?)`,
		ref.Serial.Bytes(), ref.Issuer.Bytes()).Scan(&c.id, &c.key, &c.state, &c.since)
	if errors.Is(err, sql.ErrNoRows) {
		err = rules.NoCertificate(ref.Serial)
	}
	return c, err
}

func (tx *writeTx) replayBulk(ctx context.Context, b rules.RecordedBulk) error {
	row := bulk.Row{RecordedBulk: b}
	if err := tx.insertBulkRow(ctx, &row); err != nil {
		return err
	}
	if row.ID != b.ID || row.Mark != b.Mark {
		return fmt.Errorf("bulk revocation %d with mark %d was restored as %d with mark %d", b.ID, b.Mark, row.ID, row.Mark)
	}
	return nil
}

func (tx *writeTx) replayStep(ctx context.Context, op rules.SetBulkProgress) error {
	row, err := bulk.Read(ctx, tx, op.ID)
	if err != nil {
		return err
	}
	for i, change := range op.Changes {
		c, err := readRow(ctx, tx, change.Ref)
		if err != nil {
			return err
		}
		since := engine.OptionalMillis(row.InvalidSince)
		switch {
		case op.InvalidTimes != nil:
			since = engine.OptionalMillis(op.InvalidTimes[i])
		case row.InvalidSince.IsZero() && c.state == pki.Revoked && c.since.Valid:
			since = c.since.Int64
		}
		if err := tx.writeStatus(ctx, c.id, change.Status, since, op.Index); err != nil {
			return err
		}
		if row.Reason == pki.KeyCompromise && row.Action == revocation.Revoke && c.key.Valid {
			if err := tx.markKey(ctx, c.key.Int64, row.At); err != nil {
				return err
			}
		}
	}
	var total any
	if op.Counted {
		total = op.Total
	}
	return tx.ExecOne(ctx, `UPDATE bulk_revocations SET progress = ?, total = ?, expired = ?, applied = ?, done = ? WHERE id = ?`,
		op.Progress, total, op.Expired, op.Applied, op.Done, op.ID)
}

func (tx *writeTx) replayInstallation(ctx context.Context, op rules.PutInstallation) error {
	id, err := tx.issuer(ctx, op.Issuer)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		INSERT INTO ca_certificates (issuer, fingerprint, key_hash, key_label, der, installed_at, state) VALUES (?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (issuer) DO UPDATE SET fingerprint = excluded.fingerprint, installed_at = excluded.installed_at`,
		id, op.Fingerprint, op.KeyHash.Bytes(), op.KeyLabel, []byte{}, engine.Millis(op.At), ca.Active)
	return err
}

func (tx *writeTx) replayInstallationState(ctx context.Context, op rules.SetInstallationState) error {
	id, err := tx.issuer(ctx, op.Issuer)
	if err != nil {
		return err
	}
	if op.State == ca.Removed {
		if err := tx.removePublished(ctx, id); err != nil {
			return err
		}
	}
	return tx.ExecOne(ctx, `UPDATE ca_certificates SET state = ? WHERE issuer = ?`, op.State, id)
}

func (tx *writeTx) replayExpire(ctx context.Context, op rules.Expire) error {
	var removed retention.Expired
	if op.Last != (retention.Position{}) {
		if err := expiry.RemoveCertificates(ctx, tx.Tx, op.After, op.Last, &removed); err != nil {
			return err
		}
	}
	if op.Gone.Tokens > 0 {
		if err := expiry.RemoveTokens(ctx, tx.Tx, op.Gone.Tokens, engine.Millis(op.Before), &removed); err != nil {
			return err
		}
	}
	if removed.Certificates != op.Gone.Certificates || removed.Tokens != op.Gone.Tokens || removed.Keys != op.Gone.Keys {
		return fmt.Errorf("%d certificates, %d tokens and %d keys were removed, want %d, %d and %d",
			removed.Certificates, removed.Tokens, removed.Keys, op.Gone.Certificates, op.Gone.Tokens, op.Gone.Keys)
	}
	return nil
}
