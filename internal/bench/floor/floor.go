// Package floor measures how fast this machine issues certificates without any code of Brevet and without RPC. Brevet's
// own rate is compared with this rate. For each certificate, the floor does the following:
//
//   - parse a PKCS #10 request and verify its signature (RFC 2986)
//   - build a certificate (RFC 5280), sign it in an HSM and verify the signature
//   - write the rows that Brevet's store writes, in a durable transaction that many certificates share, in SQLite or
//     PostgreSQL
//
// The package imports nothing of ca, ra, store and hsm, since the comparison measures their cost. It writes what they
// write, but does not read what their guards read. It refuses a database that does not commit durably.
package floor

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"
)

// MaxGoroutines is the maximum number of goroutines that Best tries.
const MaxGoroutines = 64

const (
	maxBatch = 64 // maximum number of certificates in one transaction
	// ahead is the number of certificates that may wait to be written: as many as are made during a disk write.
	ahead = 8 * maxBatch
)

// Config configures a floor. The process must be logged in to the HSM: in PKCS#11 (v2.40 section 5.6) a login holds
// for the whole process, so the floor needs no PIN.
type Config struct {
	Directory     string // of the SQLite database; must be empty
	Postgres      string // connection string of an empty PostgreSQL database to use instead; empty for none
	Module        string // path of the PKCS#11 library
	Label, Serial string // one of them is set
	KeyLabel      string // a P-256 key pair in the HSM
	Sessions      int    // maximum number of concurrent signatures in the HSM, and at most the number of goroutines
}

// Floor issues certificates with the minimum of work. Its methods must be called by one goroutine at a time.
type Floor struct {
	hsm      *device
	journal  journal
	issuer   *x509.Certificate
	requests []request // one for each goroutine
	sessions int       // maximum
}

// Cost holds the durations of the operations for one certificate, each measured while all cores are busy. Cores that share
// caches, memory or execution units are then slower than one core alone.
type Cost struct {
	Check time.Duration // parse a request and verify its signature
	Sign  time.Duration // build a certificate, sign it in the HSM and verify the signature
	Write time.Duration // write its rows, in a transaction of 64 certificates
}

// Sum returns the duration of all operations for one certificate.
func (c Cost) Sum() time.Duration { return c.Check + c.Sign + c.Write }

// Bound returns the number of certificates per second if all cores did only these operations.
func (c Cost) Bound() float64 { return float64(runtime.GOMAXPROCS(0)) / c.Sum().Seconds() }

// Open finds the key in the HSM and creates the database.
func Open(ctx context.Context, c Config) (*Floor, error) {
	t, err := openHSM(c)
	if err != nil {
		return nil, fmt.Errorf("floor: %w", err)
	}
	f := &Floor{hsm: t, sessions: c.Sessions}
	if err := f.open(ctx, c); err != nil {
		return nil, fmt.Errorf("floor: %w", errors.Join(err, f.Close()))
	}
	return f, nil
}

func (f *Floor) open(ctx context.Context, c Config) error {
	s, err := f.hsm.session()
	if err != nil {
		return err
	}
	defer s.close()
	if f.issuer, err = selfSigned(s); err != nil {
		return err
	}
	for id := range MaxGoroutines {
		r, err := newRequest(id)
		if err != nil {
			return err
		}
		f.requests = append(f.requests, r)
	}
	if c.Postgres != "" {
		f.journal, err = openPostgres(ctx, c.Postgres, MaxGoroutines)
	} else {
		f.journal, err = openSQLite(ctx, c.Directory, MaxGoroutines)
	}
	return err
}

// Close closes the database and the PKCS#11 session.
func (f *Floor) Close() error {
	var err error
	if f.journal != nil {
		err = f.journal.close()
	}
	return errors.Join(err, f.hsm.close())
}

// Best measures with 1, 2, 4 and so on up to 64 goroutines, for d in total, and returns the number with the highest
// rate.
func (f *Floor) Best(ctx context.Context, d time.Duration) (goroutines int, err error) {
	best, tries := 0.0, 7
	for n := 1; n <= MaxGoroutines; n *= 2 {
		rate, err := f.Rate(ctx, n, d/time.Duration(tries))
		if err != nil {
			return 0, err
		}
		if rate > best {
			best, goroutines = rate, n
		}
	}
	return goroutines, nil
}

// Rate issues with 1 to 64 goroutines for d. It returns the number of durable certificates per second.
func (f *Floor) Rate(ctx context.Context, goroutines int, d time.Duration) (float64, error) {
	sessions, err := f.hsm.sessions(min(goroutines, f.sessions))
	if err != nil {
		return 0, fmt.Errorf("floor: %w", err)
	}
	defer closeSessions(sessions)
	begin := time.Now()
	timed, cancel := context.WithDeadline(ctx, begin.Add(d))
	defer cancel()
	queue, errs := make(chan row, ahead), make([]error, goroutines)
	var issuers sync.WaitGroup
	for i := range goroutines {
		issuers.Go(func() { errs[i] = f.issue(timed, f.requests[i], sessions, queue) })
	}
	go func() {
		issuers.Wait()
		close(queue)
	}()
	durable, err := run(f.journal, queue)
	took := time.Since(begin)
	if err := errors.Join(append(errs, err)...); err != nil {
		return 0, fmt.Errorf("floor: %w", err)
	}
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	return float64(durable) / took.Seconds(), nil
}

// issue makes certificates until the context ends. It does not wait until a certificate is written, like the many
// callers of a server, but it blocks while the queue is full.
func (f *Floor) issue(ctx context.Context, r request, sessions chan *session, queue chan<- row) error {
	for ctx.Err() == nil {
		key, err := r.check()
		if err != nil {
			return err
		}
		s := <-sessions
		made, err := r.certify(f.issuer, key, s)
		sessions <- s
		if err != nil {
			return err
		}
		queue <- made
	}
	return nil
}

// Cost measures the operations, for d in total. All cores are busy meanwhile: with the measured operation, or while one
// writes, with making certificates.
func (f *Floor) Cost(ctx context.Context, d time.Duration) (Cost, error) {
	c, err := f.cost(ctx, min(runtime.GOMAXPROCS(0), MaxGoroutines), d/3)
	if err != nil {
		return c, fmt.Errorf("floor: %w", err)
	}
	return c, nil
}

func (f *Floor) cost(ctx context.Context, cores int, d time.Duration) (c Cost, err error) {
	key, err := f.requests[0].check()
	if err != nil {
		return c, err
	}
	var sessions []*session
	defer func() {
		for _, s := range sessions {
			s.close()
		}
	}()
	for range cores {
		s, err := f.hsm.session()
		if err != nil {
			return c, err
		}
		sessions = append(sessions, s)
	}
	c.Check, err = each(ctx, cores, d, func(i int) error { _, err := f.requests[i].check(); return err })
	if err != nil {
		return c, err
	}
	c.Sign, err = each(ctx, cores, d, func(i int) error { _, err := f.requests[i].certify(f.issuer, key, sessions[i]); return err })
	if err != nil {
		return c, err
	}
	busy, stop := context.WithCancel(ctx)
	var others sync.WaitGroup
	errs := make([]error, cores)
	for i := 1; i < cores; i++ {
		others.Go(func() {
			for busy.Err() == nil && errs[i] == nil {
				_, errs[i] = f.requests[i].certify(f.issuer, key, sessions[i])
			}
		})
	}
	c.Write, err = f.costOfWriting(ctx, d, key, sessions[0])
	stop()
	others.Wait()
	return c, errors.Join(append(errs, err)...)
}

// costOfWriting returns the cost for one certificate of a full batch. It does not include making the rows.
func (f *Floor) costOfWriting(ctx context.Context, d time.Duration, key crypto.PublicKey, s *session) (time.Duration, error) {
	var spent time.Duration
	rows := 0
	for spent < d {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		batch := make([]row, maxBatch)
		for i := range batch {
			var err error
			if batch[i], err = f.requests[i%MaxGoroutines].certify(f.issuer, key, s); err != nil {
				return 0, err
			}
		}
		begin := time.Now()
		if err := f.journal.write(batch); err != nil {
			return 0, err
		}
		spent += time.Since(begin)
		rows += len(batch)
	}
	return spent / time.Duration(rows), nil
}

// each repeats an operation for d on each of n cores, and returns its mean duration.
func each(ctx context.Context, n int, d time.Duration, do func(core int) error) (time.Duration, error) {
	made, errs := make([]int, n), make([]error, n)
	var all sync.WaitGroup
	begin := time.Now()
	for i := range n {
		all.Go(func() {
			for made[i] == 0 || time.Since(begin) < d {
				if errs[i] = ctx.Err(); errs[i] != nil {
					return
				}
				if errs[i] = do(i); errs[i] != nil {
					return
				}
				made[i]++
			}
		})
	}
	all.Wait()
	took, total := time.Since(begin), 0
	for _, m := range made {
		total += m
	}
	if err := errors.Join(errs...); err != nil {
		return 0, err
	}
	return took * time.Duration(n) / time.Duration(total), nil
}
