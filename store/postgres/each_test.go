package postgres

import (
	"reflect"
	"testing"
)

func TestForEach(t *testing.T) {
	types := []string{"text", "bigint"}
	const from = " FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS r (p1, p2, place)"
	for query, want := range map[string]string{
		`WITH q AS MATERIALIZED (SELECT ?1 AS a, CAST(?2 AS BIGINT) AS b) SELECT n.x, (SELECT 1) FROM q CROSS JOIN n INDEXED BY i`: "WITH q AS MATERIALIZED (SELECT r.p1 AS a, CAST(r.p2 AS BIGINT) AS b, r.place" + from + ") SELECT q.place, n.x, (SELECT 1) FROM q JOIN n",
		`INSERT INTO t (a, b) VALUES (?, (SELECT id FROM n WHERE x = ?)) ON CONFLICT DO NOTHING`: "INSERT INTO t (a, b) SELECT r.p1, (SELECT id FROM n WHERE x = r.p2)" +
			from + " ORDER BY r.place ON CONFLICT DO NOTHING",
		`INSERT INTO t (a) VALUES (?) ON CONFLICT DO UPDATE SET b = ?`: "",
		`UPDATE t SET a = ? WHERE b = ?`:                               "",
	} {
		got, err := forEach(query, types)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v, want %q", query, got, err, want)
		}
	}
}

func TestColumn(t *testing.T) {
	type state uint8
	one, two, text := int64(1), int64(2), "a"
	for _, c := range []struct {
		values   []any
		array    any
		elements string
	}{
		{[]any{nil, []byte{1}}, [][]byte{nil, {1}}, "bytea"},
		{[]any{nil, nil}, [][]byte{nil, nil}, "bytea"},
		{[]any{"a", nil}, []*string{&text, nil}, "text"},
		{[]any{true, nil, uint16(1), state(2)}, []*int64{&one, nil, &one, &two}, "bigint"},
	} {
		var rows [][]any
		for _, v := range c.values {
			rows = append(rows, []any{v})
		}
		if array, elements, err := column(rows, 0); err != nil || !reflect.DeepEqual(array, c.array) || elements != c.elements {
			t.Errorf("%v: %#v of %s, %v", c.values, array, elements, err)
		}
	}
	for _, wrong := range [][]any{{"a", []byte{1}}, {1, "a"}, {1, []byte{1}}, {uint64(1 << 63)}, {&text}, {[16]byte{}}} {
		var rows [][]any
		for _, v := range wrong {
			rows = append(rows, []any{v})
		}
		if array, elements, err := column(rows, 0); err == nil {
			t.Errorf("%v: %#v of %s, want an error", wrong, array, elements)
		}
	}
	if _, _, err := eachChecked(`INSERT INTO t (a) VALUES (?)`, [][]any{{"a"}, {"b\x00"}}); err == nil {
		t.Error("a text with U+0000 is accepted")
	}
}
