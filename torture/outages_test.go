package torture

import (
	"sync"
	"time"
)

// outages measures how long no RPC of any client gets a response other than a temporary error.
type outages struct {
	mu      sync.Mutex
	last    time.Time
	longest time.Duration
}

// answered records a response.
func (o *outages) answered() {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if !o.last.IsZero() {
		o.longest = max(o.longest, now.Sub(o.last))
	}
	o.last = now
}

// begin starts a measurement.
func (o *outages) begin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last, o.longest = time.Now(), 0
}

// longestOutage returns the longest time without a response since begin.
func (o *outages) longestOutage() time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.longest
}
