// Package fair queues the work of many sources, and serves the sources in turn, however much work one of them adds. It
// limits the number of items in process and the length of the queue, and rejects further items. It uses no clock and
// starts no goroutine: the caller implements waiting and processing.
package fair

import (
	"container/list"
	"net/netip"
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
// the queue, it therefore fills half of the places; two sources fill a third each. A new source finds a free place as
// long as there are fewer sources than places.
type Queue[K comparable, T any] struct {
	size    Size
	working int
	waiting int
	sources map[K]*source[K, T] // sources with items that are in process or waiting
	ready   list.List           // sources (*source) with a waiting item that may be processed
}

// source is the state of one source.
type source[K comparable, T any] struct {
	key     K
	working int
	waiting list.List     // waiting items (*Item)
	element *list.Element // position in Queue.ready, or nil if the source is not in it
}

// Item is a waiting item of work.
type Item[K comparable, T any] struct {
	work    T
	source  *source[K, T]
	element *list.Element // position in source.waiting, or nil after Next or Withdraw
}

// NewQueue returns an empty Queue.
func NewQueue[K comparable, T any](s Size) *Queue[K, T] {
	return &Queue[K, T]{size: s, sources: map[K]*source[K, T]{}}
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

// Wait adds a waiting item of a source. It returns nil if the source has reached its limit of waiting items.
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

// Withdraw removes a waiting item. It returns false if Next has already returned the item.
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

// End frees a slot that Begin or Next has taken for a source.
func (q *Queue[K, T]) End(from K) {
	s := q.sources[from]
	q.working--
	s.working--
	q.enqueueSource(s)
	q.forget(s)
}

// Next takes a free slot for the next waiting item, in round-robin order of the sources. It returns false if no slot is
// free, or if no waiting item may be processed.
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

// source returns the state of a source. It creates the state if necessary.
func (q *Queue[K, T]) source(from K) *source[K, T] {
	s := q.sources[from]
	if s == nil {
		s = &source[K, T]{key: from}
		q.sources[from] = s
	}
	return s
}

// begin counts an item of a source as in process.
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
