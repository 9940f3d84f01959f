package main

import (
	"bytes"
	"fmt"
	"maps"
	"runtime"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestOneFlagOneValue walks through all commands: no flag cuts its value apart at commas.
func TestOneFlagOneValue(t *testing.T) {
	flags := 0
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		visit := func(f *pflag.Flag) {
			flags++
			if kind := f.Value.Type(); kind == "stringSlice" || strings.HasPrefix(kind, "stringTo") {
				t.Errorf("%s --%s is a %s, which takes a comma for the end of a value", c.CommandPath(), f.Name, kind)
			}
		}
		c.LocalFlags().VisitAll(visit)
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	if walk(newRoot()); flags < 50 {
		t.Errorf("there are %d flags", flags)
	}
}

func TestLabels(t *testing.T) {
	var l labels
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.Var(&l, "label", "")
	args := []string{"--label", "dn=CN=pump,O=Werk 7", "--label", "site=Berlin, Halle 3", "--label", `note=say "stop"`, "--label", "empty="}
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	want := labels{"dn": "CN=pump,O=Werk 7", "site": "Berlin, Halle 3", "note": `say "stop"`, "empty": ""}
	if !maps.Equal(l, want) {
		t.Errorf("the labels are %q", l)
	}
	if got := l.String(); got != `dn="CN=pump,O=Werk 7",empty=,note="say \"stop\"",site="Berlin, Halle 3"` {
		t.Errorf("they are shown as %s", got)
	}
	for _, wrong := range []string{"site", "=x", "dn=again"} {
		if l.Set(wrong) == nil {
			t.Errorf("%q is taken", wrong)
		}
	}
}

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
		if got := pair(c.name, c.value); got != c.want {
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

// TestATableIsNotKept prints more than would fit into memory if rows were kept or padded to the widest.
func TestATableIsNotKept(t *testing.T) {
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
		t.Errorf("%d bytes are printed", counted.n)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4<<20 {
		t.Errorf("%d bytes are kept", grown)
	}
}

type counter struct{ n int }

func (c *counter) Write(p []byte) (int, error) {
	c.n += len(p)
	return len(p), nil
}
