package enroll

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestSourceLoadsNewCredentials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, log := newTestCA(t), new(testLog)
		d := openTestDirectory(t, t.TempDir(), log.logger())
		if _, err := OpenSource(d.path, d.log); !errors.Is(err, ErrNoCredential) {
			t.Fatalf("OpenSource of an empty directory: %v", err)
		}
		put := func() *Pair {
			p := ca.pairFor(t, "device/1")
			if err := errors.Join(d.install(p), d.prune()); err != nil {
				t.Fatal(err)
			}
			return p
		}
		first := put()
		s, err := OpenSource(d.path, d.log)
		if err != nil || !s.Pair().Certificate.Equal(first.Certificate) {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var changes []*Pair
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.Run(ctx)
		}()
		go s.Watch(ctx, func(p *Pair) { changes = append(changes, p) })
		time.Sleep(5 * sourcePoll)
		second := put()
		time.Sleep(2 * sourcePoll)
		synctest.Wait()
		if len(changes) != 2 || !s.Pair().Certificate.Equal(second.Certificate) {
			t.Errorf("%d changes", len(changes))
		}
		damage(t, d)
		time.Sleep(5 * sourcePoll)
		synctest.Wait()
		if !s.Pair().Certificate.Equal(second.Certificate) || strings.Count(log.String(), "stays in use") != 1 {
			t.Errorf("after damage: %s", log)
		}
		third := put()
		time.Sleep(2 * sourcePoll)
		cancel()
		<-done
		synctest.Wait()
		if len(changes) != 3 || !changes[2].Certificate.Equal(third.Certificate) {
			t.Errorf("%d changes after the repair", len(changes))
		}
	})
}

// damage makes current point to a version without files, as an incomplete copy of the directory would.
func damage(t *testing.T, d *Directory) {
	t.Helper()
	bad := filepath.Join(d.path, "gen-99")
	link := filepath.Join(d.path, "bad")
	if err := errors.Join(os.Mkdir(bad, 0o700), os.Symlink("gen-99", link), os.Rename(link, filepath.Join(d.path, currentName))); err != nil {
		t.Fatal(err)
	}
}
