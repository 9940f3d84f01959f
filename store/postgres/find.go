package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/store/engine"
)

// find is a read of one row.
type find struct {
	query string
	args  []any
	dest  []any
	found bool  // whether there is one
	err   error // of its scan, which is not one of the others
}

// Find implements engine.DB. Calls that wait share one round trip, and those with the same query one statement.
func (db *database) Find(ctx context.Context, what, query string, args []any, dest ...any) (found bool, err error) {
	if err := engine.CheckTexts(args); err != nil {
		return false, fail(what, err)
	}
	f := &find{query: query, args: args, dest: dest}
	if err := db.finds.Run(ctx, f); err != nil {
		return false, fail(what, err)
	}
	return f.found && f.err == nil, fail(what, f.err)
}

// findAll reads the rows of jobs.
func (db *database) findAll(jobs []*engine.Job[*find]) {
	ctx, cancel := context.WithTimeout(context.Background(), maxLook) // not that of any one caller
	defer cancel()
	byQuery := map[string][]*find{}
	var queries []string
	for _, j := range jobs {
		q := j.Work.query
		if byQuery[q] == nil {
			queries = append(queries, q)
		}
		byQuery[q] = append(byQuery[q], j.Work)
	}
	if err := db.findEach(ctx, queries, byQuery); err != nil {
		engine.FailAll(jobs, err)
	}
}

// findEach reads rows with one statement for each query. All statements are sent together.
func (db *database) findEach(ctx context.Context, queries []string, finds map[string][]*find) error {
	conn, err := db.onReader(ctx, func(conn *pgx.Conn) error {
		var batch pgx.Batch
		for _, query := range queries {
			text, args, err := each(query, arguments(finds[query]))
			if err != nil {
				return err
			}
			batch.Queue(text, args...).Query(func(rows pgx.Rows) error {
				c := &cursor{types: conn.TypeMap()}
				if err := c.read(rows, nil); err != nil {
					return err
				}
				return c.eachPlace(func(i int, row engine.Scanner) error {
					f := finds[query][i]
					f.found, f.err = true, row.Scan(f.dest...)
					return nil
				})
			})
		}
		return conn.SendBatch(ctx, &batch).Close()
	})
	if err != nil {
		return err
	}
	conn.Release()
	return nil
}

// arguments returns the arguments of reads that have not begun.
func arguments(finds []*find) [][]any {
	rows := make([][]any, len(finds))
	for i, f := range finds {
		f.found, f.err, rows[i] = false, nil, f.args
	}
	return rows
}
