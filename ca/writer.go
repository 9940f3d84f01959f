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

// maxInFlight bounds the certificates between draft and release; above it, Issue sheds load.
const maxInFlight = 1024

// maxBatch bounds the items of one intent, and so the size of one transaction.
const maxBatch = 256

// admissionTimeout bounds how long a transaction waits for company.
const admissionTimeout = 5 * time.Millisecond

// commitRetryMin is how long the writer waits before it tries a failed settlement again, and commitRetryMax at most.
const (
	commitRetryMin = 50 * time.Millisecond
	commitRetryMax = 2 * time.Second
)

// item is one certificate on its way through the writer.
type item struct {
	intent IntentItem
	// prepared gets nil once the intent is durable, or why it is not. verdict gets nil once the record is durable, or
	// why there is none. Both have room for their one value, so that the writer never waits for a caller.
	prepared chan error
	result   chan error

	// Owned by the goroutine that called Issue until the item is handed to the writer, again.
	isPrepared bool
	signed     *Record

	// Owned by the writer.
	seen  bool    // arrived; the next event of it is its end
	batch BatchID // that announced it; zero before
}

func newItem(i IntentItem) *item {
	return &item{intent: i, prepared: make(chan error, 1), result: make(chan error, 1)}
}

// writer is the one goroutine that writes to the journal: each of its transactions settles what was signed since the
// last one, and announces what has arrived since.
type writer struct {
	journal  Journal
	epoch    Epoch
	observer pki.StatusObserver
	clock    func() time.Time
	log      *slog.Logger

	slots chan struct{} // one for each certificate in flight
	// events brings each item twice, to be announced and when it is signed or given up: one channel, so that the
	// second cannot overtake the first.
	events  chan *item
	closing chan struct{}
	stopped chan struct{}
	lost    atomic.Bool // as fenced, for everybody

	// Owned by the goroutine of run.
	waiting []*item // arrived, not yet announced
	done    []*item // announced, and signed or given up, not yet settled
	fenced  bool
	retry   time.Duration // until the next try of a failed settlement; zero where none failed
}

func newWriter(ctx context.Context, c Config) (*writer, error) {
	epoch, left, err := c.Journal.Begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("ca: open the journal: %w", err)
	}
	w := &writer{
		journal: c.Journal, epoch: epoch, observer: c.Observer, clock: c.Clock, log: c.Log,
		slots: make(chan struct{}, maxInFlight), events: make(chan *item, 2*maxInFlight),
		closing: make(chan struct{}), stopped: make(chan struct{}),
	}
	// What an earlier process left goes the way of everything else that was given up.
	for _, intent := range left {
		for _, i := range intent.Items {
			it := newItem(i)
			it.batch = intent.Batch
			w.done = append(w.done, it)
		}
		w.log.Warn("settling certificates that were announced but never released", "batch", intent.Batch, "count", len(intent.Items))
	}
	go w.run()
	return w, nil
}

// admit takes a place for one certificate in flight, or refuses at once.
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
			cause: pki.Refuse(pki.RuleOverloaded, "try again after the delay", "too many requests are in flight")}
	}
}

// prepare hands an item to the writer and waits until its intent is durable.
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
		return &unavailable{what: "the caller gave up before the certificate was signed", cause: ctx.Err()}
	case <-w.stopped:
		return &unavailable{what: "the server is stopping", after: time.Second}
	}
}

// abandon tells the writer that an announced item will have no record.
func (w *writer) abandon(it *item) {
	if it.isPrepared {
		w.send(it)
	}
}

// record hands a signed certificate to the writer and waits until it is durable.
func (w *writer) record(ctx context.Context, it *item, r Record) error {
	it.signed = &r
	w.send(it)
	select {
	case err := <-it.result:
		return err
	case <-ctx.Done():
		return &unavailable{what: "the certificate is signed and still being recorded: ask again with the same request ID",
			after: time.Second, cause: ctx.Err()}
	case <-w.stopped:
		return &unavailable{what: "the server is stopping", after: time.Second}
	}
}

func (w *writer) send(it *item) {
	select {
	case w.events <- it:
	case <-w.stopped:
	}
}

// close stops the writer once nothing is in flight.
func (w *writer) close(ctx context.Context) error {
	close(w.closing)
	select {
	case <-w.stopped:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("ca: stopped with certificates in flight, which the next start settles: %w", ctx.Err())
	}
}

func (w *writer) run() {
	defer close(w.stopped)
	for !w.atRest() {
		w.wait()
		w.gather()
		w.write()
	}
}

// atRest reports whether the writer may stop: it shall, and nothing is in flight.
func (w *writer) atRest() bool {
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

// wait returns when there is something to write, or time to try a failed settlement again, or to look whether the
// last callers have gone.
func (w *writer) wait() {
	if len(w.waiting)+len(w.done) > 0 && w.retry == 0 {
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
		w.take(it)
	case <-again:
	case <-closing:
	}
}

// gather takes in what has come. A transaction costs much the same for one certificate as for many, so the writer first
// lets everybody run who can, as long as that brings something: where the processors are busy, what they do meanwhile is
// no time lost, and where they are not, nobody waits.
func (w *writer) gather() {
	for begun := time.Now(); ; {
		w.drain()
		if len(w.waiting) >= maxBatch || w.retry > 0 || time.Since(begun) >= admissionTimeout {
			return
		}
		runtime.Gosched()
		if len(w.events) == 0 {
			return
		}
	}
}

// drain takes what waits in the channel.
func (w *writer) drain() {
	for len(w.waiting) < maxBatch {
		select {
		case it := <-w.events:
			w.take(it)
		default:
			return
		}
	}
}

// take notes that an item has arrived, or that it was signed or given up. One that was given up before it was
// announced leaves the queue.
func (w *writer) take(it *item) {
	switch {
	case !it.seen:
		it.seen = true
		w.waiting = append(w.waiting, it)
	case it.batch == BatchID{}:
		w.waiting = slices.DeleteFunc(w.waiting, func(o *item) bool { return o == it })
	default:
		w.done = append(w.done, it)
	}
}

// write makes one transaction of what there is to settle and to announce.
func (w *writer) write() {
	if len(w.waiting)+len(w.done) == 0 {
		return
	}
	if w.fenced {
		w.refuseAll(ErrFenced)
		return
	}
	settle := commitsOf(w.done, w.clock())
	// There is always an intent, be it of nothing: its state tells whether the transaction applied.
	fresh := Intent{Batch: NewBatchID(), Items: make([]IntentItem, len(w.waiting))}
	for i, it := range w.waiting {
		fresh.Items[i] = it.intent
	}
	verdicts, err := w.commit(settle, fresh)
	if err != nil {
		w.failed(err)
		return
	}
	w.retry = 0
	for _, it := range w.waiting {
		it.batch = fresh.Batch
		it.prepared <- nil
	}
	done := w.done
	w.waiting, w.done = nil, nil
	w.deliver(done, settle, verdicts)
}

// commitsOf returns what became of items, by their batches.
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

// commit writes, and after an error reads back whether the transaction applied: an error of COMMIT does not say.
func (w *writer) commit(settle []BatchCommit, fresh Intent) ([]Results, error) {
	ctx := context.Background() // a transaction is nobody's alone: no caller's patience may end it
	verdicts, err := w.journal.Write(ctx, w.epoch, settle, []Intent{fresh})
	if err == nil || errors.Is(err, ErrFenced) {
		return verdicts, err
	}
	for pause := commitRetryMin; ; pause = min(2*pause, commitRetryMax) {
		states, serr := w.journal.State(ctx, w.epoch, []BatchID{fresh.Batch})
		if errors.Is(serr, ErrFenced) {
			return nil, serr
		}
		if serr == nil && len(states) == 1 {
			if states[0] != BatchAbsent {
				return verdicts, nil
			}
			return nil, err
		}
		w.log.Error("the store does not say whether the last transaction applied: asking again", "error", serr, "after", err)
		select {
		case <-w.closing:
			return nil, errors.Join(err, serr)
		case <-time.After(pause):
		}
	}
}

// failed answers those who wait to announce, since nothing of theirs was signed, and keeps what was signed for
// another try: it must be accounted for.
func (w *writer) failed(err error) {
	if errors.Is(err, ErrFenced) {
		w.fenced = true
		w.lost.Store(true)
		w.log.Error("another process has taken over the store: this one signs nothing any more")
		w.refuseAll(ErrFenced)
		return
	}
	w.fail(&unavailable{what: "the store did not take the intent: nothing was signed", after: time.Second, cause: err})
	if len(w.done) > 0 {
		w.retry = min(max(2*w.retry, commitRetryMin), commitRetryMax)
		w.log.Error("the store did not take the record of signed certificates: trying again", "count", len(w.done), "error", err)
	}
}

// refuseAll answers everybody: this process has no say any more, and its pending intents are its successor's.
func (w *writer) refuseAll(err error) {
	w.fail(err)
	for _, it := range w.done {
		it.result <- err
	}
	w.done, w.retry = nil, 0
}

// fail answers those who wait to announce.
func (w *writer) fail(err error) {
	for _, it := range w.waiting {
		it.prepared <- err
	}
	w.waiting = nil
}

// deliver tells the observer, and then the callers.
func (w *writer) deliver(done []*item, settled []BatchCommit, verdicts []Results) {
	issued := make([]pki.StatusChange, 0, len(done))
	refused := map[pki.CertRef]error{}
	for i, s := range settled {
		for j, r := range s.Records {
			v := verdicts[i][j]
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
