package engine

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"slices"
	"sync"

	"github.com/brevet-pki/brevet/pki"
)

// maxGroup bounds the jobs of one transaction.
const maxGroup = 64

// job is what one caller writes.
type job struct {
	do       func(*Tx) error
	done     chan struct{} // closed once what follows is set
	err      error
	panicked any
	pages    uint64 // about how many it has changed
}

// group is the jobs that wait for the next transaction, in the order of their coming.
type group struct {
	mu   sync.Mutex
	jobs []*job
}

func (g *group) join(j *job) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.jobs = append(g.jobs, j)
}

// leave takes back a job that no transaction has taken, and reports whether it did.
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

// Write runs do in a transaction and returns once that is durable. Who comes while another transaction is being written
// shares the next one, since making it durable costs the same for one as for many; whoever gets the writing connection
// first runs what all of them have to write, each in a savepoint of its own.
//
// The context bounds the wait for the transaction; one that has begun runs to its end, which is not far: a caller's
// patience is no reason to lose what others write. An error means that nothing was written, unless it is one of COMMIT.
func (db *DB) Write(ctx context.Context, what string, do func(context.Context, *Tx) error) error {
	if ctx.Err() != nil {
		return Fail(what, ctx.Err())
	}
	j := &job{do: func(tx *Tx) error { return do(context.WithoutCancel(ctx), tx) }, done: make(chan struct{})}
	db.next.join(j)
	for {
		select {
		case <-j.done:
			return Fail(what, j.result())
		default:
		}
		select {
		case <-j.done:
		case db.turn <- struct{}{}: // the runtime keeps senders in their order
			db.carryOut(db.next.take())
			<-db.turn
		case <-ctx.Done():
			if db.next.leave(j) {
				return Fail(what, ctx.Err())
			}
			<-j.done
		}
	}
}

// result is for the caller of a job, once it is done.
func (j *job) result() error {
	if j.panicked != nil {
		panic(j.panicked) //nolint:forbidigo // it is the caller's own, which the goroutine that ran the job has caught for it
	}
	return j.err
}

// carryOut runs jobs in one transaction, on the writing connection.
func (db *DB) carryOut(jobs []*job) {
	if len(jobs) == 0 {
		return // those who waited were served by the transaction before
	}
	defer func() {
		for _, j := range jobs {
			close(j.done)
		}
	}()
	ctx := context.Background() // the transaction is nobody's alone
	conn, err := db.writer.Conn(ctx)
	if err != nil {
		failAll(jobs, err)
		return
	}
	defer conn.Close()
	if err = transact(ctx, conn, jobs); err != nil {
		failAll(jobs, err)
	}
	pages := uint64(pagesOfTransaction)
	for _, j := range jobs {
		pages += j.pages
	}
	db.written.Add(pages)
	if isBroken(err) || slices.ContainsFunc(jobs, func(j *job) bool { return isBroken(j.err) }) {
		_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // closes it; the next caller gets a new one
	}
}

// failAll gives jobs the error of the transaction that they shared. A refusal may rest on what another job of it wrote,
// so it does not stand either; what else failed has failed by itself.
func failAll(jobs []*job, err error) {
	for _, j := range jobs {
		if _, refused := pki.AsRefusal(j.err); j.err == nil || refused {
			j.err = err
		}
	}
}

// transact runs jobs and commits what those of them wrote that did not fail. An error is one of all.
func transact(ctx context.Context, conn *sql.Conn, jobs []*job) error {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // of no effect after Commit
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

// runApart runs a job so that what it wrote is undone where it fails. An error says that the whole transaction has ended,
// as SQLite has it for some failures of the disk.
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

// run does a job, and reports whether it succeeded. A panic is its caller's, not that of whoever runs it.
func (j *job) run(tx *sql.Tx) (ok bool) {
	defer func() {
		if j.panicked = recover(); j.panicked != nil {
			ok = false
		}
	}()
	w := &Tx{Tx: tx}
	j.err = j.do(w)
	j.pages = w.Pages
	return j.err == nil
}
