package bench

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

// pace slows an HSM down to that of one behind a network. The zero value does not slow it down.
type pace struct {
	rate    float64       // maximum signatures per second; zero for no limit
	latency time.Duration // delay before each signature
}

func (p *pace) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Float64Var(&p.rate, "hsm-rate", 0, "maximum signatures per second of the HSM (default: no limit)")
	renamedFlag(cmd, "token-rate", "hsm-rate")
	renamedFlag(cmd, "token-latency", "hsm-latency")
	f.DurationVar(&p.latency, "hsm-latency", 0, "how long the HSM waits before each signature, with --hsm-rate")
}

func (p pace) isZero() bool { return p == pace{} }

func (p pace) check() error {
	if p.rate < 0 || p.latency < 0 {
		return errors.New("--hsm-rate and --hsm-latency must not be negative")
	}
	if p.rate*p.latency.Seconds() > hsm.DefaultSessions {
		return fmt.Errorf("--hsm-rate %g with --hsm-latency %s takes more than %d sessions", p.rate, p.latency, hsm.DefaultSessions)
	}
	return nil
}

// signer returns a signer that signs with key at the pace, in the order of the requests.
func (p pace) signer(key crypto.Signer) crypto.Signer {
	if p.isZero() {
		return key
	}
	return &pacedSigner{Signer: key, pace: p, sessions: make(chan struct{}, hsm.DefaultSessions)}
}

// pacedSigner delays each signature until the pace allows it.
type pacedSigner struct {
	crypto.Signer
	pace     pace
	sessions chan struct{} // one element for each signature in progress

	mu   sync.Mutex
	next time.Time // the earliest start of the next signature
}

// Sign implements crypto.Signer.
func (s *pacedSigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s.sessions <- struct{}{}
	defer func() { <-s.sessions }()
	time.Sleep(time.Until(s.turn()) + s.pace.latency)
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
	if s.pace.rate > 0 {
		s.next = at.Add(time.Duration(float64(time.Second) / s.pace.rate))
	}
	return at
}
