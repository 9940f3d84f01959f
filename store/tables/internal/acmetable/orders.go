package acmetable

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/store/tables/internal/column"
)

// orderColumns are the columns of the order o, with its account a.
const orderColumns = `o.id, o.public_id, a.public_id, a.status, o.identifiers, o.profile, o.created_at, o.expires_at, o.replaces, o.certificate`

// fromOrders is the rest of a statement with orderColumns, before its condition.
const fromOrders = ` FROM acme_orders o JOIN acme_accounts a ON a.id = o.account `

// orderRow holds orderColumns.
type orderRow struct {
	row                   int64
	id, account           []byte
	accountStatus         int64
	identifiers           []byte
	profile               string
	createdAt, expiresAt  int64
	replaces, certificate []byte
}

func (r *orderRow) columns() []any {
	return []any{&r.row, &r.id, &r.account, &r.accountStatus, &r.identifiers, &r.profile, &r.createdAt, &r.expiresAt, &r.replaces, &r.certificate}
}

// decode decodes the row, without the status and the authorizations.
func (r *orderRow) decode() (acme.Order, error) {
	o := acme.Order{
		ID: idOf(r.id), Account: idOf(r.account), Profile: r.profile,
		CreatedAt: engine.FromMillis(r.createdAt), ExpiresAt: engine.FromMillis(r.expiresAt),
	}
	var err error
	if o.Identifiers, err = decodeIdentifiers(r.identifiers); err != nil {
		return o, fmt.Errorf("read the names of the order %s: %w", o.ID, err)
	}
	if o.Replaces, err = column.DecodeRef(r.replaces); err != nil {
		return o, err
	}
	o.Certificate, err = column.DecodeRef(r.certificate)
	return o, err
}

// encodeIdentifiers returns identifiers as a JSON list of texts such as dns:pump.example.
func encodeIdentifiers(all []acme.Identifier) (string, error) {
	texts := make([]string, len(all))
	for i, n := range all {
		texts[i] = n.String()
	}
	encoded, err := json.Marshal(texts)
	return string(encoded), err
}

func decodeIdentifiers(encoded []byte) ([]acme.Identifier, error) {
	var texts []string
	if err := json.Unmarshal(encoded, &texts); err != nil {
		return nil, err
	}
	all := make([]acme.Identifier, len(texts))
	for i, text := range texts {
		kind, value, found := strings.Cut(text, ":")
		if !found {
			return nil, fmt.Errorf("%q is no identifier", text)
		}
		all[i] = acme.Identifier{Type: acme.IdentifierType(kind), Value: value}
	}
	return all, nil
}

// CreateOrder implements acme.OrderStore.
func (s *Store) CreateOrder(ctx context.Context, o acme.Order, all []acme.Authorization) error {
	return s.file.Write(ctx, "record an order", func(ctx context.Context, tx *engine.Tx) error {
		a, account, err := readAccount(ctx, tx, byID, o.Account[:])
		if err != nil {
			return err
		}
		var open int
		err = tx.QueryRow(ctx, CountOpen, account, engine.Millis(o.CreatedAt), acme.MaxOpenOrders).Scan(&open)
		if err != nil {
			return err
		}
		err = rules.CheckNewOrder(&a, &o, open, func() (replaced bool, err error) {
			err = tx.QueryRow(ctx, IsReplaced, column.EncodeRef(o.Replaces), engine.Millis(o.CreatedAt)).Scan(&replaced)
			return replaced, err
		})
		if err != nil {
			return err
		}
		return insertOrder(ctx, tx, account, &o, all)
	})
}

// CountOpen counts the orders of an account that have no certificate and have not expired, up to a limit.
const CountOpen = `
	SELECT count(*) FROM (SELECT 1 FROM acme_orders WHERE account = ? AND certificate IS NULL AND expires_at > ? LIMIT ` + engine.Integer + `) o`

// IsReplaced reports whether an order that is not invalid replaces a certificate: one with a certificate, or an unexpired
// one all of whose authorizations are pending or valid. It reads the unexpired orders of one account at most, because only
// the account that ordered a certificate can replace it.
const IsReplaced = `
	SELECT EXISTS (SELECT 1 FROM acme_orders WHERE replaces = ?1 AND certificate IS NOT NULL)
	  OR EXISTS (
		SELECT 1 FROM acme_orders o WHERE o.replaces = ?1 AND o.certificate IS NULL AND o.expires_at > ?2
		  AND json_array_length(o.identifiers) =
			(SELECT count(*) FROM acme_authorizations z WHERE z.acme_order = o.id AND z.status IN (1, 2)))`

func insertOrder(ctx context.Context, tx *engine.Tx, account int64, o *acme.Order, all []acme.Authorization) error {
	identifiers, err := encodeIdentifiers(o.Identifiers)
	if err != nil {
		return err
	}
	row, err := tx.Insert(ctx, `
		INSERT INTO acme_orders (public_id, account, identifiers, profile, created_at, expires_at, replaces) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		o.ID[:], account, identifiers, o.Profile, engine.Millis(o.CreatedAt), engine.Millis(o.ExpiresAt), column.EncodeRef(o.Replaces))
	if err != nil {
		return err
	}
	for i := range all {
		state := rules.NewACMEAuthorization(&all[i])
		_, err := tx.Exec(ctx, `
			INSERT INTO acme_authorizations (public_id, acme_order, place, token, offered, status) VALUES (?, ?, ?, ?, ?, ?)`,
			all[i].ID[:], row, i, state.Token, encodeTypes(state.Offered), authorizationNumber(state.Status))
		if err != nil {
			return err
		}
	}
	return nil
}

// Order implements acme.OrderStore.
func (s *Store) Order(ctx context.Context, id acme.ID, at time.Time) (st acme.OrderState, err error) {
	err = s.file.Look(ctx, "read an order", func(ctx context.Context, q engine.Querier) error {
		st, err = readOrder(ctx, q, id, at)
		return err
	})
	return st, err
}

// readOrder reads an order with what it depends on, as of a time.
func readOrder(ctx context.Context, q engine.Querier, id acme.ID, at time.Time) (acme.OrderState, error) {
	var st acme.OrderState
	var r orderRow
	var of accountRow
	err := q.QueryRow(ctx, `
		SELECT `+orderColumns+`, `+accountColumns+fromOrders+`LEFT JOIN acme_external_keys k ON k.id = a.external_key
		WHERE o.public_id = `+engine.Blob, id[:]).Scan(append(r.columns(), of.columns()...)...)
	if errors.Is(err, sql.ErrNoRows) {
		return st, acme.NoOrder()
	}
	if err != nil {
		return st, err
	}
	if st.Order, err = r.decode(); err != nil {
		return st, err
	}
	if st.Account, err = of.decode(); err != nil {
		return st, err
	}
	if !st.Account.ExternalKey.IsZero() {
		if st.Key, _, err = readKey(ctx, q, st.Account.ExternalKey); err != nil {
			return st, err
		}
	}
	ids, all, err := readAuthorizations(ctx, q, r.row)
	if err != nil {
		return st, err
	}
	st.Order.Authorizations = ids
	rules.SetACMEOrderStatus(&st.Order, all, at)
	for i := range all {
		st.Authorizations = append(st.Authorizations, all[i].Authorization(ids[i], &st.Order, i, at))
	}
	return st, nil
}

// OrderOf implements acme.OrderStore.
func (s *Store) OrderOf(ctx context.Context, certificate pki.CertRef) (st acme.OrderState, err error) {
	err = s.file.Look(ctx, "read the order of a certificate", func(ctx context.Context, q engine.Querier) error {
		var id []byte
		row := q.QueryRow(ctx, `SELECT public_id FROM acme_orders WHERE certificate = ?`, column.EncodeRef(certificate))
		err := row.Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			return rules.NoCertificate(certificate.Serial)
		}
		if err != nil {
			return err
		}
		st, err = readOrder(ctx, q, idOf(id), time.Time{})
		return err
	})
	return st, err
}

// Certificates implements acme.OrderStore.
func (s *Store) Certificates(
	ctx context.Context, account acme.ID, at time.Time, after pki.CertRef, limit int,
) (page []pki.CertRef, err error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, err
	}
	err = s.file.Read(ctx, "list the certificates of an account", func(ctx context.Context, tx engine.Querier) error {
		rows := engine.Query(ctx, tx, SelectCertificates, account[:], column.Optional(after.Serial), engine.Millis(at), limit)
		return rows.Each(func(rows engine.Scanner) error {
			var issuer, serial []byte
			if err := rows.Scan(&issuer, &serial); err != nil {
				return err
			}
			ref, err := column.ParseRef(issuer, serial)
			page = append(page, ref)
			return err
		})
	})
	return page, err
}

// SelectCertificates selects the unexpired certificates of an account after one with a serial number. It sorts the
// unexpired ones of one account.
const SelectCertificates = `
	SELECT i.issuer, c.serial FROM certificates c INDEXED BY certificates_by_account JOIN issuers i ON i.id = c.issuer
	WHERE c.account = (SELECT id FROM acme_accounts WHERE public_id = ?1)
	  AND c.id > coalesce((SELECT id FROM certificates WHERE serial = ?2), 0) AND c.not_after > ?3
	ORDER BY c.id LIMIT ?4`
