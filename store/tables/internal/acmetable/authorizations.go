package acmetable

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
)

// authorizationStatuses are the statuses of authorizations by their numbers in the table.
var authorizationStatuses = []acme.Status{"", acme.StatusPending, acme.StatusValid, acme.StatusInvalid, acme.StatusDeactivated}

func authorizationNumber(s acme.Status) int { return slices.Index(authorizationStatuses, s) }

// types are the types of challenges. The bits of the column offered have the order of this list, and the number in the
// column attempt is the index plus 1.
var types = acme.ChallengeTypes()

func encodeTypes(all []acme.ChallengeType) int {
	bits := 0
	for i, t := range types {
		if slices.Contains(all, t) {
			bits |= 1 << i
		}
	}
	return bits
}

func decodeTypes(bits int) []acme.ChallengeType {
	var all []acme.ChallengeType
	for i, t := range types {
		if bits&(1<<i) != 0 {
			all = append(all, t)
		}
	}
	return all
}

// authorizationColumns are the columns of the authorization z.
const authorizationColumns = `z.public_id, z.place, z.token, z.offered, z.status, z.attempt, z.attempted_at, z.failure`

// authorizationRow holds authorizationColumns.
type authorizationRow struct {
	id                     []byte
	place, offered, status int
	token                  string
	attempt, attemptedAt   sql.NullInt64
	failure                []byte
}

func (r *authorizationRow) columns() []any {
	return []any{&r.id, &r.place, &r.token, &r.offered, &r.status, &r.attempt, &r.attemptedAt, &r.failure}
}

func (r *authorizationRow) decode() (rules.ACMEAuthorization, error) {
	s := rules.ACMEAuthorization{
		Status: authorizationStatuses[r.status], Offered: decodeTypes(r.offered), Token: r.token, AttemptedAt: engine.RestoreMillis(r.attemptedAt),
	}
	if r.attempt.Valid {
		s.Attempt = types[r.attempt.Int64-1]
	}
	if r.failure != nil {
		s.Failure = &pki.Refusal{}
		if err := json.Unmarshal(r.failure, s.Failure); err != nil {
			return s, fmt.Errorf("read the failure of the authorization %s: %w", idOf(r.id), err)
		}
	}
	return s, nil
}

// readAuthorizations reads the authorizations of an order with their IDs, in the order of its names.
func readAuthorizations(ctx context.Context, q engine.Querier, order int64) (ids []acme.ID, all []rules.ACMEAuthorization, err error) {
	rows := engine.Query(ctx, q, `SELECT `+authorizationColumns+` FROM acme_authorizations z WHERE z.acme_order = `+engine.Integer+` ORDER BY z.place`, order)
	err = rows.Each(func(rows engine.Scanner) error {
		var r authorizationRow
		if err := rows.Scan(r.columns()...); err != nil {
			return err
		}
		s, err := r.decode()
		ids, all = append(ids, idOf(r.id)), append(all, s)
		return err
	})
	return ids, all, err
}

// readAuthorization reads an authorization, its order and its place in the order. If an account is given, it must be valid and
// have ordered the authorization.
func readAuthorization(
	ctx context.Context, q engine.Querier, account, id acme.ID,
) (s rules.ACMEAuthorization, o acme.Order, place int, err error) {
	var r authorizationRow
	var of orderRow
	err = q.QueryRow(ctx, `
		SELECT `+authorizationColumns+`, `+orderColumns+fromOrders+`JOIN acme_authorizations z ON z.acme_order = o.id WHERE z.public_id = `+engine.Blob,
		id[:]).Scan(append(r.columns(), of.columns()...)...)
	if errors.Is(err, sql.ErrNoRows) {
		return s, o, 0, acme.NoAuthorization(id)
	}
	if err != nil {
		return s, o, 0, err
	}
	if o, err = of.decode(); err != nil {
		return s, o, 0, err
	}
	if err := rules.CheckAuthorizationOf(account, id, &acme.Account{ID: o.Account, Status: statuses[of.accountStatus]}); err != nil {
		return s, o, 0, err
	}
	s, err = r.decode()
	return s, o, r.place, err
}

// Authorization implements acme.AuthorizationStore.
func (s *Store) Authorization(ctx context.Context, account, id acme.ID, at time.Time) (a acme.Authorization, err error) {
	err = s.file.Look(ctx, "read an authorization", func(ctx context.Context, q engine.Querier) error {
		have, o, place, err := readAuthorization(ctx, q, account, id)
		if err == nil {
			a = have.Authorization(id, &o, place, at)
		}
		return err
	})
	return a, err
}

// MoveAuthorization implements acme.AuthorizationStore.
func (s *Store) MoveAuthorization(ctx context.Context, m acme.Move) (a acme.Authorization, moved bool, err error) {
	err = s.file.Write(ctx, "change an authorization", func(ctx context.Context, tx *engine.Tx) error {
		have, o, place, err := readAuthorization(ctx, tx, m.Account, m.Authorization)
		if err != nil {
			return err
		}
		have, moved = have.Move(m, o.ExpiresAt)
		if moved {
			err = updateAuthorization(ctx, tx, m.Authorization, have)
		}
		have.AttemptedAt = engine.RestoreMillis(optionalMillis(have.AttemptedAt))
		a = have.Authorization(m.Authorization, &o, place, m.At)
		return err
	})
	return a, err == nil && moved, err
}

// optionalMillis returns a time as a column that can be NULL.
func optionalMillis(t time.Time) sql.NullInt64 {
	if t.IsZero() {
		return sql.NullInt64{}
	}
	return sql.NullInt64{Int64: engine.Millis(t), Valid: true}
}

func updateAuthorization(ctx context.Context, tx *engine.Tx, id acme.ID, s rules.ACMEAuthorization) error {
	var attempt, failure any
	if i := slices.Index(types, s.Attempt); i >= 0 {
		attempt = i + 1
	}
	if s.Failure != nil {
		text, err := json.Marshal(s.Failure)
		if err != nil {
			return err
		}
		failure = text
	}
	return tx.ExecOne(ctx, `UPDATE acme_authorizations SET status = ?, attempt = ?, attempted_at = ?, failure = ? WHERE public_id = ?`,
		authorizationNumber(s.Status), attempt, optionalMillis(s.AttemptedAt), failure, id[:])
}

// Authorized implements acme.AuthorizationStore.
func (s *Store) Authorized(ctx context.Context, account acme.ID, names []acme.Identifier, at time.Time) (all bool, err error) {
	missing := map[acme.Identifier]bool{}
	for _, n := range names {
		missing[n] = true
	}
	err = s.file.Read(ctx, "look for authorizations", func(ctx context.Context, tx engine.Querier) error {
		rows := engine.Query(ctx, tx, `
			SELECT o.identifiers, z.place FROM acme_orders o JOIN acme_authorizations z ON z.acme_order = o.id
			WHERE o.account = (SELECT id FROM acme_accounts WHERE public_id = ?) AND o.expires_at > ? AND z.status = ?`,
			account[:], engine.Millis(at), authorizationNumber(acme.StatusValid))
		return rows.Each(func(rows engine.Scanner) error {
			var encoded []byte
			var place int
			if err := rows.Scan(&encoded, &place); err != nil {
				return err
			}
			identifiers, err := decodeIdentifiers(encoded)
			if err != nil {
				return err
			}
			if delete(missing, identifiers[place]); len(missing) == 0 {
				return engine.ErrStop
			}
			return nil
		})
	})
	return err == nil && len(missing) == 0, err
}
