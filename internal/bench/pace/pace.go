// Package pace slows an HSM down for measurements.
package pace

import (
	"crypto"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/hsm"
)

// Pace slows an HSM down to that of one behind a network. The zero value does not slow it down.
type Pace struct {
	Rate    float64       // maximum signatures per second; zero for no limit
	Latency time.Duration // delay before each signature
}

// Flags adds the flags --hsm-rate and --hsm-latency, which set p.
func (p *Pace) Flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Float64Var(&p.Rate, "hsm-rate", 0, "maximum signatures per second of the HSM (default: no limit)")
	f.DurationVar(&p.Latency, "hsm-latency", 0, "how long the HSM waits before each signature, with --hsm-rate")
}

// IsZero reports whether p is the zero value.
func (p Pace) IsZero() bool { return p == Pace{} }

// Check returns an error if the pace takes more sessions than a server has by default.
func (p Pace) Check() error {
	if p.Rate < 0 || p.Latency < 0 {
		return errors.New("--hsm-rate and --hsm-latency must not be negative")
	}
	if p.Rate*p.Latency.Seconds() > hsm.DefaultSessions {
		return fmt.Errorf("--hsm-rate %g with --hsm-latency %s takes more than %d sessions", p.Rate, p.Latency, hsm.DefaultSessions)
	}
	return nil
}

// Signer returns a signer that signs with key at the pace, in the order of the requests.
func (p Pace) Signer(key crypto.Signer) crypto.Signer {
	if p.IsZero() {
		return key
	}
	return &pacedSigner{Signer: key, pace: p, sessions: make(chan struct{}, hsm.DefaultSessions)}
}

// pacedSigner delays each signature until the pace allows it.
type pacedSigner struct {
	crypto.Signer
	pace     Pace
	sessions chan struct{} // one element for each signature in progress

	mu   sync.Mutex
	next time.Time // the earliest start of the next signature
}

// Sign implements crypto.Signer.
func (s *pacedSigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s.sessions <- struct{}{}
	defer func() { <-s.sessions }()
	time.Sleep(time.Until(s.turn()) + s.pace.Latency)
	return s.Signer.Sign(random, digest, opts)
}

// turn returns the earliest start of this signature, and schedules the next one after it. Idle time is not made up for.
func (s *pacedSigner) turn() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.next.Before(now) {
		s.next = now
	}
	at := s.next
	if s.pace.Rate > 0 {
		s.next = at.Add(time.Duration(float64(time.Second) / s.pace.Rate))
	}
	return at
}
