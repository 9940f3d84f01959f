// Package restoring keeps a store from being served while it is restored from a backup, and ends a restore.
package restoring

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
	"github.com/brevet-pki/brevet/store/tables/internal/logtable"
	"github.com/brevet-pki/brevet/translog"
)

// Store restores a store. It implements the interface of package backup.
type Store struct {
	db     engine.DB
	record Record
}

// Record executes the operations of a log entry as a replay does, and appends the entry.
type Record func(context.Context, *engine.Tx, translog.Entry) error

// New returns the view of a database.
func New(db engine.DB, record Record) *Store { return &Store{db, record} }

// Begin marks the store, so that nothing is served from it before the restore ends. It fences every server. A list that waits
// for its acceptance stays.
func (s *Store) Begin(ctx context.Context) error {
	return s.db.Write(ctx, "begin a restore", func(ctx context.Context, tx *engine.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO restores (id, list) VALUES (1, NULL) ON CONFLICT (id) DO NOTHING`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `DELETE FROM epochs`)
		return err
	})
}

// write runs a step of a restore. It fails if no restore runs, such as because another process has ended it, or if a server has
// an epoch.
func (s *Store) write(ctx context.Context, what string, do func(context.Context, *engine.Tx) error) error {
	return s.db.Write(ctx, what, func(ctx context.Context, tx *engine.Tx) error {
		var runs, served bool
		err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM restores), EXISTS (SELECT 1 FROM epochs)`).Scan(&runs, &served)
		if err == nil && (!runs || served) {
			err = errors.New("another restore of this store has ended, or a server uses it: stop all servers, restore the database again, and run the command again")
		}
		if err != nil {
			return err
		}
		return do(ctx, tx)
	})
}

// Check returns an [*rules.IncompleteError] or an [*rules.UnacceptedError] if nothing may be served from the store.
func (s *Store) Check(ctx context.Context) error {
	return s.db.Look(ctx, "look for a restore", func(ctx context.Context, q engine.Querier) error { return Check(ctx, q) })
}

// Check is [Store.Check] in a transaction.
func Check(ctx context.Context, q engine.Querier) error {
	var list []byte
	err := q.QueryRow(ctx, `SELECT list FROM restores`).Scan(&list)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return err
	case list == nil:
		return &rules.IncompleteError{}
	default:
		return &rules.UnacceptedError{List: translog.Hash(list)}
	}
}

// Accept records that an operator accepts a list. It refuses another list than that of the store.
func (s *Store) Accept(ctx context.Context, list translog.Hash, by pki.Actor, at time.Time) error {
	return s.db.Write(ctx, "accept the list of a restore", func(ctx context.Context, tx *engine.Tx) error {
		var unaccepted *rules.UnacceptedError
		switch err := Check(ctx, tx); {
		case err == nil:
			return errors.New("there is nothing to accept: no restore waits for it")
		case !errors.As(err, &unaccepted):
			return err
		case unaccepted.List != list:
			return fmt.Errorf("the store waits for the list %s, not for %s: read that list first", unaccepted.List, list)
		}
		if err := logtable.Append(ctx, tx, rules.AcceptedEntry(list, by, at)); err != nil {
			return err
		}
		return tx.ExecOne(ctx, `DELETE FROM restores`)
	})
}

// Numbers returns, for each CA on record, the highest CRL number that the store knows, and at least least.
func (s *Store) Numbers(ctx context.Context, least *big.Int) (numbers []translog.CRLNumber, err error) {
	err = s.db.Read(ctx, "read the CRL numbers", func(ctx context.Context, tx engine.Querier) error {
		rows := engine.Query(ctx, tx, `
			SELECT i.issuer, (SELECT n FROM (SELECT taken AS n FROM crl_numbers t WHERE t.issuer = i.id UNION ALL SELECT number FROM crls c WHERE c.issuer = i.id) a
			        ORDER BY n DESC LIMIT 1)
			FROM issuers i ORDER BY i.id`)
		return rows.Each(func(rows engine.Scanner) error {
			var issuer, taken []byte
			if err := rows.Scan(&issuer, &taken); err != nil {
				return err
			}
			id, err := pki.IssuerIDFromBytes(issuer)
			n := translog.CRLNumber{Issuer: id, Number: new(big.Int).SetBytes(taken)}
			if n.Number.Cmp(least) < 0 {
				n.Number = least
			}
			numbers = append(numbers, n)
			return err
		})
	})
	return numbers, err
}

// End ends a restore with a log entry. If this or an earlier restore has a list, nothing is served before an operator accepts
// the last one.
func (s *Store) End(ctx context.Context, r translog.RestoredLog, by pki.Actor, at time.Time) error {
	return s.write(ctx, "end a restore", func(ctx context.Context, tx *engine.Tx) error {
		if err := Apply(ctx, tx, r); err != nil {
			return err
		}
		if err := removeRecorded(ctx, tx); err != nil {
			return err
		}
		if err := logtable.Append(ctx, tx, rules.RestoredEntry(r, by, at)); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `DELETE FROM restores WHERE list IS NULL`)
		return err
	})
}

// Apply voids what was open before a restore, begins the epoch, and sets the CRL numbers. Challenges that were made before
// are void because the key that seals them is replaced. If the replay of a log is part of a restore, its lists that were not
// accepted apply to that, too.
func Apply(ctx context.Context, tx *engine.Tx, r translog.RestoredLog) error {
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails
	for _, s := range []struct {
		statement string
		args      []any
	}{
		{`UPDATE tokens SET revoked = ? WHERE spent = 0 AND revoked IS NULL`, []any{rules.RestoredCause}},
		{`UPDATE acme_external_keys SET revoked = ?, sealed = NULL
		  WHERE revoked IS NULL AND NOT EXISTS (SELECT 1 FROM acme_accounts a WHERE a.external_key = acme_external_keys.id)`, []any{rules.RestoredCause}},
		{`DELETE FROM acme_authorizations WHERE acme_order IN (SELECT id FROM acme_orders WHERE certificate IS NULL)`, nil},
		{`DELETE FROM acme_orders WHERE certificate IS NULL`, nil},
		{`UPDATE sealing_key SET key = ?`, []any{key[:]}},
		{`DELETE FROM epochs`, nil},
		{`DELETE FROM servers`, nil},
		{`UPDATE log_epoch SET epoch = ?`, []any{r.Epoch[:]}},
	} {
		if _, err := tx.Exec(ctx, s.statement, s.args...); err != nil {
			return err
		}
	}
	if r.WithoutArchive() {
		if _, err := tx.Exec(ctx, `UPDATE restores SET list = ?`, r.List[:]); err != nil {
			return err
		}
	}
	for _, n := range r.Numbers {
		if _, err := tx.Exec(ctx, `INSERT INTO issuers (issuer) VALUES (?) ON CONFLICT DO NOTHING`, n.Issuer.Bytes()); err != nil {
			return err
		}
		err := tx.ExecOne(ctx, `
			INSERT INTO crl_numbers (issuer, taken) VALUES ((SELECT id FROM issuers WHERE issuer = ?), ?)
			ON CONFLICT (issuer) DO UPDATE SET taken = excluded.taken`,
			n.Issuer.Bytes(), n.Number.FillBytes(make([]byte, rules.CRLNumberSize)))
		if err != nil {
			return err
		}
	}
	return nil
}

// ApplyAccepted replays the acceptance of a list.
func ApplyAccepted(ctx context.Context, tx *engine.Tx, a translog.AcceptedRestore) error {
	_, err := tx.Exec(ctx, `UPDATE restores SET list = NULL WHERE list = ?`, a.List[:])
	return err
}

// removeRecorded removes the items from intents that a replay has recorded. The others are revoked when a server starts.
func removeRecorded(ctx context.Context, tx *engine.Tx) error {
	left := map[string][]byte{}
	err := engine.Query(ctx, tx, `SELECT batch, items FROM intents`).Each(func(rows engine.Scanner) error {
		var batch, items []byte
		err := rows.Scan(&batch, &items)
		left[string(batch)] = items
		return err
	})
	if err != nil {
		return err
	}
	for batch, encoded := range left {
		items, err := column.DecodeItems(encoded)
		if err != nil {
			return fmt.Errorf("read the intent %x: %w", batch, err)
		}
		kept := items[:0]
		for _, item := range items {
			var recorded bool
			if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM certificates WHERE serial = ?)`, item.Ref.Serial.Bytes()).Scan(&recorded); err != nil {
				return err
			}
			if !recorded {
				kept = append(kept, item)
			}
		}
		if len(kept) == 0 {
			err = tx.ExecOne(ctx, `DELETE FROM intents WHERE batch = ?`, []byte(batch))
		} else {
			err = tx.ExecOne(ctx, `UPDATE intents SET items = ? WHERE batch = ?`, column.EncodeItems(kept), []byte(batch))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// derTables are the tables with CA certificates.
var derTables = [...]string{"ca_certificates", "cross_certificates"}

// Lacking returns the fingerprints of the CA certificates that a replay has restored without their DER.
func (s *Store) Lacking(ctx context.Context) (lacking [][sha256.Size]byte, err error) {
	err = s.db.Read(ctx, "look for CA certificates", func(ctx context.Context, tx engine.Querier) error {
		for _, table := range derTables {
			rows := engine.Query(ctx, tx, `SELECT fingerprint FROM `+table+` WHERE length(der) = 0 ORDER BY id`)
			err := rows.Each(func(rows engine.Scanner) error {
				var fingerprint []byte
				err := rows.Scan(&fingerprint)
				if err == nil && len(fingerprint) != sha256.Size {
					err = errors.New("a fingerprint is no SHA-256")
				}
				if err == nil {
					lacking = append(lacking, [sha256.Size]byte(fingerprint))
				}
				return err
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	return lacking, err
}

// Supply records the DER of a CA certificate, if the store has its fingerprint without it.
func (s *Store) Supply(ctx context.Context, der []byte) error {
	fingerprint := sha256.Sum256(der)
	return s.write(ctx, "record a CA certificate", func(ctx context.Context, tx *engine.Tx) error {
		for _, table := range derTables {
			if _, err := tx.Exec(ctx, `UPDATE `+table+` SET der = ? WHERE fingerprint = ? AND length(der) = 0`, der, fingerprint[:]); err != nil {
				return err
			}
		}
		return nil
	})
}
