package engine

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"

	"github.com/brevet-pki/brevet/pki"
)

// maxGroup is the maximum number of jobs in one transaction.
const maxGroup = 64

// Do is what one caller does in a transaction.
type Do func(Executor) error

// Job is the work of one caller, such as a [Do].
type Job[W any] struct {
	Work     W
	done     chan struct{} // closed once the fields below are set
	err      error
	panicked any
}

// Group holds the jobs that wait for the next transaction, in the order of arrival. The zero value is not usable.
type Group[W any] struct {
	runAll func([]*Job[W]) // runs jobs in one transaction
	turn   chan struct{}   // holds one value while a transaction runs
	yields int             // how often the processor is yielded to callers that may bring another job

	mu   sync.Mutex
	jobs []*Job[W]
}

// NewGroup returns a group. runAll runs jobs in one transaction; no two of its calls run at the same time. Before each, the
// processor is yielded so many times to callers that may bring another job.
func NewGroup[W any](runAll func([]*Job[W]), yields int) *Group[W] {
	return &Group[W]{runAll: runAll, turn: make(chan struct{}, 1), yields: yields}
}

// Alone calls do while no transaction of the group runs.
func (g *Group[W]) Alone(do func()) {
	g.turn <- struct{}{}
	defer func() { <-g.turn }()
	do()
}

// Run does work in the next transaction. The first caller to get the turn runs the jobs of all callers that wait. The context
// limits the wait for the transaction.
func (g *Group[W]) Run(ctx context.Context, work W) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	j := &Job[W]{Work: work, done: make(chan struct{})}
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
			g.carryOut()
		case <-ctx.Done():
			if g.leave(j) {
				return ctx.Err()
			}
			<-j.done
		}
	}
}

// carryOut runs the jobs that wait, and ends the turn. There are none if the previous transaction included all of them. A
// panic of the transaction is that of each job.
func (g *Group[W]) carryOut() {
	defer func() { <-g.turn }()
	g.collect()
	jobs := g.take()
	if len(jobs) == 0 {
		return
	}
	defer func() {
		panicked := recover()
		for _, j := range jobs {
			if panicked != nil {
				j.panicked = panicked
			}
			close(j.done)
		}
	}()
	g.runAll(jobs)
}

// collect yields the processor to callers as long as that brings jobs. If the processors are idle, it ends immediately.
func (g *Group[W]) collect() {
	for n, idle := g.Waiting(), 0; idle < g.yields && n < maxGroup; idle++ {
		runtime.Gosched()
		if now := g.Waiting(); now > n {
			n, idle = now, -1
		}
	}
}

// Waiting returns the number of jobs that wait.
func (g *Group[W]) Waiting() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.jobs)
}

func (g *Group[W]) join(j *Job[W]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.jobs = append(g.jobs, j)
}

// leave removes a job that is not yet in a transaction, and reports whether it did.
func (g *Group[W]) leave(j *Job[W]) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(g.jobs, j)
	if i >= 0 {
		g.jobs = slices.Delete(g.jobs, i, i+1)
	}
	return i >= 0
}

func (g *Group[W]) take() []*Job[W] {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := min(len(g.jobs), maxGroup)
	taken := slices.Clone(g.jobs[:n])
	g.jobs = slices.Delete(g.jobs, 0, n)
	return taken
}

// Err returns the error of a job that has run.
func (j *Job[W]) Err() error { return j.err }

// result returns the result of a finished job to its caller.
func (j *Job[W]) result() error {
	if j.panicked != nil {
		panic(j.panicked) //nolint:forbidigo // the job's panic continues in the goroutine of its caller
	}
	return j.err
}

// FailAll sets the error of a failed transaction on its jobs. A refusal is replaced too, since it may depend on what
// another job wrote. Jobs with other errors keep their own.
func FailAll[W any](jobs []*Job[W], err error) {
	for _, j := range jobs {
		if _, refused := pki.AsRefusal(j.err); j.err == nil || refused {
			j.err = err
		}
	}
}

// RunAll runs jobs in a transaction that has begun, and commits the writes of those that succeed. An error is that of the
// transaction. If there is nothing to commit, the transaction stays open.
func RunAll(ctx context.Context, tx Executor, commit func() error, jobs []*Job[Do]) error {
	if len(jobs) == 1 {
		if !Run(jobs[0], tx) {
			return nil
		}
		return commit()
	}
	for _, j := range jobs {
		if err := runApart(ctx, j, tx); err != nil {
			return err
		}
	}
	return commit()
}

// runApart runs a job in a savepoint, which is rolled back if the job fails. An error means that the whole transaction
// has ended, which SQLite does after some disk errors.
func runApart(ctx context.Context, j *Job[Do], tx Executor) error {
	if _, err := tx.Exec(ctx, "SAVEPOINT job"); err != nil {
		return err
	}
	if run(j, func() error {
		if err := j.Work(tx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, ReleaseJob)
		return err
	}) {
		return nil
	}
	if _, err := tx.Exec(ctx, RollbackJob); err != nil {
		return errors.Join(j.err, err)
	}
	_, err := tx.Exec(ctx, ReleaseJob)
	return err
}

// Statements that end a job of several.
const (
	// RollbackJob undoes what a job has written. Statements of [Executor].Later that have not run are not run.
	RollbackJob = "ROLLBACK TO job"
	// ReleaseJob makes what a job has written a part of the transaction. Statements of [Executor].QueryLater run before it.
	ReleaseJob = "RELEASE job"
)

// Run runs the job, and reports whether it succeeded. It keeps a panic for the job's caller.
func Run(j *Job[Do], tx Executor) (ok bool) { return run(j, func() error { return j.Work(tx) }) }

func run(j *Job[Do], do func() error) (ok bool) {
	defer func() {
		if j.panicked = recover(); j.panicked != nil {
			ok = false
		}
	}()
	j.err = do()
	return j.err == nil
}
