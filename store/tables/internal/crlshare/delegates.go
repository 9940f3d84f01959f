package crlshare

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/engine"
)

const (
	// maxRequestAge is how long a request for the certificate of an OCSP delegate stays without a repeat. A server that waits
	// repeats it more often. The request of one that has ended leaves.
	maxRequestAge = time.Hour
	// maxRule and maxText are the maximum sizes of the texts of a refusal, in bytes.
	maxRule, maxText = 64, 2048
)

// stays is the condition that a request has been repeated since maxRequestAge.
func (x *Exchange) stays() string {
	return engine.Runs(x.db, `delegate_requests.until`, maxRequestAge)
}

// PutDelegateRequest durably stores a request of a server, in place of its earlier one for the same CA. It removes the
// requests of all servers that have not repeated theirs for maxRequestAge.
func (x *Exchange) PutDelegateRequest(ctx context.Context, d ra.DelegateRequest) error {
	return x.db.Write(ctx, "request the certificate of an OCSP delegate", func(ctx context.Context, tx *engine.Tx) error {
		if _, err := tx.Exec(ctx, `DELETE FROM delegate_requests WHERE NOT `+x.stays()); err != nil {
			return err
		}
		issuer, err := issuerID(ctx, tx, d.Issuer)
		if err != nil {
			return err
		}
		n, err := tx.Exec(ctx, `
			INSERT INTO delegate_requests (issuer, server, request, csr, certificate, signature, until)
			SELECT ?, name, ?, ?, ?, ?, `+x.db.Now()+` + ? FROM servers WHERE name = ?
			ON CONFLICT (issuer, server) DO UPDATE SET request = excluded.request, csr = excluded.csr, certificate = excluded.certificate,
			    signature = excluded.signature, until = excluded.until, rule = NULL, detail = NULL, hint = NULL`,
			issuer, d.RequestID.Bytes(), d.CSR, d.Certificate, d.Signature, maxRequestAge.Milliseconds(), d.Server)
		if err == nil && n == 0 {
			err = fmt.Errorf("no server with the name %s has opened the store", d.Server)
		}
		return err
	})
}

// DelegateRequests returns the requests for a CA that nothing has answered, at most one of each server, while this server leads
// the CRLs of the CA. Otherwise it returns none.
func (x *Exchange) DelegateRequests(ctx context.Context, issuer pki.IssuerID) (all []ra.DelegateRequest, err error) {
	err = x.db.Look(ctx, "read the requests for OCSP delegates", func(ctx context.Context, tx engine.Querier) error {
		rows := engine.Query(ctx, tx, `
			SELECT server, request, csr, certificate, signature
			FROM delegate_requests JOIN issuers i ON i.id = delegate_requests.issuer JOIN crl_leases ON crl_leases.issuer = delegate_requests.issuer
			WHERE i.issuer = ? AND holder = ? AND `+x.runs()+` AND `+x.stays()+` AND rule IS NULL
			ORDER BY server`, issuer.Bytes(), x.holder[:])
		return rows.Each(func(row engine.Scanner) error {
			d := ra.DelegateRequest{Issuer: issuer}
			var request []byte
			if err := row.Scan(&d.Server, &request, &d.CSR, &d.Certificate, &d.Signature); err != nil {
				return err
			}
			var err error
			d.RequestID, err = pki.RequestIDFromBytes(request)
			all = append(all, d)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// same selects a request of a server, unless the server has replaced it by another one.
const same = ` WHERE issuer = (SELECT id FROM issuers WHERE issuer = ?) AND server = ? AND request = ? AND signature = ?`

// EndDelegateRequest ends a request, unless the server has replaced it by another one. It removes the request. If there is a
// refusal, it keeps the request with it for DelegateRefusal.
func (x *Exchange) EndDelegateRequest(ctx context.Context, d ra.DelegateRequest, refusal *pki.Refusal) error {
	key := []any{d.Issuer.Bytes(), d.Server, d.RequestID.Bytes(), d.Signature}
	return x.db.Write(ctx, "end the request for an OCSP delegate", func(ctx context.Context, tx *engine.Tx) error {
		if refusal == nil {
			_, err := tx.Exec(ctx, `DELETE FROM delegate_requests`+same, key...)
			return err
		}
		_, err := tx.Exec(ctx, `UPDATE delegate_requests SET rule = ?, detail = ?, hint = ?`+same,
			append([]any{cut(string(refusal.Rule), maxRule), cut(refusal.Detail, maxText), cut(refusal.Hint, maxText)}, key...)...)
		return err
	})
}

// DelegateRefusal returns the refusal of a request, or nil if there is none.
func (x *Exchange) DelegateRefusal(ctx context.Context, d ra.DelegateRequest) (*pki.Refusal, error) {
	var rule, detail, hint sql.NullString
	err := x.db.Look(ctx, "read whether the request for an OCSP delegate was refused", func(ctx context.Context, tx engine.Querier) error {
		row := tx.QueryRow(ctx, `SELECT rule, detail, hint FROM delegate_requests`+same, d.Issuer.Bytes(), d.Server, d.RequestID.Bytes(), d.Signature)
		if err := row.Scan(&rule, &detail, &hint); !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		return nil
	})
	if err != nil || !rule.Valid {
		return nil, err
	}
	return pki.Refuse(pki.Rule(rule.String), hint.String, "%s", detail.String), nil
}

// cut returns the first bytes of a text, without a part of a character at the end.
func cut(text string, size int) string {
	if len(text) <= size {
		return text
	}
	return strings.ToValidUTF8(text[:size], "")
}
