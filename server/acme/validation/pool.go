package validation

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/brevet-pki/brevet/fair"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
)

const (
	poolSlots   = 64   // validations that run at a time
	poolEach    = 8    // validations of one account that run at a time
	poolQueue   = 1024 // validations that wait
	poolTargets = 8    // validations of one identifier that run or wait
	poolOwn     = 2    // validations of one identifier that run or wait for one account
	// poolWait is the maximum time that a validation waits. After acme.ValidationTimeout the client can begin it again, so one that
	// waits longer would run twice.
	poolWait = time.Minute
	// poolSlow is the wait from which on an account gets no further places in the queue, until a validation of it waits shorter.
	poolSlow = poolWait / 3
	// poolRetry is the delay after which a rejected client should repeat its request.
	poolRetry = 5 * time.Second
)

// Pool runs validations. It limits how many run and wait, serves the accounts in turn, and limits the validations of one
// identifier, so that the server does not flood a host on behalf of many accounts, and one account does not keep others from
// validating an identifier. It logs panics. It is safe for concurrent use.
type Pool struct {
	mu      sync.Mutex
	queue   *fair.Queue[acme.ID, *Job]
	targets map[acme.Identifier]int
	own     map[ownTarget]int
	slow    map[acme.ID]bool // accounts whose last validation that began to run had waited for poolSlow
	closed  bool
	log     *slog.Logger

	ctx     context.Context //nolint:containedctx // the context of all jobs, which Close cancels
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// ownTarget is an identifier of an account.
type ownTarget struct {
	account acme.ID
	target  acme.Identifier
}

// NewPool returns a Pool. Close ends its validations.
func NewPool(log *slog.Logger) *Pool {
	ctx, cancel := context.WithCancel(context.Background())
	return &Pool{
		queue:   fair.NewQueue[acme.ID, *Job](fair.Size{Slots: poolSlots, Each: poolEach, Queue: poolQueue}),
		targets: map[acme.Identifier]int{}, own: map[ownTarget]int{}, slow: map[acme.ID]bool{}, log: log, ctx: ctx, cancel: cancel,
	}
}

// Job is a validation in a Pool. It has a slot, or waits in the queue.
type Job struct {
	pool     *Pool
	account  acme.ID
	target   acme.Identifier
	reserved time.Time
	// pool.mu protects the fields below.
	item *fair.Item[acme.ID, *Job] // nil if the job got a slot at once
	work func(ctx context.Context) // nil until Start
	late func(ctx context.Context) // runs instead of work after poolWait
	slot bool
}

// Reserve takes a slot for a validation of an account, or puts it into the queue. It refuses if the queue is full. The
// caller calls Start or Drop.
func (p *Pool) Reserve(account acme.ID, target acme.Identifier) (*Job, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	j := &Job{pool: p, account: account, target: target, reserved: time.Now()}
	if p.closed || p.targets[target] >= poolTargets || p.own[ownTarget{account, target}] >= poolOwn {
		return nil, busy(target)
	}
	if p.queue.Begin(account) {
		j.slot = true
	} else if p.slow[account] {
		return nil, busy(target)
	} else if j.item = p.queue.Wait(account, j); j.item == nil {
		return nil, busy(target)
	}
	p.targets[target]++
	p.own[ownTarget{account, target}]++
	return j, nil
}

// Start runs work when there is a slot. If the job has waited for a minute by then, Start runs late instead. It waits for
// neither.
func (j *Job) Start(work, late func(ctx context.Context)) {
	j.pool.mu.Lock()
	defer j.pool.mu.Unlock()
	j.work, j.late = work, late
	if j.slot {
		j.pool.run(j)
	}
}

// Drop frees the slot of the job, or takes it out of the queue.
func (j *Job) Drop() {
	j.pool.mu.Lock()
	defer j.pool.mu.Unlock()
	if !j.slot {
		j.pool.queue.Withdraw(j.item)
		j.pool.forget(j)
		return
	}
	j.pool.end(j)
}

// run starts the work of a job that has a slot. The caller holds mu.
func (p *Pool) run(j *Job) {
	waited, work := time.Since(j.reserved), j.work
	if waited >= poolWait {
		work = j.late
	}
	if delete(p.slow, j.account); waited >= poolSlow && p.queue.WaitingOf(j.account) > 0 {
		p.slow[j.account] = true
	}
	p.running.Add(1)
	go func() {
		defer p.running.Done()
		p.do(work)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.end(j)
	}()
}

// do does the work of a job, unless the pool is closed. A panic does not end the process.
func (p *Pool) do(work func(ctx context.Context)) {
	defer func() {
		if panicked := recover(); panicked != nil {
			p.log.ErrorContext(p.ctx, "an ACME validation panicked", "panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
		}
	}()
	if p.ctx.Err() == nil {
		work(p.ctx)
	}
}

// end frees the slot of a job, and gives it to the next. The caller holds mu.
func (p *Pool) end(j *Job) {
	p.queue.End(j.account)
	p.forget(j)
	for {
		_, next, ok := p.queue.Next()
		if !ok {
			return
		}
		next.slot = true
		if next.work != nil {
			p.run(next)
		}
	}
}

func (p *Pool) forget(j *Job) {
	own := ownTarget{j.account, j.target}
	if p.own[own]--; p.own[own] <= 0 {
		delete(p.own, own)
	}
	if p.queue.WaitingOf(j.account) == 0 {
		delete(p.slow, j.account)
	}
	if p.targets[j.target]--; p.targets[j.target] <= 0 {
		delete(p.targets, j.target)
	}
}

// Running returns the number of validations that run, and Waiting of those that wait.
func (p *Pool) Running() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.queue.Working()
}

// Waiting returns the number of validations that wait.
func (p *Pool) Waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.queue.Waiting()
}

// Close cancels all validations, and waits until they have ended. Later reservations are refused.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.running.Wait()
}

// busyError is a refusal after which the client should wait.
type busyError struct{ *pki.Refusal }

func busy(target acme.Identifier) error {
	return busyError{pki.Refuse(pki.RuleOverloaded, "repeat the request after the delay",
		"too many validations are running, or too many of %s", target.Value)}
}

// Unwrap returns the refusal.
func (e busyError) Unwrap() error { return e.Refusal }

// Temporary reports that the same request may succeed later.
func (busyError) Temporary() bool { return true }

// RetryAfter returns the delay.
func (busyError) RetryAfter() time.Duration { return poolRetry }
