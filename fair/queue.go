// Package fair queues the work of many sources so that each gets its turn, however much the others send: few items at work at
// once, the others in a queue of bounded length. It refuses what finds no room. It knows no clock and starts no goroutine:
// its callers say how an item waits, and what its turn means.
package fair

import (
	"container/list"
	"net/netip"
)

// Size is how much a Queue takes.
type Size struct {
	Slots int // items at work at once
	Each  int // of one source, at most
	Queue int // items that wait
}

// Queue holds what is at work and what waits. Sources that wait are served one item each, round and round, so how many items
// a source sends does not change how often it is served. It is not safe for concurrent use.
//
// A source may have as many items wait as there is room left for others. One that floods the queue gets half of it so, two
// get a third each, and there is room for somebody new as long as there are fewer sources than places.
type Queue[K comparable, T any] struct {
	size    Size
	working int
	waiting int
	sources map[K]*source[K, T] // those with items at work or waiting, and no others
	turns   list.List           // of *source: those with an item that waits and may go to work
}

// source is the items of one source.
type source[K comparable, T any] struct {
	key     K
	working int
	waiting list.List     // of *Item
	turn    *list.Element // its place in Queue.turns; nil where it has none
}

// Item is work that waits.
type Item[K comparable, T any] struct {
	work  T
	of    *source[K, T]
	place *list.Element // in source.waiting; nil once its turn came, or it was withdrawn
}

// NewQueue returns an empty Queue.
func NewQueue[K comparable, T any](s Size) *Queue[K, T] {
	return &Queue[K, T]{size: s, sources: map[K]*source[K, T]{}}
}

// Begin takes a slot for a source where one is free, nothing of the source waits and it is below its share.
func (q *Queue[K, T]) Begin(from K) bool {
	s := q.source(from)
	if q.working >= q.size.Slots || s.working >= q.size.Each || s.waiting.Len() > 0 {
		q.forget(s)
		return false
	}
	q.begin(s)
	return true
}

// Wait queues work of a source, or returns nil where the source has as much waiting as it may.
func (q *Queue[K, T]) Wait(from K, work T) *Item[K, T] {
	s := q.source(from)
	if s.waiting.Len() >= q.size.Queue-q.waiting {
		q.forget(s)
		return nil
	}
	i := &Item[K, T]{work: work, of: s}
	i.place = s.waiting.PushBack(i)
	q.waiting++
	q.line(s)
	return i
}

// Withdraw takes an item out of the queue, and reports whether it was still there. If not, its turn has come.
func (q *Queue[K, T]) Withdraw(i *Item[K, T]) bool {
	if i.place == nil {
		return false
	}
	s := i.of
	s.waiting.Remove(i.place)
	i.place = nil
	q.waiting--
	if s.waiting.Len() == 0 && s.turn != nil {
		q.turns.Remove(s.turn)
		s.turn = nil
	}
	q.forget(s)
	return true
}

// End gives back a slot that a source has from Begin or Next.
func (q *Queue[K, T]) End(from K) {
	s := q.sources[from]
	q.working--
	s.working--
	q.line(s)
	q.forget(s)
}

// Next takes a free slot for the first item of the source whose turn it is, which then goes behind the others.
func (q *Queue[K, T]) Next() (from K, work T, ok bool) {
	if q.working >= q.size.Slots || q.turns.Len() == 0 {
		return from, work, false
	}
	s := q.turns.Remove(q.turns.Front()).(*source[K, T]) //nolint:forcetypeassert // nothing else is put there
	s.turn = nil
	i := s.waiting.Remove(s.waiting.Front()).(*Item[K, T]) //nolint:forcetypeassert // likewise
	i.place = nil
	q.waiting--
	q.begin(s)
	q.line(s)
	return s.key, i.work, true
}

// Working returns how many items are at work.
func (q *Queue[K, T]) Working() int { return q.working }

// Waiting returns how many items wait.
func (q *Queue[K, T]) Waiting() int { return q.waiting }

// WaitingOf returns how many items of a source wait.
func (q *Queue[K, T]) WaitingOf(from K) int {
	if s := q.sources[from]; s != nil {
		return s.waiting.Len()
	}
	return 0
}

// Sources returns how many sources are remembered: those with anything at work or waiting.
func (q *Queue[K, T]) Sources() int { return len(q.sources) }

func (q *Queue[K, T]) source(from K) *source[K, T] {
	s := q.sources[from]
	if s == nil {
		s = &source[K, T]{key: from}
		q.sources[from] = s
	}
	return s
}

func (q *Queue[K, T]) begin(s *source[K, T]) {
	q.working++
	s.working++
}

// line puts a source in line where it has an item that may go to work.
func (q *Queue[K, T]) line(s *source[K, T]) {
	if s.turn == nil && s.waiting.Len() > 0 && s.working < q.size.Each {
		s.turn = q.turns.PushBack(s)
	}
}

// forget keeps what is remembered as small as what is going on.
func (q *Queue[K, T]) forget(s *source[K, T]) {
	if s.working == 0 && s.waiting.Len() == 0 {
		delete(q.sources, s.key)
	}
}

// NetworkBits is how much of an IPv6 address tells sources apart. A host has the rest to itself (RFC 4291 §2.5.4).
const NetworkBits = 64

// Host returns what tells the sources of connections apart: an IPv4 address, or the network of an IPv6 address.
func Host(ip netip.Addr) netip.Addr {
	ip = ip.Unmap().WithZone("")
	if ip.Is6() {
		ip = netip.PrefixFrom(ip, NetworkBits).Masked().Addr()
	}
	return ip
}
