// Package floor measures how fast this machine issues certificates with nothing of Brevet around the work, and without
// RPC: a PKCS #10 request is parsed and its signature checked (RFC 2986), a certificate is built (RFC 5280), signed by a
// token and its signature checked, and the rows that Brevet's store writes for it are written in a group-committed SQLite
// transaction, durably. The rate of it is what Brevet's own rate is held against.
//
// It imports nothing of ca, ra, store and hsm: their cost is what the comparison shows. It writes what they write, and
// does not read back what their guards read. It refuses to measure on a database that does not commit durably.
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

// MaxGoroutines is the most that a floor is tried with.
const MaxGoroutines = 64

const (
	maxBatch = 64 // certificates of one transaction, at most
	// ahead is how many certificates may wait to be written: as many as are made while the disk is waited for.
	ahead = 8 * maxBatch
)

// Config says what a floor is built on. The process has to be logged in to the token, as PKCS#11 has it of whole
// processes (v2.40 section 5.6), so that no PIN comes here.
type Config struct {
	Directory               string // of the database, empty
	Module                  string // path of the PKCS#11 library
	TokenLabel, TokenSerial string // one of them
	KeyLabel                string // a P-256 key pair in the token
	Sessions                int    // how many signatures may be in the token at once, at most as many as goroutines
}

// Floor issues certificates with the least that it takes. Its methods are called by one goroutine at a time.
type Floor struct {
	token    *token
	journal  *journal
	issuer   *x509.Certificate
	requests []request // one for each goroutine
	sessions int       // at most
}

// Cost is what single operations take, one at a time, for one certificate.
type Cost struct {
	Check time.Duration // parse a request, check its signature
	Sign  time.Duration // build a certificate, sign it in the token, check the signature
	Write time.Duration // its rows, in a transaction for 64 certificates
}

// Sum is what one certificate takes.
func (c Cost) Sum() time.Duration { return c.Check + c.Sign + c.Write }

// Bound is how many certificates a second all cores would issue if they did these operations and nothing else.
func (c Cost) Bound() float64 { return float64(runtime.GOMAXPROCS(0)) / c.Sum().Seconds() }

// Open finds the key and makes the database.
func Open(ctx context.Context, c Config) (*Floor, error) {
	t, err := openToken(c)
	if err != nil {
		return nil, fmt.Errorf("floor: %w", err)
	}
	f := &Floor{token: t, sessions: c.Sessions}
	if err := f.open(ctx, c.Directory); err != nil {
		return nil, fmt.Errorf("floor: %w", errors.Join(err, f.Close()))
	}
	return f, nil
}

func (f *Floor) open(ctx context.Context, directory string) error {
	s, err := f.token.session()
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
	f.journal, err = openJournal(ctx, directory, MaxGoroutines)
	return err
}

// Close closes the database, and what Open opened of the token.
func (f *Floor) Close() error {
	var err error
	if f.journal != nil {
		err = f.journal.close()
	}
	return errors.Join(err, f.token.close())
}

// Best tries 1, 2, 4 and so on up to 64 goroutines, for d in all, and returns the number that issued the most.
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

// Rate issues for d with so many goroutines, 1 to 64, and returns the certificates of a second. Only durable ones count.
func (f *Floor) Rate(ctx context.Context, goroutines int, d time.Duration) (float64, error) {
	sessions, err := f.token.sessions(min(goroutines, f.sessions))
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
	durable, err := f.journal.run(queue)
	took := time.Since(begin)
	if err := errors.Join(append(errs, err)...); err != nil {
		return 0, fmt.Errorf("floor: %w", err)
	}
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	return float64(durable) / took.Seconds(), nil
}

// issue makes one certificate after the other until the context ends. It goes on while one is written, as do the many
// callers of a server, and waits where the queue is full.
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

// Cost measures the single operations, for d in all.
func (f *Floor) Cost(ctx context.Context, d time.Duration) (Cost, error) {
	s, err := f.token.session()
	if err != nil {
		return Cost{}, fmt.Errorf("floor: %w", err)
	}
	defer s.close()
	r := f.requests[0]
	key, err := r.check()
	if err != nil {
		return Cost{}, fmt.Errorf("floor: %w", err)
	}
	var c Cost
	c.Check, err = each(ctx, d/3, func() error { _, err := r.check(); return err })
	if err != nil {
		return c, err
	}
	c.Sign, err = each(ctx, d/3, func() error { _, err := r.certify(f.issuer, key, s); return err })
	if err != nil {
		return c, err
	}
	c.Write, err = f.costOfWriting(ctx, d/3, key, s)
	return c, err
}

// costOfWriting is for one certificate of a full batch. Making the rows is not part of it.
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
				return 0, fmt.Errorf("floor: %w", err)
			}
		}
		begin := time.Now()
		if err := f.journal.write(batch); err != nil {
			return 0, fmt.Errorf("floor: %w", err)
		}
		spent += time.Since(begin)
		rows += len(batch)
	}
	return spent / time.Duration(rows), nil
}

// each repeats an operation for d, and returns what it takes once.
func each(ctx context.Context, d time.Duration, do func() error) (time.Duration, error) {
	begin, n := time.Now(), 0
	for n == 0 || time.Since(begin) < d {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if err := do(); err != nil {
			return 0, fmt.Errorf("floor: %w", err)
		}
		n++
	}
	return time.Since(begin) / time.Duration(n), nil
}
