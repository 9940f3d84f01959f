package sqlite

import (
	"context"
	"database/sql"
	"sync"
	"time"
)

const (
	// checkpointEvery is how often it is looked whether a checkpoint is due.
	checkpointEvery = 200 * time.Millisecond
	// checkpointAfter is how many transactions make one due at once, and checkpointAtLeast how long fewer wait for it.
	checkpointAfter   = 64
	checkpointAtLeast = 10 * time.Second
	// longWAL is how many pages the WAL file has before the writer is held up to begin it anew; SQLite's own measure.
	longWAL = 1000
)

// checkpointer takes what the WAL file has into the database file beside the writer, on a connection of its own. SQLite
// would do it in the COMMIT of whoever makes the file long: all who wait for the writer would wait for two more flushes
// of the disk, and hundreds of pages.
type checkpointer struct {
	db   *sql.DB // one connection
	stop chan struct{}
	done sync.WaitGroup
}

// start begins to look after the WAL file of db.
func (c *checkpointer) start(db *DB) {
	c.stop = make(chan struct{})
	c.done.Go(func() { c.run(db) })
}

func (c *checkpointer) run(db *DB) {
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
		if now == seen || now-seen < checkpointAfter && time.Since(last) < checkpointAtLeast {
			continue
		}
		seen, last = now, time.Now()
		// An error is one of the disk, which the writer meets too; what is not taken in now is next time.
		if pages, err := c.checkpoint(); err == nil && pages >= longWAL {
			db.turn <- struct{}{}
			_, _ = c.checkpoint() // what came meanwhile; the next transaction begins the file anew, unless somebody reads it
			<-db.turn
		}
	}
}

// checkpoint takes in what there is, as far as no reader needs what it replaces, and returns how many pages the WAL has.
func (c *checkpointer) checkpoint() (pages int, err error) {
	var busy, taken int
	err = c.db.QueryRowContext(context.Background(), `PRAGMA wal_checkpoint(PASSIVE)`).Scan(&busy, &pages, &taken)
	return pages, err
}

// close stops it, and closes its connection.
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
