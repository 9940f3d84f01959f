package engine

import "context"

// Parameters of statements that run often. If a join or a LIMIT uses a plain parameter, SQLite plans the statement again for
// each execution: the driver clears the parameters after each one, which expires a plan that looked at them
// (sqlite3_clear_bindings). It does not look into a CAST, and uses the same indexes.
const (
	Blob    = `CAST(? AS BLOB)`
	Integer = `CAST(? AS BIGINT)`
)

// Clause is a part of an SQL statement with its arguments, in order.
type Clause struct {
	text []byte
	args []any
}

// Add appends text, and the arguments of its parameters.
func (c *Clause) Add(text string, args ...any) {
	c.text = append(c.text, text...)
	c.args = append(c.args, args...)
}

// String returns the text.
func (c *Clause) String() string { return string(c.text) }

// Query runs the clause as a query. [Rows.Each] reads and closes its result.
func (c *Clause) Query(ctx context.Context, q Querier) Rows {
	return Query(ctx, q, c.String(), c.args...)
}

// QueryRow runs the clause as a query for one row.
func (c *Clause) QueryRow(ctx context.Context, q Querier) Scanner {
	return q.QueryRow(ctx, c.String(), c.args...)
}

// IsTrue runs the clause as a query for one truth value.
func (c *Clause) IsTrue(ctx context.Context, q Querier) (bool, error) {
	var is bool
	err := c.QueryRow(ctx, q).Scan(&is)
	return is, err
}
