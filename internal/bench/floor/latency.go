package floor

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Latency holds the median durations of the operations that a caller must wait for, each made by one goroutine while
// the machine does nothing else.
type Latency struct {
	Write  time.Duration // a durable transaction with one row of the size of a log entry
	Sign   time.Duration // a signature of the HSM
	Verify time.Duration // the verification of a P-256 signature
}

// Latency measures the operations for d in total, alternately: each of them finds the processor's caches as the
// others left them, as the operations of a request do.
func (f *Floor) Latency(ctx context.Context, d time.Duration) (Latency, error) {
	l, err := f.latency(ctx, d)
	if err != nil {
		return l, fmt.Errorf("floor: %w", err)
	}
	return l, nil
}

func (f *Floor) latency(ctx context.Context, d time.Duration) (Latency, error) {
	s, err := f.hsm.session()
	if err != nil {
		return Latency{}, err
	}
	defer s.close()
	digest := make([]byte, sha256.Size)
	var signature []byte
	var writes, signatures, verifications []time.Duration
	for begin := time.Now(); len(writes) == 0 || time.Since(begin) < d; {
		if err := ctx.Err(); err != nil {
			return Latency{}, context.Cause(ctx)
		}
		_, _ = rand.Read(digest) // never fails
		start := time.Now()
		if err := f.journal.writeEntry(); err != nil {
			return Latency{}, err
		}
		written := time.Now()
		if signature, err = s.Sign(nil, digest, nil); err != nil {
			return Latency{}, err
		}
		signed := time.Now()
		if !ecdsa.VerifyASN1(f.hsm.public, digest, signature) {
			return Latency{}, errors.New("the signature of the HSM is wrong")
		}
		verified := time.Now()
		writes = append(writes, written.Sub(start))
		signatures = append(signatures, signed.Sub(written))
		verifications = append(verifications, verified.Sub(signed))
	}
	return Latency{Write: median(writes), Sign: median(signatures), Verify: median(verifications)}, nil
}

func median(durations []time.Duration) time.Duration {
	slices.Sort(durations)
	return durations[len(durations)/2]
}
