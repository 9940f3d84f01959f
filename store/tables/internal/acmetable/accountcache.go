package acmetable

import (
	"sync"

	"github.com/brevet-pki/brevet/ra/acme"
)

// maxCached is the maximum number of accounts in an accountCache. They take about 1 KiB each.
const maxCached = 4096

// accountCache holds accounts that were read, because every signed request needs one. It is for a store
// that no other process can change. After a change has returned, no reader gets an account as it was before. The zero value is an
// empty cache. It is safe for concurrent use.
type accountCache struct {
	mu       sync.Mutex
	changes  uint64 // the number of changes that have ended
	accounts map[acme.ID]acme.Account
}

// read returns an account from the cache, or else from load. The caller must not change the account's slices.
func (c *accountCache) read(id acme.ID, load func() (acme.Account, error)) (acme.Account, error) {
	c.mu.Lock()
	a, ok := c.accounts[id]
	before := c.changes
	c.mu.Unlock()
	if ok {
		return a, nil
	}
	a, err := load()
	if err != nil {
		return a, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changes != before { // load may have read the account as it was before
		return a, nil
	}
	if c.accounts == nil {
		c.accounts = map[acme.ID]acme.Account{}
	}
	for other := range c.accounts { // in a random order
		if len(c.accounts) < maxCached {
			break
		}
		delete(c.accounts, other)
	}
	c.accounts[id] = a
	return a, nil
}

// changed forgets all accounts. It is called after each transaction that changes one, even if it has failed, because a commit
// that reports an error may have been applied.
func (c *accountCache) changed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes++
	clear(c.accounts)
}
