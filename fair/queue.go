// Package fair queues the work of many sources, and serves the sources in turn, however much work one of them adds. It
// limits the number of items in process and the length of the queue, and rejects further items. It uses no clock and
// starts no goroutine: the caller implements waiting and processing.
package fair

import (
	"cmp"
	"container/list"
	"math"
	"net/netip"
	"slices"
	"time"
)

// Size contains the limits of a Queue.
type Size struct {
	Slots int // maximum number of items in process
	Each  int // maximum number of items of one source in process
	Queue int // maximum number of waiting items
}

// Queue contains the items that are waiting, and counts those in process. It serves the waiting sources in round-robin
// order, one item each. A source is therefore not served more often if it adds more items. A Queue is not safe for
// concurrent use.
//
// A source may only add an item while it has fewer waiting items than the queue has free places. If one source floods
// the queue, it therefore fills half of the places. A few floods can fill all places: [Queue.Displace] then takes one
// from the source with the most, so that a source without waiting items gets a place as long as there are fewer sources
// than places.
//
// An item may have a time by which it must be processed. In each round, sources whose next item has an earlier time are
// served before those with a later one or none, and each source once. A source therefore cannot keep the others waiting
// with early times. A round ends when each waiting source was served, or after as many items as the queue has places.
type Queue[K comparable, T any] struct {
	size    Size
	working int
	waiting int
	sources map[K]*source[K, T] // sources with items that are in process or waiting
	ready   list.List           // sources (*source) with a waiting item that may be processed, in the order of before
	limited list.List           // sources (*source) with a waiting item and as many in process as they may have, likewise
	crowds  crowds[K, T]        // sources with several waiting items
	served  map[K]struct{}      // sources that an item with a time was taken of in this round
	turns   int                 // number of items taken in this round
}

// source is the state of one source.
type source[K comparable, T any] struct {
	key      K
	working  int
	isServed bool          // whether Queue.served has the source
	waiting  list.List     // waiting items (*Item)
	in       *list.List    // Queue.ready or Queue.limited, or nil if no item is waiting
	element  *list.Element // position in that list
	crowd    int           // position in Queue.crowds, if several items are waiting
}

// Item is a waiting item of work.
type Item[K comparable, T any] struct {
	work    T
	until   int64 // Unix milliseconds; math.MaxInt64 for none
	source  *source[K, T]
	element *list.Element // position in source.waiting, or nil after Next or Withdraw
}

// NewQueue returns an empty Queue.
func NewQueue[K comparable, T any](s Size) *Queue[K, T] {
	return &Queue[K, T]{size: s, sources: map[K]*source[K, T]{}, served: map[K]struct{}{}}
}

// Begin takes a slot for a source. It returns false if no slot is free, or if the source has waiting items or too many
// items in process.
func (q *Queue[K, T]) Begin(from K) bool {
	s := q.source(from)
	if q.working >= q.size.Slots || s.working >= q.size.Each || s.waiting.Len() > 0 {
		q.forget(s)
		return false
	}
	q.begin(s)
	return true
}

// Limit changes the maximum number of waiting items, but not to less than wait now. They stay, and as long as they are more, a
// new item only gets a place of one of them.
func (q *Queue[K, T]) Limit(waiting int) { q.size.Queue = max(waiting, q.waiting) }

// Wait adds a waiting item of a source. It returns nil if the source has reached its limit of waiting items.
func (q *Queue[K, T]) Wait(from K, work T) *Item[K, T] { return q.WaitUntil(from, time.Time{}, work) }

// WaitUntil is Wait for an item that must be processed by a time. The zero time is none.
func (q *Queue[K, T]) WaitUntil(from K, until time.Time, work T) *Item[K, T] {
	s := q.source(from)
	if s.waiting.Len() >= q.size.Queue-q.waiting {
		q.forget(s)
		return nil
	}
	if q.waiting == 0 && len(q.served) > 0 { // no source waits any more that was not served
		q.beginRound()
	}
	i := &Item[K, T]{work: work, until: millis(until), source: s}
	i.element = s.waiting.PushBack(i)
	q.waiting++
	q.arrange(s)
	return i
}

// Displace makes a place in a full queue for an item of a source without waiting items. It removes the last item of the
// source with the most waiting items. If no source has more than one, it removes the item that would be served last,
// unless that would be served before the new one, or the new one has no time. It returns false if it removes nothing.
// Otherwise WaitUntil accepts the new item.
func (q *Queue[K, T]) Displace(from K, until time.Time) (work T, ok bool) {
	if q.waiting < q.size.Queue || q.WaitingOf(from) > 0 {
		return work, false
	}
	last := q.last()
	if len(q.crowds) > 0 {
		last = q.crowds[0]
	} else if last == nil || until.IsZero() || !q.isBefore(from, millis(until), last) {
		return work, false
	}
	i := last.waiting.Back().Value.(*Item[K, T]) //nolint:forcetypeassert // as in Next
	return i.work, q.Withdraw(i)
}

// last returns the source that would be served last, or nil if none waits. Those at their limit come after the others.
func (q *Queue[K, T]) last() *source[K, T] {
	for _, l := range []*list.List{&q.limited, &q.ready} {
		if l.Len() > 0 {
			return l.Back().Value.(*source[K, T]) //nolint:forcetypeassert // as in Next
		}
	}
	return nil
}

// isBefore reports whether a new item of a source without waiting items would be served before those of another source.
func (q *Queue[K, T]) isBefore(from K, until int64, other *source[K, T]) bool {
	isLimited := false
	if s := q.sources[from]; s != nil {
		isLimited = s.working >= q.size.Each
	}
	if isOtherLimited := other.in == &q.limited; isLimited != isOtherLimited {
		return isOtherLimited
	}
	_, isServed := q.served[from]
	return before(isServed, until, other)
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return math.MaxInt64
	}
	return t.UnixMilli()
}

// Withdraw removes a waiting item. It returns false if Next has already returned the item.
func (q *Queue[K, T]) Withdraw(i *Item[K, T]) bool {
	if i.element == nil {
		return false
	}
	s := i.source
	next := s.until()
	s.waiting.Remove(i.element)
	i.element = nil
	q.waiting--
	if s.waiting.Len() > 0 && s.until() != next {
		q.leave(s) // its place is another one now
	}
	q.arrange(s)
	q.forget(s)
	return true
}

// End frees a slot that Begin or Next has taken for a source.
func (q *Queue[K, T]) End(from K) {
	s := q.sources[from]
	q.working--
	s.working--
	q.arrange(s)
	q.forget(s)
}

// Next takes a free slot for the next waiting item. It returns false if no slot is free, or if no waiting item may be
// processed.
func (q *Queue[K, T]) Next() (from K, work T, ok bool) {
	if q.working >= q.size.Slots || q.ready.Len() == 0 {
		return from, work, false
	}
	s := q.ready.Front().Value.(*source[K, T]) //nolint:forcetypeassert // ready contains only sources
	if s.isServed || q.turns >= q.size.Queue {
		q.beginRound()
		s = q.ready.Front().Value.(*source[K, T]) //nolint:forcetypeassert // ready contains only sources
	}
	i := s.waiting.Remove(s.waiting.Front()).(*Item[K, T]) //nolint:forcetypeassert // waiting contains only items
	i.element = nil
	q.waiting--
	q.turns++
	if i.until < math.MaxInt64 {
		s.isServed = true
		q.served[s.key] = struct{}{}
	}
	q.begin(s)
	q.leave(s) // after the sources that were there before, even if nothing else changes
	q.arrange(s)
	return s.key, i.work, true
}

// beginRound lets each source be served again.
func (q *Queue[K, T]) beginRound() {
	q.turns = 0
	clear(q.served)
	for _, s := range q.sources {
		s.isServed = false
	}
	for _, l := range []*list.List{&q.ready, &q.limited} {
		var all []*source[K, T]
		for e := l.Front(); e != nil; e = e.Next() {
			all = append(all, e.Value.(*source[K, T])) //nolint:forcetypeassert // as in Next
		}
		slices.SortStableFunc(all, func(a, b *source[K, T]) int { return cmp.Compare(a.until(), b.until()) })
		l.Init()
		for _, s := range all {
			s.element = l.PushBack(s)
		}
	}
}

// Working returns the number of items in process.
func (q *Queue[K, T]) Working() int { return q.working }

// Waiting returns the number of waiting items.
func (q *Queue[K, T]) Waiting() int { return q.waiting }

// WaitingOf returns the number of waiting items of a source.
func (q *Queue[K, T]) WaitingOf(from K) int {
	if s := q.sources[from]; s != nil {
		return s.waiting.Len()
	}
	return 0
}

// Sources returns the number of sources that have items in process or waiting.
func (q *Queue[K, T]) Sources() int { return len(q.sources) }

// source returns the state of a source. It creates the state if necessary.
func (q *Queue[K, T]) source(from K) *source[K, T] {
	s := q.sources[from]
	if s == nil {
		_, isServed := q.served[from]
		s = &source[K, T]{key: from, isServed: isServed, crowd: noCrowd}
		q.sources[from] = s
	}
	return s
}

// begin counts an item of a source as in process.
func (q *Queue[K, T]) begin(s *source[K, T]) {
	q.working++
	s.working++
}

// arrange puts a source into the lists that it belongs to, after a change.
func (q *Queue[K, T]) arrange(s *source[K, T]) {
	q.crowds.arrange(s)
	var to *list.List
	switch {
	case s.waiting.Len() == 0:
	case s.working >= q.size.Each:
		to = &q.limited
	default:
		to = &q.ready
	}
	if s.in == to {
		return
	}
	q.leave(s)
	if to == nil {
		return
	}
	e := to.Back()
	for e != nil && before(s.isServed, s.until(), e.Value.(*source[K, T])) { //nolint:forcetypeassert // as in Next
		e = e.Prev()
	}
	if s.in = to; e == nil {
		s.element = to.PushFront(s)
	} else {
		s.element = to.InsertAfter(s, e)
	}
}

// leave removes a source from its list.
func (q *Queue[K, T]) leave(s *source[K, T]) {
	if s.in != nil {
		s.in.Remove(s.element)
		s.in, s.element = nil, nil
	}
}

// before reports whether a source with these values is served before another one.
func before[K comparable, T any](isServed bool, until int64, other *source[K, T]) bool {
	if isServed != other.isServed {
		return other.isServed
	}
	return until < other.until()
}

// until returns the time of the next item of a source, which must have one.
func (s *source[K, T]) until() int64 { return s.waiting.Front().Value.(*Item[K, T]).until } //nolint:forcetypeassert // as in Next

// forget deletes the state of a source without items, so that the number of items limits the memory.
func (q *Queue[K, T]) forget(s *source[K, T]) {
	if s.working == 0 && s.waiting.Len() == 0 {
		delete(q.sources, s.key)
	}
}

// NetworkBits is the length of the prefix by which Host groups IPv6 addresses. A host can choose the other bits itself
// (RFC 4291 section 2.5.4).
const NetworkBits = 64

// Host returns the address that identifies the source of a connection: the IPv4 address, or the network of the IPv6
// address.
func Host(ip netip.Addr) netip.Addr {
	ip = ip.Unmap().WithZone("")
	if ip.Is6() {
		ip = netip.PrefixFrom(ip, NetworkBits).Masked().Addr()
	}
	return ip
}
