package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/sqlite/internal/engine"
)

// looked is a row that was read for a list: its ID, its position in the list, and whether it matches the filter.
type looked[P any] struct {
	id      int64
	place   P
	matches bool
}

// lookUp runs a query that returns rows in the order of a list. It returns the IDs of the first limit rows that match the
// filter. It reads at most ra.MaxLooked rows. If rows are left, next is the position of the last row that it read.
func lookUp[P any](ctx context.Context, q engine.Querier, c *clause, limit int, scan func(*sql.Rows) (looked[P], error)) (ids []int64, next P, err error) {
	var last P
	n := 0
	rows := engine.Query(ctx, q, c.text.String(), c.args...)
	err = rows.Each(func(rows *sql.Rows) error {
		if len(ids) == limit || n == ra.MaxLooked {
			next = last
			return errStopped
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
	if errors.Is(err, errStopped) {
		err = nil
	}
	return ids, next, err
}

// oneOf adds the condition that a column has one of the values. If there are no values, every row satisfies the condition.
func oneOf[V any](c *clause, column string, values []V) error {
	if len(values) == 0 {
		return nil
	}
	c.add(` AND ` + column)
	return in(c, values)
}

// in adds an IN operator with the values, for the expression before it.
func in[V any](c *clause, values []V) error {
	list, err := json.Marshal(values)
	c.add(` IN (SELECT value FROM json_each(?))`, string(list))
	return err
}

// numbers converts values to integers, because encoding/json encodes a slice of bytes as text.
func numbers[V ~uint8](values []V) []int {
	var all []int
	for _, v := range values {
		all = append(all, int(v))
	}
	return all
}

// idsIn returns IDs as the argument of json_each.
func idsIn(ids []int64) (string, error) {
	list, err := json.Marshal(ids)
	return string(list), err
}
