package service

import (
	"bufio"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/internal/config"
)

// An unread pipe accepts 64 KiB. Log then drops and counts lines without blocking, and logs their number later.
func TestABlockedReaderBlocksNobody(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	log := NewLog(w, config.LogText, 0)
	const lines, size = 2 * maxLines, 1000
	for n := range lines {
		log.Info(strings.Repeat("x", size), "n", n)
	}
	log.Close() // waits for one second
	if lost := log.lost.Load(); lost == 0 {
		t.Fatal("a pipe took all lines unread")
	}
	read := bufio.NewScanner(r)
	for read.Scan() {
		if strings.Contains(read.Text(), "log lines are lost") && strings.Contains(read.Text(), "level=WARN") {
			return
		}
	}
	t.Errorf("nobody is told that lines are lost: %v", read.Err())
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestAReaderThatIsGone(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	for _, to := range []io.Writer{w, failing{errors.New("planted")}} {
		log := NewLog(to, config.LogJSON, 0)
		for range 10 {
			log.Error("an unread record")
		}
		log.Close()
		if lost := log.lost.Load(); lost != 10 {
			t.Errorf("%d lines are counted as lost", lost)
		}
	}
}

func TestLevelsChange(t *testing.T) {
	t.Parallel()
	output := &strings.Builder{}
	log := NewLog(output, config.LogText, 0)
	log.Debug("one")
	var debug config.LogLevel
	if err := debug.UnmarshalText([]byte("debug")); err != nil {
		t.Fatal(err)
	}
	log.SetLevel(debug)
	log.Debug("two")
	log.Info(strings.Repeat("y", 2*maxLine))
	log.Close()
	if text := output.String(); strings.Contains(text, "one") || !strings.Contains(text, "two") || len(text) > maxLine+200 || !strings.HasSuffix(text, "y\n") {
		t.Errorf("%d bytes are written", len(text))
	}
}
