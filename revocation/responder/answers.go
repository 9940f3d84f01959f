package responder

import (
	"sync"
	"time"

	"github.com/brevet-pki/brevet/revocation/ocsp"
)

// maxAnswers bounds the answers that are kept. With a P-256 delegate each takes about a kilobyte.
const maxAnswers = 1 << 17

// An answer is a signed response about one certificate, and what it rests on.
type answer struct {
	der        []byte
	etag       string
	outcome    Outcome
	signer     *ocsp.Signer
	version    uint64
	thisUpdate time.Time
	nextUpdate time.Time
}

// answers keeps what was signed, by the DER of the CertID. What it holds may be out of date: whoever takes an answer
// compares its version with the status after taking it.
type answers struct {
	limit int

	mu   sync.RWMutex
	byID map[string]*answer
}

func (c *answers) get(id []byte) *answer {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.byID[string(id)]
}

// put keeps an answer. A full cache loses another one, whichever the map names first.
func (c *answers) put(id []byte, a *answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, kept := c.byID[string(id)]; !kept && len(c.byID) >= c.limit {
		for other := range c.byID {
			delete(c.byID, other)
			break
		}
	}
	c.byID[string(id)] = a
}

// sweep drops answers that have passed their nextUpdate, a step at a time.
func (c *answers) sweep(now time.Time) {
	steps := 0
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, a := range c.byID {
		if !a.nextUpdate.After(now) {
			delete(c.byID, id)
		}
		if steps++; steps%stepSize == 0 {
			c.mu.Unlock()
			c.mu.Lock()
		}
	}
}
