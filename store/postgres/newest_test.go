package postgres_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/brevet-pki/brevet/store/postgres"
)

// TestMayMark has databases refuse one process, one after the other. It must mark only one that was promoted without an entry.
func TestMayMark(t *testing.T) {
	const first, second, third, other = "7/00000001", "7/00000002", "7/0000000A", "8/00000002"
	type refusal struct {
		seen, now string
		marks     bool
	}
	for what, refusals := range map[string][]refusal{
		"promoted":                          {{first, second, true}, {first, second, true}, {first, third, true}},
		"promoted by mistake and given up":  {{second, first, false}, {second, third, false}},
		"older copy, then a promotion":      {{first, first, false}, {first, second, false}},
		"promoted apart":                    {{second, second, false}},
		"another database, then promotion":  {{first, other, false}, {first, second, true}},
		"promoted, and the old one is back": {{first, second, true}, {second, first, false}, {second, third, false}},
		"not known":                         {{"", second, false}, {first, second, true}},
	} {
		n := postgres.Newest{}
		n.SetEpoch("ab")
		for i, r := range refusals {
			if epoch := n.MayMark(&postgres.LostError{Seen: r.seen, Now: r.now}); (epoch == "ab") != r.marks {
				t.Errorf("%s: refusal %d gives %q, want a mark: %v", what, i, epoch, r.marks)
			}
		}
	}
	if n := (postgres.Newest{}); n.MayMark(&postgres.LostError{Seen: first, Now: second}) != "" {
		t.Error("a process that does not know the epoch marks")
	}
}

// TestEntryHasTheClusterOfItsConnection checks a connection to one database, and then has a connection to another one see an
// entry: the writer is connected to the old primary when the pool has connected to the new one.
func TestEntryHasTheClusterOfItsConnection(t *testing.T) {
	connection := cluster.Schema(t)
	openTables(t, connection, "one")
	connect := func() *pgx.Conn {
		conn, err := pgx.Connect(t.Context(), connection)
		must(t, err)
		t.Cleanup(func() { must(t, conn.Close(t.Context())) })
		return conn
	}
	n, old, now := postgres.Newest{}, connect(), connect()
	row := func(index string) [][]byte { return [][]byte{[]byte(index), []byte("digest")} }
	n.See(old, "7/00000001", row("1000"))
	err := n.Check(t.Context(), now)
	n.See(old, "7/00000001", row("1001"))
	n.See(now, "7/00000002", row("1001"))
	for i, err := range []error{err, n.Check(t.Context(), now)} {
		lost := (*postgres.LostError)(nil)
		if !errors.As(err, &lost) || lost.Seen != "7/00000001" || !strings.HasSuffix(lost.Now, "/00000001") {
			t.Errorf("check %d: %v", i, err)
		}
	}
}
