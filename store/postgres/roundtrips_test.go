package postgres_test

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/postgres"
)

// trips counts the round trips of batches and queries. It implements pgx.QueryTracer and pgx.BatchTracer.
type trips struct{ atomic.Int64 }

func (n *trips) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	n.Add(1)
	return ctx
}

func (*trips) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (n *trips) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	n.Add(1)
	return ctx
}

func (*trips) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (*trips) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

// TestJournalTakesTwoRoundTrips records certificates that enroll some identities and then renewals of them, each time those of two
// batches, together with the intent of a third. Reading takes one round trip, and writing with the commit another.
func TestJournalTakesTwoRoundTrips(t *testing.T) {
	ctx, now := t.Context(), time.Now()
	connection := cluster.Schema(t)
	config, err := pgx.ParseConfig(connection)
	must(t, err)
	count := &trips{}
	config.Tracer = count
	db, err := postgres.OpenWith(ctx, config, "first")
	must(t, err)
	defer db.Close()
	conn, err := pgx.Connect(ctx, connection)
	must(t, err)
	defer conn.Close(ctx)
	const identities = 6
	for i := range identities {
		_, err = conn.Exec(ctx, `INSERT INTO identities (spiffe_id, kind, profile, labels, dns_names, ip_addresses, state, revision, created_at)
			VALUES ($1, 1, 'device', 'null', 'null', 'null', 1, 1, 0)`, fmt.Sprintf("spiffe://fleet.example/device/%d", i))
		must(t, err)
	}
	_, err = conn.Exec(ctx, `INSERT INTO issuers (issuer) VALUES ($1)`, slices.Repeat([]byte{1}, 32))
	must(t, err)
	issuer, err := pki.IssuerIDFromBytes(slices.Repeat([]byte{1}, 32))
	must(t, err)
	by := insertOperator(t, conn, issuer)
	epoch, _, err := db.CA().Begin(ctx)
	must(t, err)
	serials := byte(0)
	predecessors := map[int]pki.CertRef{}
	record := func(i int) ca.Record {
		serials++
		serial, err := pki.MakeSerial(now, [pki.SerialRandomSize]byte{serials})
		must(t, err)
		key, err := pki.KeyHashFromBytes(slices.Repeat([]byte{serials}, 32))
		must(t, err)
		id, err := pki.ParseSPIFFEID(fmt.Sprintf("spiffe://fleet.example/device/%d", i))
		must(t, err)
		r := ca.Record{
			Ref: pki.CertRef{Issuer: issuer, Serial: serial}, Identity: id, Profile: "device", KeyHash: key, IssuedAt: now, NotBefore: now,
			NotAfter: now.Add(time.Hour), DER: []byte{serials}, RequestID: requestID(t, serials), Actor: by,
			Guard: pki.Guard{Identity: id, Revision: 1, Key: key, MaxUnexpired: 9, Predecessor: predecessors[i]},
		}
		if r.Guard.Enrolls = predecessors[i].IsZero(); !r.Guard.Enrolls {
			r.Guard.Revision = 2
		}
		predecessors[i] = r.Ref
		return r
	}
	intentOf := func(records ...ca.Record) ca.Intent {
		intent := ca.Intent{Batch: ca.NewBatchID()}
		for _, r := range records {
			intent.Items = append(intent.Items, ca.IntentItem{Ref: r.Ref, Digest: make([]byte, 32), IssuedAt: now, NotAfter: r.NotAfter})
		}
		return intent
	}
	next := func() (commits []ca.BatchCommit) {
		for i := 0; i < identities; i += 2 {
			records := []ca.Record{record(i), record(i + 1)}
			commits = append(commits, ca.BatchCommit{Intent: intentOf(records...), At: now, Records: records})
		}
		return commits
	}
	for _, what := range []string{"the first certificates, whose statements are prepared", "renewals", "renewals of renewals"} {
		commits := next()
		_, err := db.CA().Write(ctx, epoch, nil, []ca.Intent{commits[0].Intent, commits[1].Intent})
		must(t, err)
		before := count.Load()
		results, err := db.CA().Write(ctx, epoch, commits[:2], []ca.Intent{commits[2].Intent})
		must(t, err)
		for _, r := range slices.Concat(results...) {
			must(t, r.Refusal)
		}
		if n := count.Load() - before; n != 2 {
			t.Errorf("%s: %d round trips, want 2", what, n)
		}
		results, err = db.CA().Write(ctx, epoch, commits[2:], nil)
		must(t, err)
		must(t, slices.Concat(results...)[0].Refusal)
	}
}

// insertOperator inserts an operator with a certificate, who may issue.
func insertOperator(t *testing.T, conn *pgx.Conn, issuer pki.IssuerID) pki.Actor {
	t.Helper()
	id, err := pki.ParseSPIFFEID("spiffe://fleet.example/operator/alice")
	must(t, err)
	serial, err := pki.MakeSerial(time.Now(), [pki.SerialRandomSize]byte{255})
	must(t, err)
	_, err = conn.Exec(t.Context(), `
		WITH n AS (INSERT INTO identities (spiffe_id, kind, profile, labels, dns_names, ip_addresses, state, revision, created_at, roles)
		           VALUES ($1, 3, 'operator', 'null', 'null', 'null', 2, 1, 0, 15) RETURNING id)
		INSERT INTO certificates (id, serial, issuer, identity, request, key, profile, issued_at, not_before, not_after, crl_partition, state, reason, version, der)
		SELECT 1, $2, i.id, n.id, $3, 1, 'operator', 0, 0, 4102444800000, 0, 1, 0, 1, $3 FROM n, issuers i`,
		id.String(), serial.Bytes(), make([]byte, 16))
	must(t, err)
	return pki.ActorCaller(id, pki.CertRef{Issuer: issuer, Serial: serial})
}

func requestID(t *testing.T, n byte) pki.RequestID {
	t.Helper()
	id, err := pki.RequestIDFromBytes(slices.Repeat([]byte{n}, 16))
	must(t, err)
	return id
}
