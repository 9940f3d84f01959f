// Package service contains the code that Brevet's long-running commands share. It has a log that never blocks or ends
// its process, whatever happens to the reader of standard error. It also handles SIGHUP.
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
	maxLines     = 4096        // maximum number of queued lines; more are dropped and counted
	maxLine      = 16 << 10    // maximum bytes of one line; the rest is cut off
	closeTimeout = time.Second // how long Close waits for queued lines
)

// Log is a logger with a goroutine that writes its records. If the reader of the records is slow, blocked or has ended,
// the Log drops records and counts them. Logging never blocks and never returns an error.
type Log struct {
	*slog.Logger
	level  slog.LevelVar
	lines  chan []byte
	closed chan struct{} // closed by Close
	ended  chan struct{} // closed by write
	lost   atomic.Uint64
	to     io.Writer
	own    *slog.Logger // logger of the Log itself, which writes to `to` without the queue
}

// NewLog returns a Log that writes to w. From then on, SIGPIPE does not end the process.
func NewLog(w io.Writer, format config.LogFormat, level config.LogLevel) *Log {
	// signal.Ignore would also affect child processes, so the signal goes to a channel that nothing reads.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	l := &Log{lines: make(chan []byte, maxLines), closed: make(chan struct{}), ended: make(chan struct{}), to: w}
	l.SetLevel(level)
	l.Logger, l.own = format.Logger(queue{l}, &l.level), format.Logger(w, slog.LevelInfo)
	go l.write()
	return l
}

// SetLevel sets the minimum level of the records that are logged.
func (l *Log) SetLevel(level config.LogLevel) { l.level.Set(slog.Level(level)) }

// Close writes the queued lines, for a second at most. Later records are lost.
func (l *Log) Close() {
	close(l.closed)
	select {
	case <-l.ended:
	case <-time.After(closeTimeout):
	}
}

// write writes lines until the Log is closed, and then the lines that remain in the queue.
func (l *Log) write() {
	defer close(l.ended)
	for {
		select {
		case line := <-l.lines:
			l.put(line)
			continue
		case <-l.closed:
		}
		for len(l.lines) > 0 { // this goroutine is the only reader of the queue
			l.put(<-l.lines)
		}
		return
	}
}

// put writes a line. If lines before it were lost, put also logs their number.
func (l *Log) put(line []byte) {
	if _, err := l.to.Write(line); err != nil {
		l.lost.Add(1)
		return
	}
	if n := l.lost.Swap(0); n > 0 {
		l.own.Warn("log lines are lost: the reader was too slow, or writing failed", "count", n)
	}
}

// queue is the writer of the Log's handler. It adds each line to the queue.
type queue struct{ log *Log }

// Write queues a line, or drops it if the queue is full. It never blocks.
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
