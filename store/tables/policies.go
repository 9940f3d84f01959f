package tables

import (
	"context"
	"database/sql"
	"errors"
	"math"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/rules"
)

// pageSize is the size in bytes of a page of the file, which is SQLite's default.
const pageSize = 4096

// ApplyPolicy records a new revision of the policy.
func (r *RA) ApplyPolicy(ctx context.Context, c ra.PolicyChange) (ra.PolicyRevision, error) {
	if err := rules.CheckPolicy(c); err != nil {
		return ra.PolicyRevision{}, err
	}
	var next ra.PolicyRevision
	err := r.db.writeBy(ctx, "apply a policy", c.By, pki.MayAdminister, c.At, func(ctx context.Context, tx *writeTx) error {
		newest, err := scanPolicy(tx.QueryRow(ctx, `SELECT `+policyColumns+newestPolicy, 0))
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		var changed bool
		if next, changed, err = rules.NextPolicy(newest, c); err != nil {
			return err
		}
		tx.Pages += uint64(len(c.Document)) / pageSize
		if next.Document = c.Document; !changed { // the document is missing if the revision was restored from the log
			_, err := tx.Exec(ctx, `UPDATE policies SET document = ? WHERE revision = ? AND document IS NULL`,
				c.Document, next.Revision)
			return err
		}
		if err := tx.insertPolicy(ctx, next); err != nil {
			return err
		}
		return tx.append(ctx, rules.PolicyEntry(next, c.By))
	})
	if err != nil {
		return ra.PolicyRevision{}, err
	}
	return next, nil
}

// insertPolicy records a revision of the policy. Its document is NULL if the revision has none.
func (tx *writeTx) insertPolicy(ctx context.Context, p ra.PolicyRevision) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO policies (revision, document, sha256, applied_by, applied_at, comment) VALUES (?, ?, ?, ?, ?, ?)`,
		p.Revision, p.Document, p.SHA256[:], p.AppliedBy.String(), engine.Millis(p.AppliedAt), p.Comment)
	return err
}

const (
	policyColumns = `revision, sha256, applied_by, applied_at, comment`
	// newestPolicy selects the newest revision. Its parameter is 0.
	newestPolicy = ` FROM policies WHERE revision > ? ORDER BY revision DESC LIMIT 1`
)

// scanPolicy reads a row that begins with policyColumns.
func scanPolicy(row engine.Scanner, more ...any) (ra.PolicyRevision, error) {
	var p ra.PolicyRevision
	var sum []byte
	var by string
	var at int64
	if err := row.Scan(append([]any{&p.Revision, &sum, &by, &at, &p.Comment}, more...)...); err != nil {
		return ra.PolicyRevision{}, err
	}
	copy(p.SHA256[:], sum) // the table checks its length
	p.AppliedBy, p.AppliedAt = pki.ActorFromText(by), engine.FromMillis(at)
	return p, nil
}

// Policy returns a revision of the policy with its document.
func (r *RA) Policy(ctx context.Context, revision uint64) (ra.PolicyRevision, error) {
	var p ra.PolicyRevision
	err := r.db.file.Look(ctx, "read a policy", func(ctx context.Context, q engine.Querier) error {
		query := `SELECT ` + policyColumns + `, document FROM policies WHERE revision = ?`
		if revision == 0 {
			query = `SELECT ` + policyColumns + `, document` + newestPolicy
		}
		var document []byte
		var err error
		p, err = scanPolicy(q.QueryRow(ctx, query, revision), &document)
		p.Document = document
		return err
	})
	if errors.Is(err, sql.ErrNoRows) {
		return ra.PolicyRevision{}, rules.NoPolicy(revision)
	}
	if err == nil && p.Document == nil {
		err = rules.NoPolicyDocument(p.Revision)
	}
	if err != nil {
		return ra.PolicyRevision{}, err
	}
	return p, nil
}

// Policies returns a page of revisions of the policy, newest first.
func (r *RA) Policies(ctx context.Context, after uint64, limit int) ([]ra.PolicyRevision, uint64, error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, 0, err
	}
	if after == 0 {
		after = math.MaxInt64
	}
	var page []ra.PolicyRevision
	err := r.db.file.Read(ctx, "list the policies", func(ctx context.Context, tx engine.Querier) error {
		page = nil
		rows := engine.Query(ctx, tx, `
			SELECT `+policyColumns+` FROM policies WHERE revision < ? ORDER BY revision DESC LIMIT ?`, after, limit)
		return rows.Each(func(rows engine.Scanner) error {
			p, err := scanPolicy(rows)
			page = append(page, p)
			return err
		})
	})
	if err != nil {
		return nil, 0, err
	}
	return page, rules.NextPolicies(page, limit), nil
}
