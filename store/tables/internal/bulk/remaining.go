package bulk

import "sync"

// Remaining holds the members of a bulk revocation whose records are not changed yet.
type Remaining struct {
	Progress int64   // the progress of the bulk revocation when they were read
	Rows     []int64 // row IDs in order
	Expired  int     // the number of them that had expired when it was created
}

// Cache caches the remaining members of open bulk revocations. If a bulk revocation is not in it, they are read again. It is
// safe for concurrent use.
type Cache struct {
	mu        sync.Mutex
	remaining map[int64]Remaining
}

// Put caches the remaining members of the bulk revocation with an ID.
func (c *Cache) Put(id int64, r Remaining) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.remaining == nil {
		c.remaining = map[int64]Remaining{}
	}
	c.remaining[id] = r
}

// Take removes and returns the remaining members of a bulk revocation, if they are cached.
func (c *Cache) Take(id int64) (Remaining, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ok := c.remaining[id]
	delete(c.remaining, id)
	return r, ok
}
