package engine

import (
	"context"
	"database/sql"
	"sync"
	"time"
)

const (
	// longWAL is how many pages the WAL file may have before it is taken in and begun anew: SQLite's own measure.
	longWAL = 1000
	// pagesOfTransaction is about how many pages a transaction changes, beside those that its jobs count.
	pagesOfTransaction = 6
	// checkpointEvery is how often it is looked whether a checkpoint is due, and checkpointAfter when it is however little
	// was written.
	checkpointEvery = 20 * time.Millisecond
	checkpointAfter = time.Second
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
		if now == seen || now-seen < longWAL && time.Since(last) < checkpointAfter {
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
