package ca

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// maxInFlight limits the certificates that are being issued. Above it, Issue refuses requests.
const maxInFlight = 1024

// maxBatch limits the items of an intent, and so the size of a transaction.
const maxBatch = 256

// admissionTimeout limits how long a transaction waits for further items.
const admissionTimeout = 5 * time.Millisecond

// idleYields is the number of consecutive times that the writer yields the processor and receives nothing before it
// writes. After a single yield, the scheduler may run the writer again before callers that are runnable, too.
const idleYields = 4

// minCommitRetry and maxCommitRetry limit how long the writer waits before it retries a failed commit. The maximum is what a
// server loses after a failover of the database, in addition to the time of the failover.
const (
	minCommitRetry = 50 * time.Millisecond
	maxCommitRetry = 500 * time.Millisecond
)

// item is one certificate on its way through the writer.
type item struct {
	intent IntentItem
	// prepared receives nil once the intent is durable, or an error. result receives nil once the record is durable, or
	// an error. Both have a buffer for this one value, so that the writer never waits for a caller.
	prepared chan error
	result   chan error

	// These fields belong to the goroutine that called Issue until it sends the item to the writer again.
	isPrepared bool
	signed     *Record

	// These fields belong to the writer.
	seen  bool    // received once; the next event ends the item
	batch BatchID // of its intent; zero before there is one
	epoch uint64  // of its intent
}

func newItem(i IntentItem) *item {
	return &item{intent: i, prepared: make(chan error, 1), result: make(chan error, 1)}
}

// writer is the only goroutine that writes to the journal. Each of its transactions commits the items that were signed
// since the previous one, and records the intent for the items that arrived since then. Another goroutine renews the lease,
// so that a transaction that takes long does not end it.
type writer struct {
	journal  Journal
	epoch    atomic.Uint64 // an Epoch
	observer pki.StatusObserver
	clock    func() time.Time
	log      *slog.Logger

	slots chan struct{} // one element per certificate in flight
	// events delivers each item twice: for its intent, and when it is signed or abandoned. Both go through one channel
	// so that the second cannot overtake the first.
	events      chan *item
	renewals    chan renewal // holds one element if the writer must act on a renewal of the lease
	closing     chan struct{}
	stopped     chan struct{}
	stopKeeping context.CancelFunc // ends the renewals of the lease
	kept        chan struct{}      // closed when they have ended
	replacedOut atomic.Bool        // like replaced, for other goroutines

	// These fields belong to the goroutine in run.
	process  Epoch         // the first epoch of this process
	waiting  []*item       // received, without an intent
	done     []*item       // with an intent, signed or abandoned, not yet committed
	fenced   bool          // the epoch cannot write any more
	replaced bool          // fenced by a newer process of this server, so that this one never begins another epoch
	retry    time.Duration // wait before a failed commit or Begin is retried; zero if none failed
}

func newWriter(ctx context.Context, c Config) (*writer, error) {
	epoch, left, err := c.Journal.Begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("open the journal: %w", err)
	}
	w := &writer{
		journal: c.Journal, observer: c.Observer, clock: c.Clock, log: c.Log, process: epoch,
		slots: make(chan struct{}, maxInFlight), events: make(chan *item, 2*maxInFlight), renewals: make(chan renewal, 1),
		closing: make(chan struct{}), stopped: make(chan struct{}), kept: make(chan struct{}),
	}
	keeping, stop := context.WithCancel(context.WithoutCancel(ctx)) // outlives the context of the start
	w.stopKeeping = stop
	w.epoch.Store(uint64(epoch))
	w.takeOver(left)
	go w.run()
	go w.keep(keeping)
	return w, nil
}

// admit takes a slot for a certificate in flight, or returns an error immediately.
func (w *writer) admit() (release func(), err error) {
	select {
	case <-w.closing:
		return nil, &unavailable{what: "the server is stopping", after: time.Second}
	default:
	}
	select {
	case w.slots <- struct{}{}:
		return func() { <-w.slots }, nil
	default:
		return nil, &unavailable{what: fmt.Sprintf("%d certificates are being issued already", maxInFlight), after: time.Second,
			cause: pki.Refuse(pki.RuleOverloaded, "retry after the delay", "too many requests are in flight")}
	}
}

// prepare sends an item to the writer and waits until its intent is durable.
func (w *writer) prepare(ctx context.Context, it *item) error {
	it.isPrepared = true
	w.send(it)
	select {
	case err := <-it.prepared:
		if err != nil {
			it.isPrepared = false
		}
		return err
	case <-ctx.Done():
		return &unavailable{what: "the request ended before the certificate was signed", cause: ctx.Err()}
	case <-w.stopped:
		return &unavailable{what: "the server is stopping", after: time.Second}
	}
}

// abandon notifies the writer that a prepared item will have no record.
func (w *writer) abandon(it *item) {
	if it.isPrepared {
		w.send(it)
	}
}

// record sends a signed certificate to the writer and waits until it is durable.
func (w *writer) record(ctx context.Context, it *item, r Record) error {
	it.signed = &r
	w.send(it)
	select {
	case err := <-it.result:
		return err
	case <-ctx.Done():
		return &unavailable{what: "the certificate is signed and still being recorded: retry with the same request ID",
			after: time.Second, cause: ctx.Err()}
	case <-w.stopped:
		return &unavailable{what: "the server is stopping", after: time.Second}
	}
}

// send sends an item to the writer unless that has stopped.
func (w *writer) send(it *item) {
	select {
	case w.events <- it:
	case <-w.stopped:
	}
}

// close stops the writer once no certificate is in flight, and the renewals of the lease. If ctx ends first, only the
// renewals stop, so that another process takes over.
func (w *writer) close(ctx context.Context) error {
	close(w.closing)
	select {
	case <-w.stopped:
		return nil
	case <-ctx.Done():
		w.stopKeeping()
		<-w.kept
		return fmt.Errorf("stopped with certificates in flight, which the next start commits: %w", ctx.Err())
	}
}

// run writes transactions until the writer can stop.
func (w *writer) run() {
	defer func() {
		w.stopKeeping()
		<-w.kept
		close(w.stopped)
	}()
	for !w.canStop() {
		w.wait()
		w.collect()
		w.write()
	}
}

// canStop reports whether the writer can stop: it is closing and nothing is in flight.
func (w *writer) canStop() bool {
	return w.isClosing() && len(w.slots) == 0 && len(w.waiting)+len(w.done)+len(w.events) == 0
}

func (w *writer) isClosing() bool {
	select {
	case <-w.closing:
		return true
	default:
		return false
	}
}

// wait returns when there is something to write or to retry. While the writer is closing, it returns every millisecond,
// so that run can check whether the last callers have finished.
func (w *writer) wait() {
	if (len(w.waiting)+len(w.done) > 0 || w.fenced && !w.replaced) && w.retry == 0 {
		return
	}
	var again <-chan time.Time
	closing := w.closing
	if w.isClosing() {
		again, closing = time.After(time.Millisecond), nil
	}
	if w.retry > 0 {
		again = time.After(w.retry)
	}
	select {
	case it := <-w.events:
		w.accept(it)
	case r := <-w.renewals:
		w.renewed(r)
	case <-again:
	case <-closing:
	}
}

// collect receives items for the next transaction. A transaction costs about the same for one certificate as for many,
// so collect yields the processor to callers as long as that produces items. If the processors are busy, this loses no
// time; if they are idle, it ends immediately.
func (w *writer) collect() {
	for begun, idle := time.Now(), 0; idle < idleYields; {
		w.drain()
		if len(w.waiting) >= maxBatch || w.retry > 0 || time.Since(begun) >= admissionTimeout {
			return
		}
		runtime.Gosched()
		if idle++; len(w.events) > 0 {
			idle = 0
		}
	}
}

// drain receives the items in the channel.
func (w *writer) drain() {
	for len(w.waiting) < maxBatch {
		select {
		case it := <-w.events:
			w.accept(it)
		case r := <-w.renewals:
			w.renewed(r)
		default:
			return
		}
	}
}

// accept records that an item has arrived, or that it was signed or abandoned. An item that was abandoned before its
// intent was written is dropped.
func (w *writer) accept(it *item) {
	switch {
	case !it.seen:
		it.seen = true
		w.waiting = append(w.waiting, it)
	case it.batch == BatchID{}:
		w.waiting = slices.DeleteFunc(w.waiting, func(o *item) bool { return o == it })
	case it.epoch != w.epoch.Load() || w.fenced: // a later epoch has taken over its intent
		it.result <- w.fencedError()
	default:
		w.done = append(w.done, it)
	}
}

// write writes one transaction with the items to commit and the intent for new ones.
func (w *writer) write() {
	if w.fenced && !w.beginAgain() {
		w.refuseAll(w.fencedError())
		return
	}
	if len(w.waiting)+len(w.done) == 0 {
		return
	}
	commits := commitsOf(w.done, w.clock())
	// The intent may be empty: its ID tells whether the transaction was applied.
	fresh := Intent{Batch: NewBatchID(), Items: make([]IntentItem, len(w.waiting))}
	for i, it := range w.waiting {
		fresh.Items[i] = it.intent
	}
	results, err := w.commit(commits, fresh)
	if err != nil {
		w.failed(err)
		return
	}
	w.retry = 0
	for _, it := range w.waiting {
		it.batch, it.epoch = fresh.Batch, w.epoch.Load()
		it.prepared <- nil
	}
	done := w.done
	w.waiting, w.done = nil, nil
	w.deliver(done, commits, results)
}

// commitsOf groups items by their batches.
func commitsOf(items []*item, at time.Time) []BatchCommit {
	var all []BatchCommit
	places := map[BatchID]int{}
	for _, it := range items {
		i, ok := places[it.batch]
		if !ok {
			i = len(all)
			places[it.batch] = i
			all = append(all, BatchCommit{Intent: Intent{Batch: it.batch}, At: at})
		}
		s := &all[i]
		s.Intent.Items = append(s.Intent.Items, it.intent)
		if it.signed != nil {
			s.Records = append(s.Records, *it.signed)
		}
	}
	return all
}

// commit writes a transaction. After an error it reads back whether the transaction was applied, because an error of
// COMMIT does not say.
func (w *writer) commit(commits []BatchCommit, fresh Intent) ([]Results, error) {
	ctx := context.Background() // the transaction serves many callers, so no caller's context may end it
	results, err := w.journal.Write(ctx, Epoch(w.epoch.Load()), commits, []Intent{fresh})
	if err == nil || errors.Is(err, ErrFenced) {
		return results, err
	}
	for pause := minCommitRetry; ; pause = min(2*pause, maxCommitRetry) {
		applied, serr := w.journal.Applied(ctx, Epoch(w.epoch.Load()), fresh.Batch)
		switch {
		case errors.Is(serr, ErrFenced):
			return nil, serr
		case serr == nil && applied:
			return results, nil
		case serr == nil:
			return nil, err
		}
		w.log.Error("reading whether the last transaction was applied failed, retrying", "error", serr, "after", err)
		select {
		case <-w.closing:
			return nil, errors.Join(err, serr)
		case <-time.After(pause):
		}
	}
}

// failed fails the callers that wait for their intents, because none of their certificates was signed. It keeps signed
// items for a retry, because they must be accounted for.
func (w *writer) failed(err error) {
	if errors.Is(err, ErrFenced) {
		w.lose(err)
		return
	}
	w.fail(&unavailable{what: "writing the intent to the store failed, so nothing was signed", after: time.Second, cause: err})
	if len(w.done) > 0 {
		w.retry = min(max(2*w.retry, minCommitRetry), maxCommitRetry)
		w.log.Error("recording signed certificates failed, retrying", "count", len(w.done), "error", err)
	}
}

// refuseAll fails all callers. The next process commits the pending intents of this one.
func (w *writer) refuseAll(err error) {
	w.fail(err)
	for _, it := range w.done {
		it.result <- err
	}
	w.done = nil
}

// fail fails the callers that wait for their intents.
func (w *writer) fail(err error) {
	for _, it := range w.waiting {
		it.prepared <- err
	}
	w.waiting = nil
}

// deliver passes the status changes to the observer, then the results to the callers.
func (w *writer) deliver(done []*item, commits []BatchCommit, results []Results) {
	issued := make([]pki.StatusChange, 0, len(done))
	refused := map[pki.CertRef]error{}
	for i, s := range commits {
		for j, r := range s.Records {
			v := results[i][j]
			if v.Refusal != nil {
				refused[r.Ref] = v.Refusal
				continue
			}
			issued = append(issued, pki.StatusChange{Ref: r.Ref, NotAfter: r.NotAfter, Status: pki.Status{State: pki.Good, Version: 1}})
			if !v.Superseded.Ref.IsZero() {
				issued = append(issued, v.Superseded)
			}
		}
	}
	w.observer.Apply(issued...)
	for _, it := range done {
		it.result <- refused[it.intent.Ref]
	}
}
