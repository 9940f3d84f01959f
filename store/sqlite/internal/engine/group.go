package engine

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"runtime"
	"slices"
	"sync"

	"github.com/brevet-pki/brevet/pki"
)

// maxGroup is the maximum number of jobs in one transaction.
const maxGroup = 64

// job is what one caller does in a transaction.
type job struct {
	do       func(*sql.Tx) error
	done     chan struct{} // closed once the fields below are set
	err      error
	panicked any
}

// group holds the jobs that wait for the next transaction, in the order of arrival.
type group struct {
	runAll func([]*job)  // runs jobs in one transaction
	turn   chan struct{} // holds one value while a transaction runs
	yields int           // how often the processor is yielded to callers that may bring another job

	mu   sync.Mutex
	jobs []*job
}

// run runs do in the next transaction. The first caller to get the turn runs the jobs of all callers that wait. The context
// limits the wait for the transaction.
func (g *group) run(ctx context.Context, do func(*sql.Tx) error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	j := &job{do: do, done: make(chan struct{})}
	g.join(j)
	for {
		select {
		case <-j.done:
			return j.result()
		default:
		}
		select {
		case <-j.done:
		case g.turn <- struct{}{}: // the runtime serves senders in order
			g.collect()
			g.carryOut()
			<-g.turn
		case <-ctx.Done():
			if g.leave(j) {
				return ctx.Err()
			}
			<-j.done
		}
	}
}

// carryOut runs the jobs that wait. There are none if the previous transaction included all of them.
func (g *group) carryOut() {
	jobs := g.take()
	if len(jobs) == 0 {
		return
	}
	defer func() {
		for _, j := range jobs {
			close(j.done)
		}
	}()
	g.runAll(jobs)
}

// collect yields the processor to callers as long as that brings jobs. If the processors are idle, it ends immediately.
func (g *group) collect() {
	for n, idle := g.waiting(), 0; idle < g.yields && n < maxGroup; idle++ {
		runtime.Gosched()
		if now := g.waiting(); now > n {
			n, idle = now, -1
		}
	}
}

func (g *group) waiting() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.jobs)
}

func (g *group) join(j *job) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.jobs = append(g.jobs, j)
}

// leave removes a job that is not yet in a transaction, and reports whether it did.
func (g *group) leave(j *job) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(g.jobs, j)
	if i >= 0 {
		g.jobs = slices.Delete(g.jobs, i, i+1)
	}
	return i >= 0
}

func (g *group) take() []*job {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := min(len(g.jobs), maxGroup)
	taken := slices.Clone(g.jobs[:n])
	g.jobs = slices.Delete(g.jobs, 0, n)
	return taken
}

// Write runs do in a transaction, and returns when it is durable. Writes that arrive during a transaction share the
// next one, because a durable commit costs the same for many as for one. The first caller to get the writing connection
// runs the jobs of all of them, each in its own savepoint.
//
// The context limits the wait for the transaction. A transaction that has started runs to its end, so that one caller's
// deadline does not abort the writes of others. If Write returns an error, nothing was written, unless COMMIT failed.
func (db *DB) Write(ctx context.Context, what string, do func(context.Context, *Tx) error) error {
	detached := context.WithoutCancel(ctx)
	return Fail(what, db.writes.run(ctx, func(tx *sql.Tx) error {
		w := &Tx{Tx: tx}
		err := do(detached, w)
		db.written.Add(w.Pages)
		return err
	}))
}

// result returns the result of a finished job to its caller.
func (j *job) result() error {
	if j.panicked != nil {
		panic(j.panicked) //nolint:forbidigo // the job's panic continues in the goroutine of its caller
	}
	return j.err
}

// writeAll runs jobs in one transaction on the writing connection.
func (db *DB) writeAll(jobs []*job) {
	ctx := context.Background() // not that of any one caller
	conn, err := db.writer.Conn(ctx)
	if err != nil {
		failAll(jobs, err)
		return
	}
	defer conn.Close()
	if err = transact(ctx, conn, jobs); err != nil {
		failAll(jobs, err)
	}
	db.written.Add(pagesOfTransaction)
	if isBroken(err) || slices.ContainsFunc(jobs, func(j *job) bool { return isBroken(j.err) }) {
		_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // closes it; the next caller gets a new one
	}
}

// failAll sets the error of a failed transaction on its jobs. A refusal is replaced too, since it may depend on what
// another job wrote. Jobs with other errors keep their own.
func failAll(jobs []*job, err error) {
	for _, j := range jobs {
		if _, refused := pki.AsRefusal(j.err); j.err == nil || refused {
			j.err = err
		}
	}
}

// transact runs jobs in a transaction and commits the writes of those that succeed. An error is that of the
// transaction.
func transact(ctx context.Context, conn *sql.Conn, jobs []*job) error {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // no effect after Commit
	if len(jobs) == 1 {
		if !jobs[0].run(tx) {
			return nil
		}
		return tx.Commit()
	}
	for _, j := range jobs {
		if err := j.runApart(ctx, tx); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// runApart runs a job in a savepoint, which is rolled back if the job fails. An error means that the whole transaction
// has ended, which SQLite does after some disk errors.
func (j *job) runApart(ctx context.Context, tx *sql.Tx) error {
	if _, err := tx.ExecContext(ctx, "SAVEPOINT job"); err != nil {
		return err
	}
	if !j.run(tx) {
		if _, err := tx.ExecContext(ctx, "ROLLBACK TO job"); err != nil {
			return errors.Join(j.err, err)
		}
	}
	_, err := tx.ExecContext(ctx, "RELEASE job")
	return err
}

// run runs a job, and reports whether it succeeded. It keeps a panic for the job's caller.
func (j *job) run(tx *sql.Tx) (ok bool) {
	defer func() {
		if j.panicked = recover(); j.panicked != nil {
			ok = false
		}
	}()
	j.err = j.do(tx)
	return j.err == nil
}
