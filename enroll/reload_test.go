package enroll

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestReloadCommandRunsAfterEachCredential(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	cases := map[string]struct {
		argv []string
		log  string
		runs string
	}{
		"succeeds":  {[]string{"sh", "-c", `echo "$1" >> "$0"`, out, "a b"}, "", "a b\n"},
		"fails":     {[]string{"sh", "-c", `echo x >> "$0"; exit 3`, out}, "exit status 3", "x\nx\n"},
		"not there": {[]string{"/no/such/command"}, "no such file", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_ = os.Remove(out)
			inSynctest(t, func(b *harness) { b.config.Reload = c.argv }, func(b *harness) {
				if err := b.agent.Ensure(b.Context()); err != nil {
					t.Fatal(err)
				}
				b.restart() // a failed command runs again, and a successful one does not
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

// A failed reload command is retried with growing delays until it succeeds, also after restarts and renewals. The
// status contains the failure.
func TestFailedReloadCommandIsRetried(t *testing.T) {
	dir := t.TempDir()
	runs, good := filepath.Join(dir, "runs"), filepath.Join(dir, "good")
	counted := func() int {
		data, _ := os.ReadFile(runs)
		return strings.Count(string(data), "x")
	}
	configure := func(b *harness) { b.config.Reload = []string{"sh", "-c", `echo x >> "$0"; test -e "$1"`, runs, good} }
	inSynctest(t, configure, func(b *harness) {
		b.run()
		b.advance(30 * time.Minute)
		if n := counted(); n < 4 || n > 15 { // the delay grows to 3 to 6 minutes
			t.Errorf("the command ran %d times in half an hour", n)
		}
		s := b.status()
		if f := s.ReloadFailure; f == nil || f.Tries != counted() || !strings.Contains(f.Error, "exit status 1") || !s.ReloadAt.After(time.Now()) {
			t.Errorf("status %+v", s)
		}
		if s.Failure != nil || s.Reloaded != "" || len(b.pairs) != 1 {
			t.Errorf("the reload failure changed the renewal's status: %+v", s)
		}
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
		before := counted()
		b.restart()
		b.run()
		if n := counted(); n != before+1 || b.status().ReloadFailure.Tries != n {
			t.Errorf("after a restart the command ran %d more times", n-before)
		}
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
		command := b.config.Reload
		b.config.Reload = nil // an operator removes the command, and later restores it
		b.restart()
		b.run()
		if s = b.status(); s.ReloadFailure != nil || !s.ReloadAt.IsZero() {
			t.Errorf("without a command: %+v", s)
		}
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
		b.config.Reload = command
		b.restart()
		b.run()
		b.advance(25 * time.Minute) // in this time the agent renews, and the command fails for the new certificate
		if err := os.WriteFile(good, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		b.advance(7 * time.Minute)
		after := counted()
		if s = b.status(); s.ReloadFailure != nil || !s.ReloadAt.IsZero() || s.Reloaded != b.agent.Pair().Serial() {
			t.Errorf("after it succeeded: %+v", s)
		}
		b.advance(4 * time.Minute)
		if err := b.stop(); err != nil || counted() != after {
			t.Errorf("%v; after it succeeded the command ran %d more times", err, counted()-after)
		}
	})
}

// If the agent stops and kills the reload command, the next process runs the command again.
func TestReloadCommandRunsAfterRestart(t *testing.T) {
	started := filepath.Join(t.TempDir(), "started")
	b := newHarness(t, func(b *harness) {
		b.config.Reload = []string{"sh", "-c", `test -e "$0" || { touch "$0"; sleep 600; }`, started}
	})
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		defer stop()
		for _, err := os.Stat(started); err != nil && t.Context().Err() == nil; _, err = os.Stat(started) {
			time.Sleep(time.Millisecond)
		}
	}()
	if err := b.agent.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if s := b.status(); s.Reloaded != "" || s.ReloadFailure != nil {
		t.Errorf("status %+v", s)
	}
	b.restart()
	b.agent.reload(t.Context())
	if s := b.status(); s.Reloaded != b.agent.Pair().Serial() {
		t.Errorf("status %+v", s)
	}
}

// A daemon that the reload command started keeps the output open. The command can exit nevertheless, and the daemon can
// write.
func TestReloadCommandMayStartDaemon(t *testing.T) {
	dir := t.TempDir()
	output, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	proceed := filepath.Join(dir, "proceed")
	b := newHarness(t, func(b *harness) {
		b.config.ReloadOutput = writer
		b.config.Reload = []string{"sh", "-c", `(while ! test -e "$0"; do sleep 0.01; done; echo the daemon lives) & exit 0`, proceed}
	})
	if err := b.agent.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := b.status(); s.Reloaded != b.agent.Pair().Serial() || s.ReloadFailure != nil {
		t.Errorf("status %+v", s)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(proceed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(output); err != nil || string(got) != "the daemon lives\n" {
		t.Errorf("the daemon wrote %q, %v", got, err)
	}
}

// If a reload command runs too long, the agent kills it and its children.
func TestHangingReloadCommandIsKilled(t *testing.T) {
	output, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	b := newHarness(t, func(b *harness) {
		b.ca.lifetime = 3 * time.Second
		b.config.Reload, b.config.ReloadOutput = []string{"sh", "-c", "sleep 600 & sleep 600"}, writer
	})
	if err := b.agent.Ensure(t.Context()); err != nil || b.agent.Pair() == nil {
		t.Fatal(err)
	}
	if f := b.status().ReloadFailure; f == nil || !strings.Contains(f.Error, "did not exit within 1s") {
		t.Errorf("reload failure: %+v", f)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(output); err != nil { // returns after the last child has exited
		t.Error(err)
	}
}
