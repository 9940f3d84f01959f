package sqlite

import (
	"context"
	"database/sql"
	"sync"
	"time"
)

const (
	// longWAL is the number of pages in the WAL file from which it is checkpointed and restarted: SQLite's default.
	longWAL = 1000
	// pagesOfTransaction is the approximate number of pages that a transaction changes, in addition to those of its jobs.
	pagesOfTransaction = 6
	// checkpointEvery is the interval of checks whether a checkpoint is due. After checkpointAfter a checkpoint is due
	// however little was written.
	checkpointEvery = 20 * time.Millisecond
	checkpointAfter = time.Second
)

// checkpointer copies the WAL file into the database file, on its own connection and in parallel to the writer. By
// default SQLite does that in the COMMIT that makes the file long. All waiting writers would then wait for two more
// disk syncs and for hundreds of pages.
type checkpointer struct {
	db   *sql.DB // one connection
	stop chan struct{}
	done sync.WaitGroup
}

// start starts checkpointing the WAL file of db.
func (c *checkpointer) start(db *file) {
	c.stop = make(chan struct{})
	c.done.Go(func() { c.run(db) })
}

func (c *checkpointer) run(db *file) {
	tick := time.NewTicker(checkpointEvery)
	defer tick.Stop()
	seen, last := db.written.Load(), time.Now()
	for {
		select {
		case <-c.stop:
			return
		case <-tick.C:
		}
		now := db.written.Load()
		if now == seen || now-seen < longWAL && time.Since(last) < checkpointAfter {
			continue
		}
		seen, last = now, time.Now()
		// On a disk error, the writer fails too and reports it. The next checkpoint copies the rest.
		if pages, err := c.checkpoint(); err == nil && pages >= longWAL {
			// The rest; the next transaction restarts the file unless a reader needs it.
			db.writes.Alone(func() { _, _ = c.checkpoint() })
		}
	}
}

// checkpoint copies the pages that no reader prevents, and returns the number of pages in the WAL.
func (c *checkpointer) checkpoint() (pages int, err error) {
	var busy, taken int
	err = c.db.QueryRowContext(context.Background(), `PRAGMA wal_checkpoint(PASSIVE)`).Scan(&busy, &pages, &taken)
	return pages, err
}

// close stops the checkpointer and closes its connection.
func (c *checkpointer) close() error {
	if c.stop != nil {
		close(c.stop)
		c.done.Wait()
	}
	if c.db == nil {
		return nil
	}
	return c.db.Close()
}
