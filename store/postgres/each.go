package postgres

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"

	"github.com/brevet-pki/brevet/store/engine"
)

// QueryEach implements engine.Querier. One statement has all rows of arguments, as arrays.
func (s *session) QueryEach(ctx context.Context, query string, rows [][]any, visit func(int, engine.Scanner) error) error {
	if len(rows) == 0 {
		return nil
	}
	text, args, err := eachChecked(query, rows)
	if err != nil {
		return err
	}
	c := &cursor{types: s.conn.TypeMap()}
	if err := s.query(ctx, c, text, args); err != nil {
		return err
	}
	return c.eachPlace(visit)
}

// eachPlace calls visit with each row, and the index of the arguments of the row. Its first column is their number.
func (c *cursor) eachPlace(visit func(int, engine.Scanner) error) error {
	for c.Next() {
		var place int64
		if err := c.scan(0, c.rows[c.next-1][0], &place); err != nil {
			return err
		}
		if err := visit(int(place)-1, afterPlace{c}); err != nil {
			return err
		}
	}
	return c.Err()
}

// afterPlace is a row without its first column, which is the number of its arguments.
type afterPlace struct{ *cursor }

// Scan implements engine.Scanner.
func (r afterPlace) Scan(dest ...any) error { return r.scanFrom(1, dest) }

// withIDs returns an INSERT of many rows whose IDs have no gaps, if the table has such, with their IDs. Calling the function
// that is their default for each row takes a third of the time of the statement.
func withIDs(query string) string {
	for _, table := range []string{"certificates", "log"} {
		begin := "INSERT INTO " + table + " ("
		if before, after, ok := strings.Cut(query, begin); ok && strings.TrimSpace(before) == "" && !strings.HasPrefix(after, "id,") {
			return begin + "id, " + strings.Replace(after, beginValues, beginValues+"(SELECT coalesce(max(id), 0) FROM "+table+") + r.place, ", 1)
		}
	}
	return query
}

// InsertEachLater implements engine.Executor.
func (s *session) InsertEachLater(_ context.Context, query string, rows [][]any) error {
	if len(rows) == 0 {
		return nil
	}
	text, args, err := eachChecked(withIDs(query), rows)
	if err == nil {
		s.later.Queue(text, args...)
	}
	return err
}

// eachChecked is each for arguments whose texts were not checked.
func eachChecked(query string, rows [][]any) (string, []any, error) {
	for _, row := range rows {
		if err := engine.CheckTexts(row); err != nil {
			return "", nil, err
		}
	}
	return each(query, rows)
}

// each returns the statement that does at once what a statement of package tables does for one row of arguments, and its
// arguments: an array for each parameter.
func each(query string, rows [][]any) (string, []any, error) {
	arguments, types := make([]any, len(rows[0])), make([]string, len(rows[0]))
	for i := range arguments {
		var err error
		if arguments[i], types[i], err = column(rows, i); err != nil {
			return "", nil, fmt.Errorf("parameter %d: %w", i+1, err)
		}
	}
	key := query + "\x00" + strings.Join(types, " ")
	if have, ok := recall(key); ok {
		return have, arguments, nil
	}
	text, err := forEach(query, types)
	if err != nil {
		return "", nil, err
	}
	remember(key, text)
	return text, arguments, nil
}

// column returns an argument of all rows as an array, and the type of its elements. If all of them are NULL, they are
// binary. It returns an error for values of different types, and of a type that the statements do not have.
func column(rows [][]any, i int) (array any, elements string, err error) {
	texts, numbers, binary := make([]*string, len(rows)), make([]*int64, len(rows)), make([][]byte, len(rows))
	var hasText, hasNumber, hasBinary bool
	for n, row := range rows {
		switch v := row[i].(type) {
		case nil:
		case []byte:
			binary[n], hasBinary = v, hasBinary || v != nil
		case string:
			texts[n], hasText = &v, true
		default:
			number, err := integer(v)
			if err != nil {
				return nil, "", err
			}
			numbers[n], hasNumber = &number, true
		}
	}
	switch {
	case hasText && !hasNumber && !hasBinary:
		return texts, "text", nil
	case hasNumber && !hasText && !hasBinary:
		return numbers, "bigint", nil
	case !hasText && !hasNumber:
		return binary, "bytea", nil
	default:
		return nil, "", errors.New("its values have different types")
	}
}

// integer returns an argument that is a number or a truth value.
func integer(v any) (int64, error) {
	switch r := reflect.ValueOf(v); {
	case r.CanInt():
		return r.Int(), nil
	case r.CanUint() && r.Uint() <= math.MaxInt64:
		return int64(r.Uint()), nil //nolint:gosec // checked
	case r.Kind() == reflect.Bool && r.Bool():
		return 1, nil
	case r.Kind() == reflect.Bool:
		return 0, nil
	default:
		return 0, fmt.Errorf("a value of type %T is no text, number, truth value or bytes", v)
	}
}

// Parts of statements for engine.Querier.QueryEach and engine.Executor.InsertEachLater.
const (
	beginQuery  = "WITH q AS MATERIALIZED ("
	beginValues = "VALUES ("
)

// forEach translates a statement to one that has an array of a type for each parameter.
func forEach(query string, types []string) (string, error) {
	names, arrays := make([]string, len(types)), make([]string, len(types))
	for i, t := range types {
		names[i], arrays[i] = fmt.Sprintf("p%d", i+1), fmt.Sprintf("$%d::%s[]", i+1, t)
	}
	from := " FROM unnest(" + strings.Join(arrays, ", ") + ") WITH ORDINALITY AS r (" + strings.Join(names, ", ") + ", place)"
	isQuery := strings.Contains(query, beginQuery)
	begin := beginValues
	if isQuery {
		begin = beginQuery
	}
	before, rest, ok := strings.Cut(query, begin)
	end := closing(rest)
	if !ok || end < 0 || strings.Contains(before, "?") || strings.Contains(rest[end:], "?") {
		return "", fmt.Errorf("a statement for many rows has parameters outside of %s…): %s", begin, query)
	}
	inside, after := strings.ReplaceAll(translate(rest[:end]), "$", "r.p"), translate(rest[end+1:])
	if isQuery {
		return before + begin + inside + ", r.place" + from + ")" + strings.Replace(after, "SELECT ", "SELECT q.place, ", 1), nil
	}
	return before + "SELECT " + inside + from + " ORDER BY r.place" + after, nil
}

// closing returns the index of the parenthesis that closes one before the text, or -1.
func closing(text string) int {
	open := 1
	for i := range len(text) {
		switch text[i] {
		case '(':
			open++
		case ')':
			if open--; open == 0 {
				return i
			}
		}
	}
	return -1
}
