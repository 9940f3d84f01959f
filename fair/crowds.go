package fair

import "container/heap"

// noCrowd is the position of a source that is not in crowds.
const noCrowd = -1

// crowds contains the sources with several waiting items. The first one has the most. It implements heap.Interface.
type crowds[K comparable, T any] []*source[K, T]

// arrange adds, moves or removes a source after a change.
func (c *crowds[K, T]) arrange(s *source[K, T]) {
	switch isCrowd := s.waiting.Len() > 1; {
	case isCrowd && s.crowd == noCrowd:
		heap.Push(c, s)
	case isCrowd:
		heap.Fix(c, s.crowd)
	case s.crowd != noCrowd:
		heap.Remove(c, s.crowd)
	}
}

// Len implements heap.Interface.
func (c crowds[K, T]) Len() int { return len(c) }

// Less implements heap.Interface.
func (c crowds[K, T]) Less(i, j int) bool { return c[i].waiting.Len() > c[j].waiting.Len() }

// Swap implements heap.Interface.
func (c crowds[K, T]) Swap(i, j int) {
	c[i], c[j] = c[j], c[i]
	c[i].crowd, c[j].crowd = i, j
}

// Push implements heap.Interface.
func (c *crowds[K, T]) Push(s any) {
	one := s.(*source[K, T]) //nolint:forcetypeassert // arrange passes one
	one.crowd = len(*c)
	*c = append(*c, one)
}

// Pop implements heap.Interface.
func (c *crowds[K, T]) Pop() any {
	last := len(*c) - 1
	s := (*c)[last]
	(*c)[last] = nil
	*c, s.crowd = (*c)[:last], noCrowd
	return s
}
