package crlshare

import (
	"context"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/engine"
)

// maxRequestAge is how long a request for the certificate of an OCSP delegate stays without a repeat. A server that waits
// repeats it more often. The request of one that has ended leaves.
const maxRequestAge = time.Hour

// PutDelegateRequest durably stores a request of a server, in place of its earlier one for the same CA. It removes the
// requests of all servers that have not repeated theirs for maxRequestAge.
func (x *Exchange) PutDelegateRequest(ctx context.Context, d ra.DelegateRequest) error {
	return x.db.Write(ctx, "request the certificate of an OCSP delegate", func(ctx context.Context, tx *engine.Tx) error {
		if _, err := tx.Exec(ctx, `DELETE FROM delegate_requests WHERE put_at < `+x.db.Now()+` - ?`, maxRequestAge.Milliseconds()); err != nil {
			return err
		}
		issuer, err := issuerID(ctx, tx, d.Issuer)
		if err != nil {
			return err
		}
		n, err := tx.Exec(ctx, `
			INSERT INTO delegate_requests (issuer, server, request, csr, certificate, signature, put_at)
			SELECT ?, name, ?, ?, ?, ?, `+x.db.Now()+` FROM servers WHERE name = ?
			ON CONFLICT (issuer, server) DO UPDATE SET request = excluded.request, csr = excluded.csr, certificate = excluded.certificate,
			    signature = excluded.signature, put_at = excluded.put_at`,
			issuer, d.RequestID.Bytes(), d.CSR, d.Certificate, d.Signature, d.Server)
		if err == nil && n == 0 {
			err = fmt.Errorf("no server with the name %s has opened the store", d.Server)
		}
		return err
	})
}

// DelegateRequests returns the requests for a CA, at most one of each server, while this server leads the CRLs of the CA.
// Otherwise it returns none.
func (x *Exchange) DelegateRequests(ctx context.Context, issuer pki.IssuerID) (all []ra.DelegateRequest, err error) {
	err = x.db.Look(ctx, "read the requests for OCSP delegates", func(ctx context.Context, tx engine.Querier) error {
		rows := engine.Query(ctx, tx, `
			SELECT d.server, d.request, d.csr, d.certificate, d.signature
			FROM delegate_requests d JOIN issuers i ON i.id = d.issuer JOIN crl_leases ON crl_leases.issuer = d.issuer
			WHERE i.issuer = ? AND crl_leases.holder = ? AND `+x.runs()+` AND d.put_at >= `+x.db.Now()+` - ?
			ORDER BY d.server`, issuer.Bytes(), x.holder[:], maxRequestAge.Milliseconds())
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

// RemoveDelegateRequest removes a request, unless the server has replaced it by another one.
func (x *Exchange) RemoveDelegateRequest(ctx context.Context, d ra.DelegateRequest) error {
	return x.db.Write(ctx, "remove the request for an OCSP delegate", func(ctx context.Context, tx *engine.Tx) error {
		_, err := tx.Exec(ctx, `
			DELETE FROM delegate_requests WHERE issuer = (SELECT id FROM issuers WHERE issuer = ?) AND server = ? AND request = ? AND signature = ?`,
			d.Issuer.Bytes(), d.Server, d.RequestID.Bytes(), d.Signature)
		return err
	})
}
