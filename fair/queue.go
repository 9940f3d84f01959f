// Package fair queues the work of many sources so that each source is served in turn, however much the others send. It
// bounds the number of items being processed and the length of the queue, and rejects items beyond that. It uses no
// clock and starts no goroutine: the caller decides how an item waits and how it is processed.
package fair

import (
	"container/list"
	"net/netip"
)

// Size holds the limits of a Queue.
type Size struct {
	Slots int // items processed at the same time
	Each  int // of these, items of one source
	Queue int // waiting items
}

// Queue holds the items that are processed and those that wait. It serves the waiting sources round-robin, one item
// each, so sending more items does not get a source served more often. It is not safe for concurrent use.
//
// A source may add an item only while it has fewer waiting items than the queue has free places. A single source that
// floods the queue therefore fills half of the places, and two sources fill a third each. A new source finds a free place as long as
// there are fewer sources than places.
type Queue[K comparable, T any] struct {
	size    Size
	working int
	waiting int
	sources map[K]*source[K, T] // sources with items in process or waiting
	ready   list.List           // of *source: sources with a waiting item that may be processed
}

// source holds the items of one source.
type source[K comparable, T any] struct {
	key     K
	working int
	waiting list.List     // of *Item
	element *list.Element // position in Queue.ready; nil if it is not there
}

// Item is a waiting item of work.
type Item[K comparable, T any] struct {
	work    T
	source  *source[K, T]
	element *list.Element // position in source.waiting; nil once it was served or withdrawn
}

// NewQueue returns an empty Queue.
func NewQueue[K comparable, T any](s Size) *Queue[K, T] {
	return &Queue[K, T]{size: s, sources: map[K]*source[K, T]{}}
}

// Begin takes a slot for a source. It returns false if no slot is free, the source has waiting items, or it has reached
// its limit.
func (q *Queue[K, T]) Begin(from K) bool {
	s := q.source(from)
	if q.working >= q.size.Slots || s.working >= q.size.Each || s.waiting.Len() > 0 {
		q.forget(s)
		return false
	}
	q.begin(s)
	return true
}

// Wait queues work of a source, or returns nil if the source has reached its limit of waiting items.
func (q *Queue[K, T]) Wait(from K, work T) *Item[K, T] {
	s := q.source(from)
	if s.waiting.Len() >= q.size.Queue-q.waiting {
		q.forget(s)
		return nil
	}
	i := &Item[K, T]{work: work, source: s}
	i.element = s.waiting.PushBack(i)
	q.waiting++
	q.enqueueSource(s)
	return i
}

// Withdraw removes an item from the queue. It returns false if Next has already returned the item.
func (q *Queue[K, T]) Withdraw(i *Item[K, T]) bool {
	if i.element == nil {
		return false
	}
	s := i.source
	s.waiting.Remove(i.element)
	i.element = nil
	q.waiting--
	if s.waiting.Len() == 0 && s.element != nil {
		q.ready.Remove(s.element)
		s.element = nil
	}
	q.forget(s)
	return true
}

// End frees a slot that a source got from Begin or Next.
func (q *Queue[K, T]) End(from K) {
	s := q.sources[from]
	q.working--
	s.working--
	q.enqueueSource(s)
	q.forget(s)
}

// Next takes a free slot for the next waiting item, in round-robin order of sources. It returns false if no slot is
// free or no item may be processed.
func (q *Queue[K, T]) Next() (from K, work T, ok bool) {
	if q.working >= q.size.Slots || q.ready.Len() == 0 {
		return from, work, false
	}
	s := q.ready.Remove(q.ready.Front()).(*source[K, T]) //nolint:forcetypeassert // ready contains only sources
	s.element = nil
	i := s.waiting.Remove(s.waiting.Front()).(*Item[K, T]) //nolint:forcetypeassert // waiting contains only items
	i.element = nil
	q.waiting--
	q.begin(s)
	q.enqueueSource(s)
	return s.key, i.work, true
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

// source returns the state of a source and creates it if necessary.
func (q *Queue[K, T]) source(from K) *source[K, T] {
	s := q.sources[from]
	if s == nil {
		s = &source[K, T]{key: from}
		q.sources[from] = s
	}
	return s
}

// begin counts an item of a source that takes a slot.
func (q *Queue[K, T]) begin(s *source[K, T]) {
	q.working++
	s.working++
}

// enqueueSource appends a source to ready if it has a waiting item that may be processed.
func (q *Queue[K, T]) enqueueSource(s *source[K, T]) {
	if s.element == nil && s.waiting.Len() > 0 && s.working < q.size.Each {
		s.element = q.ready.PushBack(s)
	}
}

// forget removes a source without items, so that memory is bounded by the items.
func (q *Queue[K, T]) forget(s *source[K, T]) {
	if s.working == 0 && s.waiting.Len() == 0 {
		delete(q.sources, s.key)
	}
}

// NetworkBits is the prefix length by which Host groups IPv6 addresses. A host controls the remaining bits (RFC 4291
// section 2.5.4).
const NetworkBits = 64

// Host returns the address that identifies the source of a connection: an IPv4 address, or the network of an IPv6
// address.
func Host(ip netip.Addr) netip.Addr {
	ip = ip.Unmap().WithZone("")
	if ip.Is6() {
		ip = netip.PrefixFrom(ip, NetworkBits).Masked().Addr()
	}
	return ip
}
