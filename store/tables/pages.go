package tables

import (
	"context"

	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/engine"
)

// listedRow is a row that was read for a list: its ID, its position in the list, and whether it matches the filter.
type listedRow[P any] struct {
	id      int64
	place   P
	matches bool
}

// readPage runs a query that returns rows in the order of a list. It returns the IDs of the first limit rows that match the
// filter. It reads at most ra.MaxLooked rows. If rows are left, next is the position of the last row that it read.
func readPage[P any](ctx context.Context, q engine.Querier, c *engine.Clause, limit int, scan func(engine.Scanner) (listedRow[P], error)) (ids []int64, next P, err error) {
	var last P
	n := 0
	rows := c.Query(ctx, q)
	err = rows.Each(func(rows engine.Scanner) error {
		if len(ids) == limit || n == ra.MaxLooked {
			next = last
			return engine.ErrStop
		}
		row, err := scan(rows)
		if err != nil {
			return err
		}
		n++
		if last = row.place; row.matches {
			ids = append(ids, row.id)
		}
		return nil
	})
	return ids, next, err
}

// oneOf adds the condition that a column has one of the values. If there are no values, every row satisfies the condition.
func oneOf[V any](c *engine.Clause, column string, values []V) {
	if len(values) > 0 {
		c.Add(` AND ` + column)
		in(c, values)
	}
}

// in adds an IN operator with the values, of which there are few, for the expression before it.
func in[V any](c *engine.Clause, values []V) {
	c.Add(` IN (`)
	for i, v := range values {
		if i > 0 {
			c.Add(`, `)
		}
		c.Add(`?`, v)
	}
	c.Add(`)`)
}

// numbers converts values to integers.
func numbers[V ~uint8](values []V) []int {
	var all []int
	for _, v := range values {
		all = append(all, int(v))
	}
	return all
}
