package audit

import (
	"sync"

	"github.com/brevet-pki/brevet/pki"
)

// maxRecent is the maximum size of each of the two sets in recent.
const maxRecent = 10_000

// recent holds the serial numbers that were added last: at least the newest maxRecent, and at most twice as many. It is
// safe for concurrent use.
type recent struct {
	mu             sync.Mutex
	newest, before map[pki.Serial]bool
}

// add adds the serial number of a certificate, and returns false if recent holds it already.
func (r *recent) add(s pki.Serial) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.newest[s] || r.before[s] {
		return false
	}
	if r.newest == nil || len(r.newest) == maxRecent {
		r.newest, r.before = map[pki.Serial]bool{}, r.newest
	}
	r.newest[s] = true
	return true
}
