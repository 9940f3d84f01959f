// Package service holds what Brevet's long-running commands share: a log that never stops its process, whatever becomes of
// the reader of standard error, and the reaction to SIGHUP.
package service

import (
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/brevet-pki/brevet/internal/config"
)

const (
	maxLines     = 4096        // that wait to be written; further ones are dropped and counted
	maxLine      = 16 << 10    // bytes of one line; the rest is cut off
	closeTimeout = time.Second // for lines that still wait at the end
)

// Log is a logger whose records are written by a goroutine of its own. If the reader of the records is slow, blocked or gone,
// records are dropped and counted; no caller waits and none fails.
type Log struct {
	*slog.Logger
	level  slog.LevelVar
	lines  chan []byte
	closed chan struct{} // by Close
	ended  chan struct{} // closed by write
	lost   atomic.Uint64
	to     io.Writer
	own    *slog.Logger // writes to `to` directly
}

// NewLog returns a Log that writes to w. From then on a broken pipe does not end the process (SIGPIPE).
func NewLog(w io.Writer, format config.LogFormat, level config.LogLevel) *Log {
	// Notify, and not Ignore, which the children of this process would inherit. The channel is full after one, and nobody reads it.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	l := &Log{lines: make(chan []byte, maxLines), closed: make(chan struct{}), ended: make(chan struct{}), to: w}
	l.SetLevel(level)
	l.Logger, l.own = format.Logger(queue{l}, &l.level), format.Logger(w, slog.LevelInfo)
	go l.write()
	return l
}

// SetLevel changes the least level that is logged.
func (l *Log) SetLevel(level config.LogLevel) { l.level.Set(slog.Level(level)) }

// Close writes what waits, for as long as the writer takes it within a second. Records that come later are lost.
func (l *Log) Close() {
	close(l.closed)
	select {
	case <-l.ended:
	case <-time.After(closeTimeout):
	}
}

// write writes lines until the Log is closed, and then what is left.
func (l *Log) write() {
	defer close(l.ended)
	for {
		select {
		case line := <-l.lines:
			l.put(line)
			continue
		case <-l.closed:
		}
		for len(l.lines) > 0 { // nobody else takes from it
			l.put(<-l.lines)
		}
		return
	}
}

// put writes a line. If lines were lost before it, put then logs their number.
func (l *Log) put(line []byte) {
	if _, err := l.to.Write(line); err != nil {
		l.lost.Add(1)
		return
	}
	if n := l.lost.Swap(0); n > 0 {
		l.own.Warn("log lines are lost: the reader was too slow, or writing failed", "count", n)
	}
}

// queue is the writer that the Log's handler has.
type queue struct{ log *Log }

// Write implements io.Writer. It never waits.
func (q queue) Write(p []byte) (int, error) {
	line := append([]byte(nil), p[:min(len(p), maxLine)]...)
	if len(p) > maxLine {
		line[maxLine-1] = '\n'
	}
	select {
	case q.log.lines <- line:
	default:
		q.log.lost.Add(1)
	}
	return len(p), nil
}
