package output

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"testing"
)

func TestPairsReadAsTheyAre(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"reason", "keyCompromise", "reason=keyCompromise"},
		{"comment", "lorry stolen", "comment=lorry stolen"},
		{"comment", "gone,reason=superseded", `comment="gone,reason=superseded"`},
		{"comment", `"x"`, `comment="\"x\""`},
		{"comment", "Müller\u202e", `comment="M\u00fcller\u202e"`},
		{"a,b", "", `"a,b"=`},
		{"comment", "x  done", `comment="x  done"`},
	} {
		if got := Pair(c.name, c.value); got != c.want {
			t.Errorf("%q and %q are shown as %s, want %s", c.name, c.value, got, c.want)
		}
	}
}

func TestTables(t *testing.T) {
	var out bytes.Buffer
	p := newTable(&out)
	for _, row := range [][]string{{"A", "BB", "C"}, {"long", "b", "x\x1b[2J\u202e"}, {"x", strings.Repeat("y", 2*maxColumn), "z"}} {
		if err := p.row(row); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.close(); err != nil {
		t.Fatal(err)
	}
	pad := strings.Repeat(" ", maxColumn)
	want := "A     BB" + pad + "C\nlong  b" + pad + " x\\x1b[2J\\u202e\nx     " + strings.Repeat("y", 2*maxColumn) + "  z\n"
	if out.String() != want {
		t.Errorf("the table is\n%s, want\n%s", out.String(), want)
	}
}

// TestTableDoesNotBufferRows prints more rows than fit in memory if the table buffered all of them, or padded all to
// the widest cell.
func TestTableDoesNotBufferRows(t *testing.T) {
	counted := &counter{}
	p := newTable(counted)
	wide := strings.Repeat("s,", 100_000)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for n := range 20_000 {
		cell := fmt.Sprint(n)
		if n == 0 || n == 10_000 {
			cell = wide
		}
		if err := p.row([]string{"x", cell, "y"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.close(); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if counted.n > 4<<20 {
		t.Errorf("%d bytes were printed", counted.n)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4<<20 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
}

type counter struct{ n int }

func (c *counter) Write(p []byte) (int, error) {
	c.n += len(p)
	return len(p), nil
}
