package enroll

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestReloadCommand(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	cases := map[string]struct {
		argv []string
		log  string
		runs string
	}{
		"succeeds":  {[]string{"sh", "-c", `echo "$1" >> "$0"`, out, "a b"}, "", "a b\n"},
		"fails":     {[]string{"sh", "-c", `echo x >> "$0"; echo broken >&2; exit 3`, out}, "broken", "x\nx\n"},
		"not there": {[]string{"/no/such/command"}, "no such file", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_ = os.Remove(out)
			inBubble(t, func(b *bench) { b.config.Reload = c.argv }, func(b *bench) {
				if err := b.agent.Ensure(b.Context()); err != nil {
					t.Fatal(err)
				}
				b.restart() // a command that did not succeed runs again, and one that did does not
				b.run()
				if err := b.stop(); err != nil || b.agent.Pair() == nil {
					t.Fatal(err)
				}
				if got, _ := os.ReadFile(out); string(got) != c.runs {
					t.Errorf("the command wrote %q", got)
				}
				if log := b.log.String(); !strings.Contains(log, c.log) || strings.Contains(log, "reload") != (c.log != "") {
					t.Errorf("log: %s", log)
				}
			})
		})
	}
}

// A reload command that hangs is ended when the next renewal is due.
func TestReloadCommandHangs(t *testing.T) {
	b := newBench(t, func(b *bench) { b.ca.lifetime = 3 * time.Second; b.config.Reload = []string{"sleep", "600"} })
	if err := b.agent.Ensure(t.Context()); err != nil || b.agent.Pair() == nil {
		t.Fatal(err)
	}
	if log := b.log.String(); !strings.Contains(log, "deadline") {
		t.Errorf("log: %s", log)
	}
}
