package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/engine"
	"github.com/brevet-pki/brevet/store/postgres"
)

// Queries for TestFind.
const (
	findNumber = `WITH q AS MATERIALIZED (SELECT CAST(?1 AS BIGINT) AS n) SELECT q.n * 2 FROM q JOIN generate_series(1, 50) s ON s = q.n`
	findText   = `WITH q AS MATERIALIZED (SELECT ?1 AS a, CAST(?2 AS BIGINT) AS n) SELECT q.a, q.n FROM q`
	findError  = `WITH q AS MATERIALIZED (SELECT CAST(?1 AS BIGINT) AS n) SELECT 1 / (q.n - q.n) FROM q`
)

// TestFind reads rows concurrently, with two queries, some of which have no row.
func TestFind(t *testing.T) {
	db, dials := openDatabase(t, cluster.Schema(t))
	before := dials.Load()
	var all sync.WaitGroup
	for n := range int64(100) {
		all.Go(func() {
			var double, number int64
			var text string
			found, err := db.Find(t.Context(), "find a number", findNumber, []any{n}, &double)
			if err != nil || found != (1 <= n && n <= 50) || found && double != 2*n {
				t.Errorf("number %d: %d, %v, %v", n, double, found, err)
			}
			found, err = db.Find(t.Context(), "find a text", findText, []any{fmt.Sprint("text ", n), n}, &text, &number)
			if err != nil || !found || text != fmt.Sprint("text ", n) || number != n {
				t.Errorf("text %d: %q, %d, %v, %v", n, text, number, found, err)
			}
		})
	}
	all.Wait()
	if n := dials.Load() - before; n > 1 {
		t.Errorf("%d connections read", n)
	}
}

// TestFindFails has a statement fail, a text that no engine stores, and a context that has ended.
func TestFindFails(t *testing.T) {
	db, _ := openDatabase(t, cluster.Schema(t))
	var n int64
	var text string
	if found, err := db.Find(t.Context(), "fail", findError, []any{1}, &n); found || err == nil || !strings.Contains(err.Error(), "fail") {
		t.Errorf("a division by zero: %v, %v", found, err)
	}
	if found, err := db.Find(t.Context(), "fail", findText, []any{"a\x00b", 1}, &text, &n); found || err == nil {
		t.Errorf("a text with U+0000: %v, %v", found, err)
	}
	if found, err := db.Find(t.Context(), "fail", findNumber, []any{1}, &struct{}{}); found || err == nil {
		t.Errorf("a row that cannot be scanned: %v, %v", found, err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if found, err := db.Find(canceled, "cancel", findNumber, []any{1}, &n); found || !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v, %v", found, err)
	}
	if found, err := db.Find(t.Context(), "find", findNumber, []any{1}, &n); err != nil || !found || n != 2 {
		t.Errorf("after failures: %v, %d, %v", found, n, err)
	}
}

// TestFindConnectsAgain restarts PostgreSQL between two reads.
func TestFindConnectsAgain(t *testing.T) {
	c := ownCluster(t)
	db, _ := openDatabase(t, c.Connection("postgres"))
	find := func() {
		t.Helper()
		var n int64
		if found, err := db.Find(t.Context(), "find", findNumber, []any{7}, &n); err != nil || !found || n != 14 {
			t.Errorf("%v, %d, %v", found, n, err)
		}
	}
	find()
	must(t, c.Kill())
	must(t, c.Run())
	find()
}

// TestInsertEachLater inserts rows, whose IDs have no gaps. A row with a conflict fails the transaction.
func TestInsertEachLater(t *testing.T) {
	db, _ := openDatabase(t, cluster.Schema(t))
	insert := func(serials ...byte) error {
		rows := make([][]any, len(serials))
		for i, s := range serials {
			rows[i] = []any{slices.Repeat([]byte{s}, 20), slices.Repeat([]byte{s}, 32)}
		}
		return db.Write(t.Context(), "insert", func(ctx context.Context, tx *engine.Tx) (err error) {
			return tx.InsertEachLater(ctx, `
				INSERT INTO certificates (serial, digest, issuer, issued_at, not_after, crl_partition, state, reason, revoked_at, version)
				VALUES (?, ?, (SELECT id FROM issuers), 0, 0, 0, 3, 0, 0, 1)`, rows)
		})
	}
	must(t, db.Write(t.Context(), "insert", func(ctx context.Context, tx *engine.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO issuers (issuer) VALUES (?)`, make([]byte, 32))
		return err
	}))
	must(t, insert(1, 2, 3))
	if err := insert(4, 2, 5); err == nil {
		t.Error("a row with a conflict is ignored")
	}
	must(t, insert())
	must(t, insert(6, 7))
	for i, serial := range []byte{1, 2, 3, 6, 7} {
		var id int
		if err := db.Read(t.Context(), "read", func(ctx context.Context, q engine.Querier) error {
			return q.QueryRow(ctx, `SELECT id FROM certificates WHERE serial = ?`, slices.Repeat([]byte{serial}, 20)).Scan(&id)
		}); err != nil || id != i+1 {
			t.Errorf("certificate %d has the ID %d, %v", serial, id, err)
		}
	}
}

// TestQueryLater visits the rows of queries before the next statement returns, before Flush returns, and before the commit,
// which an error of a visit prevents.
func TestQueryLater(t *testing.T) {
	db, _ := openDatabase(t, cluster.Schema(t))
	const insert = `INSERT INTO chain (id, value) VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING id`
	var visited []int
	later := func(ctx context.Context, tx *engine.Tx, id int, failure error) {
		t.Helper()
		must(t, tx.QueryLater(ctx, insert, []any{id, make([]byte, 32)}, func(row engine.Scanner) error {
			var have int
			err := row.Scan(&have)
			visited = append(visited, have)
			return errors.Join(err, failure)
		}))
	}
	check := func(when string, want ...int) {
		t.Helper()
		if !slices.Equal(visited, want) {
			t.Errorf("%s: visited %d, want %d", when, visited, want)
		}
	}
	must(t, db.Write(t.Context(), "insert", func(ctx context.Context, tx *engine.Tx) error {
		later(ctx, tx, 1, nil)
		later(ctx, tx, 1, nil) // has no row
		later(ctx, tx, 2, nil)
		var n int
		if err := tx.QueryRow(ctx, `SELECT count(*) FROM chain`).Scan(&n); err != nil || n != 2 {
			t.Errorf("the next statement sees %d rows, %v", n, err)
		}
		check("after the next statement", 1, 2)
		later(ctx, tx, 3, nil)
		must(t, tx.Flush(ctx))
		check("after Flush", 1, 2, 3)
		later(ctx, tx, 4, nil)
		return nil
	}))
	check("after the commit", 1, 2, 3, 4)
	failed := errors.New("on purpose")
	err := db.Write(t.Context(), "insert", func(ctx context.Context, tx *engine.Tx) error {
		later(ctx, tx, 5, failed)
		return nil
	})
	if !errors.Is(err, failed) {
		t.Errorf("a visit fails: %v", err)
	}
	must(t, db.Read(t.Context(), "read", func(ctx context.Context, q engine.Querier) error {
		var newest int
		if err := q.QueryRow(ctx, `SELECT max(id) FROM chain`).Scan(&newest); err != nil || newest != 4 {
			t.Errorf("the newest row is %d, %v", newest, err)
		}
		return nil
	}))
}

// TestJobsThatGoOnAfterAnError has jobs ignore the error of their first statement, which PostgreSQL does not prepare, and of a
// visit. They must not write outside of a transaction, and not commit.
func TestJobsThatGoOnAfterAnError(t *testing.T) {
	db, _ := openDatabase(t, cluster.Schema(t))
	const insert = `INSERT INTO chain (id, value) VALUES (?, ?)`
	failed := errors.New("on purpose")
	for name, first := range map[string]func(context.Context, *engine.Tx) error{
		"a statement": func(ctx context.Context, tx *engine.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE nowhere SET a = 1`)
			return err
		},
		"a visit": func(ctx context.Context, tx *engine.Tx) error {
			return errors.Join(tx.QueryLater(ctx, `SELECT 1`, nil, func(engine.Scanner) error { return failed }), tx.Flush(ctx))
		},
	} {
		err := db.Write(t.Context(), "write", func(ctx context.Context, tx *engine.Tx) error {
			if first(ctx, tx) == nil {
				t.Errorf("%s did not fail", name)
			}
			_, err := tx.Exec(ctx, insert, 1, make([]byte, 32))
			if err == nil {
				t.Errorf("a statement ran after %s had failed", name)
			}
			return nil
		})
		if err == nil {
			t.Errorf("%s failed, and the transaction was committed", name)
		}
	}
	must(t, write(db))
	must(t, db.Read(t.Context(), "count", func(ctx context.Context, q engine.Querier) error {
		var n int
		if err := q.QueryRow(ctx, `SELECT count(*) FROM chain`).Scan(&n); err != nil || n != 0 {
			t.Errorf("%d rows were written, %v", n, err)
		}
		return nil
	}))
}

// TestVisitsOfSeveralJobs has visits of two jobs fail and panic, before and at the end of the job. The others must be committed.
func TestVisitsOfSeveralJobs(t *testing.T) {
	db, _ := openDatabase(t, cluster.Schema(t))
	failed := errors.New("on purpose")
	job := func(id int, flushes bool, visit func() error) func(context.Context, *engine.Tx) error {
		return func(ctx context.Context, tx *engine.Tx) error {
			err := tx.QueryLater(ctx, `INSERT INTO chain (id, value) VALUES (?, ?) RETURNING id`, []any{id, make([]byte, 32)},
				func(engine.Scanner) error { return visit() })
			if err == nil && flushes {
				err = tx.Flush(ctx)
			}
			return err
		}
	}
	fails, panics := func() error { return failed }, func() error { panic(failed) }
	jobs := []func(context.Context, *engine.Tx) error{
		job(1, false, func() error { return nil }), job(2, true, fails), job(3, false, fails), job(4, true, panics), job(5, false, panics),
		job(6, true, func() error { return nil }),
	}
	got := make([]error, len(jobs))
	run := func(i int) {
		defer func() {
			if p := recover(); p != nil {
				got[i], _ = p.(error)
			}
		}()
		got[i] = db.Write(context.Background(), "write", jobs[i])
	}
	hold, held := make(chan struct{}), make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		must(t, db.Write(context.Background(), "hold", func(context.Context, *engine.Tx) error {
			close(held)
			<-hold
			return nil
		}))
	})
	<-held
	for i := range jobs {
		all.Go(func() { run(i) })
	}
	for db.Waiting() < len(jobs) {
		time.Sleep(time.Millisecond)
	}
	close(hold)
	all.Wait()
	for i, err := range got {
		if isGood := i == 0 || i == len(jobs)-1; isGood != (err == nil) || !isGood && !errors.Is(err, failed) {
			t.Errorf("job %d: %v", i+1, err)
		}
	}
	for i := range jobs[:5] { // alone
		if run(i); i > 0 && !errors.Is(got[i], failed) {
			t.Errorf("job %d alone: %v", i+1, got[i])
		}
		must(t, write(db))
	}
	must(t, db.Read(t.Context(), "count", func(ctx context.Context, q engine.Querier) error {
		var ids string
		if err := q.QueryRow(ctx, `SELECT string_agg(CAST(id AS text), ' ' ORDER BY id) FROM chain`).Scan(&ids); err != nil || ids != "1 6" {
			t.Errorf("the jobs %s wrote, %v", ids, err)
		}
		return nil
	}))
}

// TestConnectionEndsBeforeTheLock ends the connection of a transaction while it waits for the lock. It must connect again.
func TestConnectionEndsBeforeTheLock(t *testing.T) {
	c := ownCluster(t)
	db, _ := openDatabase(t, c.Connection("postgres"))
	must(t, write(db))
	holder, err := pgx.Connect(t.Context(), c.Connection("postgres"))
	must(t, err)
	defer holder.Close(t.Context())
	_, err = holder.PgConn().Exec(t.Context(), `BEGIN; `+postgres.LockWrites).ReadAll()
	must(t, err)
	written := make(chan error)
	go func() { written <- write(db) }()
	must(t, c.Wait(`SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)`))
	must(t, c.Exec(`SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted`))
	must(t, c.Wait(`SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)`))
	_, err = holder.Exec(t.Context(), `ROLLBACK`)
	must(t, err)
	must(t, <-written)
}

// TestLater runs statements together with the next one, with the commit, and not at all in a job that fails. A statement that
// fails does so for its own job.
func TestLater(t *testing.T) {
	connection := cluster.Schema(t)
	db, _ := openDatabase(t, connection)
	const insert = `INSERT INTO chain (id, value) VALUES (?, ?)`
	value := make([]byte, 32)
	count := func() (n int) {
		t.Helper()
		must(t, db.Read(t.Context(), "count", func(ctx context.Context, q engine.Querier) error {
			return q.QueryRow(ctx, `SELECT count(*) FROM chain`).Scan(&n)
		}))
		return n
	}
	must(t, db.Write(t.Context(), "insert", func(ctx context.Context, tx *engine.Tx) error {
		if err := tx.Later(ctx, insert, 1, value); err != nil {
			return err
		}
		var n int
		if err := tx.QueryRow(ctx, `SELECT count(*) FROM chain`).Scan(&n); err != nil || n != 1 {
			t.Errorf("the next statement sees %d rows, %v", n, err)
		}
		return tx.Later(ctx, insert, 2, value)
	}))
	if n := count(); n != 2 {
		t.Errorf("%d rows after the commit, want 2", n)
	}
	failed := errors.New("on purpose")
	hold, held := make(chan struct{}), make(chan struct{})
	errs := make([]error, 4)
	var all sync.WaitGroup
	all.Go(func() {
		errs[0] = db.Write(context.Background(), "hold", func(context.Context, *engine.Tx) error {
			close(held)
			<-hold
			return nil
		})
	})
	<-held
	for i, job := range []func(ctx context.Context, tx *engine.Tx) error{
		func(ctx context.Context, tx *engine.Tx) error { return tx.Later(ctx, insert, 3, value) },
		func(ctx context.Context, tx *engine.Tx) error {
			return errors.Join(tx.Later(ctx, insert, 4, value), failed)
		},
		func(ctx context.Context, tx *engine.Tx) error { return tx.Later(ctx, insert, 1, value) }, // which is taken
	} {
		all.Go(func() { errs[1+i] = db.Write(context.Background(), "insert", job) })
	}
	for db.Waiting() < 3 {
		time.Sleep(time.Millisecond)
	}
	close(hold)
	all.Wait()
	if errs[0] != nil || errs[1] != nil || !errors.Is(errs[2], failed) || errs[3] == nil {
		t.Errorf("jobs of one transaction: %v", errs)
	}
	if n := count(); n != 3 {
		t.Errorf("%d rows after the jobs, want 3", n)
	}
	if err := db.Write(t.Context(), "insert", func(ctx context.Context, tx *engine.Tx) error { return tx.Later(ctx, insert, 1, value) }); err == nil {
		t.Error("a statement that fails before the commit has no effect on the result")
	}
}

// tracer records the statements of batches and queries. It implements pgx.QueryTracer and pgx.BatchTracer.
type tracer struct {
	mu         sync.Mutex
	statements map[string]bool
}

func (r *tracer) add(statement string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.statements[statement] = true
}

func (r *tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	r.add(data.SQL)
	return ctx
}
func (*tracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (*tracer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}
func (r *tracer) TraceBatchQuery(_ context.Context, _ *pgx.Conn, data pgx.TraceBatchQueryData) {
	r.add(data.SQL)
}
func (*tracer) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

// TestHotStatementsUseIndexes checks the plans of the two statements that read for each certificate. The store is empty, so
// PostgreSQL knows nothing about its tables. A connection keeps such a plan while the tables grow.
func TestHotStatementsUseIndexes(t *testing.T) {
	ctx := t.Context()
	config, err := pgx.ParseConfig(cluster.Schema(t))
	must(t, err)
	traced := &tracer{statements: map[string]bool{}}
	config.Tracer = traced
	db, err := postgres.OpenWith(ctx, config, "first")
	must(t, err)
	defer db.Close()
	epoch, _, err := db.CA().Begin(ctx)
	must(t, err)
	serial, err := pki.MakeSerial(time.Now(), [pki.SerialRandomSize]byte{1})
	must(t, err)
	issuer, err := pki.IssuerIDFromBytes(slices.Repeat([]byte{1}, 32))
	must(t, err)
	ref := pki.CertRef{Issuer: issuer, Serial: serial}
	intent := ca.Intent{Batch: ca.NewBatchID(), Items: []ca.IntentItem{{Ref: ref, Digest: make([]byte, 32), IssuedAt: time.Now(), NotAfter: time.Now().Add(time.Hour)}}}
	_, err = db.CA().Write(ctx, epoch, nil, []ca.Intent{intent})
	must(t, err)
	_, err = db.CA().Write(ctx, epoch, []ca.BatchCommit{{Intent: intent, At: time.Now(), Records: []ca.Record{{Ref: ref}}}}, nil)
	must(t, err)
	if _, err := db.RA().IssuanceState(ctx, ra.IssuanceQuery{MaxUnexpired: 7}); err == nil {
		t.Error("an identity without a name is registered")
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	must(t, err)
	defer conn.Close(ctx)
	must(t, postgres.SetUp(ctx, conn))
	n := 0
	for statement := range traced.statements {
		if !strings.Contains(statement, "certificates p ON") || !strings.Contains(statement, "unnest(") {
			continue
		}
		n++
		plan := explain(t, conn, statement)
		for _, wrong := range []string{"Seq Scan", "hashed", "Hash Join", "Merge Join", "identity = n.id)\n"} {
			if strings.Contains(plan, wrong) {
				t.Errorf("the plan has %q:\n%s\n%s", wrong, statement, plan)
			}
		}
		for _, want := range []string{"certificates_by_request", "certificates_serial_key", "identities_spiffe_id_key", "keys_pkey"} {
			if !strings.Contains(plan, want) {
				t.Errorf("the plan does not use %s:\n%s\n%s", want, statement, plan)
			}
		}
	}
	if n < 2 {
		t.Errorf("%d statements were found, want those of IssuanceState and of the guards", n)
	}
}

// explain returns the plan of a statement for any parameters.
func explain(t *testing.T, conn *pgx.Conn, statement string) string {
	t.Helper()
	ctx := t.Context()
	prepared, err := conn.Prepare(ctx, "explained", statement)
	must(t, err)
	nulls := strings.TrimSuffix(strings.Repeat("NULL, ", len(prepared.ParamOIDs)), ", ")
	results, err := conn.PgConn().Exec(ctx, `EXPLAIN (VERBOSE) EXECUTE explained (`+nulls+`); DEALLOCATE explained`).ReadAll()
	must(t, err)
	var plan strings.Builder
	for _, row := range results[0].Rows {
		plan.Write(row[0])
		plan.WriteByte('\n')
	}
	return plan.String()
}
