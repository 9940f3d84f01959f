package responder

import (
	"bytes"
	"math/rand/v2"
	"sync"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/ocsp"
)

const (
	// maxCached is the maximum number of cached responses. With a P-256 delegate each takes about 500 bytes.
	maxCached = 1 << 17
	// shardCount is the number of shards, each with a lock of its own. The last byte of a serial number, which is
	// random, selects the shard.
	shardCount = 256
	// evictionSample is the number of entries compared to find one that was not used for a long time.
	evictionSample = 8
	// maxCachedSize is the maximum size of a cached response without the delegate's certificate, in bytes.
	maxCachedSize = 2 << 10
	// entrySizeStep is the unit of shard.entrySize, in bytes.
	entrySizeStep = 32
)

// A signedResponse is a response as sent to one client.
type signedResponse struct {
	head, tail []byte // the DER in two parts; tail may be empty
	outcome    Outcome
	cached     bool // it is cached here, and HTTP caches may keep it
	times
	tag [tagSize]byte
}

// times are the times of a response, in seconds since 1970.
type times struct {
	nextUpdate, thisUpdate int64
	current                int64 // when the statuses were last known to be complete
}

// A cacheEntry is a cached response without its DER and its source. It has no pointers, so the garbage collector does
// not scan a hundred thousand of them.
type cacheEntry struct {
	times
	version uint64 // of the status
	lastUse int64  // time of last use in seconds since 1970, in steps of Responder.lastUseStep; read and written atomically
	next    int    // index of the next entry about the same serial number, or noEntry
	size    int    // of its part of shard.der
	serial  pki.Serial
	status  ocsp.CertStatus
	tag     [tagSize]byte
}

// noEntry is the index of no entry.
const noEntry = -1

// A source holds what many cached responses have in common.
type source struct {
	prefix string // the DER of the CertID up to the serial number
	issuer *issuer
	signer *ocsp.Signer // the DER of the response ends with its certificate
}

// A responseCache holds signed responses by the DER of their CertID. It never holds a response with an outdated status:
// Apply changes the status and then drops the responses about it; put refuses a response if the status is no longer
// the one that was signed.
type responseCache struct {
	limit  int // maximum number of entries in each shard
	shards [shardCount]shard

	mu      sync.Mutex // guards sources
	sources map[source]*source
}

// maxSources is larger than the number of sources in use. When it is reached, the map is cleared; entries then hold
// copies of equal sources.
const maxSources = 1 << 10

// A shard holds its entries in slices without gaps. Readers get copies.
type shard struct {
	mu        sync.RWMutex
	bySerial  map[pki.Serial]int
	all       []cacheEntry
	from      []*source
	der       []byte // entrySize bytes for each entry: its DER before the delegate's certificate
	entrySize int
	signing   map[string]chan struct{} // by CertID; closed when its response has been signed, or signing has failed
}

func newResponseCache() *responseCache {
	c := &responseCache{limit: maxCached / shardCount, sources: map[source]*source{}}
	for n := range c.shards {
		c.shards[n].bySerial, c.shards[n].signing = map[pki.Serial]int{}, map[string]chan struct{}{}
	}
	return c
}

func (c *responseCache) shard(serial pki.Serial) *shard {
	return &c.shards[serial.Bytes()[pki.SerialSize-1]]
}

// isCacheable reports whether responses about a certificate are cached: its serial number must have 20 bytes in DER, as
// all serial numbers since 2004 have.
func isCacheable(id ocsp.CertID) bool { return bytes.HasSuffix(id.Raw, id.Serial.Bytes()) }

// source returns the source of a decided response, shared with other responses if it is known.
func (c *responseCache) source(d *decision) *source {
	raw := d.response.Singles[0].ID.Raw
	s := source{string(raw[:len(raw)-pki.SerialSize]), d.issuer, d.signer}
	c.mu.Lock()
	defer c.mu.Unlock()
	if known := c.sources[s]; known != nil {
		return known
	}
	if len(c.sources) == maxSources {
		clear(c.sources)
	}
	c.sources[s] = &s
	return &s
}

// get copies the cached response for a CertID into the workspace and returns it, or nil if there is none or fits returns false.
// isCacheable must be true for the CertID.
func (c *responseCache) get(serial pki.Serial, id []byte, fits func(*cacheEntry) bool, into *workspace) *signedResponse {
	s := &c.shards[id[len(id)-1]] // a CertID ends with the serial number
	s.mu.RLock()
	defer s.mu.RUnlock()
	at, found := s.bySerial[serial]
	if !found {
		return nil
	}
	for s.from[at].prefix != string(id[:len(id)-pki.SerialSize]) {
		if at = s.all[at].next; at == noEntry {
			return nil
		}
	}
	k := &s.all[at]
	if !fits(k) {
		return nil
	}
	into.answer = signedResponse{
		head: append(into.buf[:0], s.derAt(at)...), tail: s.from[at].signer.Certificate().Raw,
		outcome: outcomeOfOne(k.status), cached: true, times: k.times, tag: k.tag,
	}
	return &into.answer
}

// derAt returns the part of an entry's DER that the shard holds.
func (s *shard) derAt(at int) []byte {
	begin := at * s.entrySize
	return s.der[begin : begin+s.all[at].size]
}

// put caches a signed response and returns it, or returns nil if the status has changed since it was decided. A full
// shard evicts another entry.
func (c *responseCache) put(d *decision, der []byte, asked int64) *signedResponse {
	single, from := &d.response.Singles[0], c.source(d)
	a := d.signed(der)
	a.cached, a.times, a.tag = true, d.times(), tagOf(der)
	head, ended := bytes.CutSuffix(der, d.signer.Certificate().Raw)
	s := c.shard(single.ID.Serial)
	s.mu.Lock()
	defer s.mu.Unlock()
	// Apply changes the status before it takes this lock. So either Apply drops this response, or the change is seen
	// here.
	if d.issuer.statuses.version(single.ID.Serial) != d.versions[0] {
		return nil
	}
	if !ended || len(head) > maxCachedSize {
		return a // it is not cached: the next client's is signed again
	}
	s.dropOne(single.ID.Serial, from.prefix)
	if len(head) > s.entrySize {
		s.clear((len(head) + entrySizeStep - 1) / entrySizeStep * entrySizeStep)
	}
	if len(s.all) >= c.limit {
		s.evict()
	}
	next, found := s.bySerial[single.ID.Serial]
	if !found {
		next = noEntry
	}
	at := len(s.all)
	s.bySerial[single.ID.Serial] = at
	s.from = append(s.from, from)
	s.der = append(s.der, make([]byte, s.entrySize)...)
	copy(s.der[at*s.entrySize:], head)
	s.all = append(s.all, cacheEntry{
		times: a.times, version: d.versions[0], lastUse: asked, serial: single.ID.Serial, next: next,
		size: len(head), status: single.Status, tag: a.tag,
	})
	return a
}

// evict removes the least recently used of a few random entries.
func (s *shard) evict() {
	first := rand.N(len(s.all)) //nolint:gosec // the choice is not a secret
	oldest := first
	for n := range min(evictionSample, len(s.all)) {
		if at := (first + n) % len(s.all); s.all[at].lastUse < s.all[oldest].lastUse {
			oldest = at
		}
	}
	s.remove(oldest)
}

// clear removes all entries and sets the entry size for new ones.
func (s *shard) clear(room int) {
	clear(s.bySerial)
	clear(s.from)
	s.all, s.from, s.der, s.entrySize = s.all[:0], s.from[:0], nil, room
}

// drop removes the responses about a serial number.
func (c *responseCache) drop(serial pki.Serial) {
	s := c.shard(serial)
	s.mu.Lock()
	defer s.mu.Unlock()
	for at, found := s.bySerial[serial]; found; at, found = s.bySerial[serial] {
		s.remove(at)
	}
}

// dropOne removes the response for one CertID.
func (s *shard) dropOne(serial pki.Serial, prefix string) {
	at, found := s.bySerial[serial]
	for found && s.from[at].prefix != prefix {
		at = s.all[at].next
		found = at != noEntry
	}
	if found {
		s.remove(at)
	}
}

// remove removes the entry at an index and moves the last entry there.
func (s *shard) remove(at int) {
	s.relink(at, s.all[at].next)
	last := len(s.all) - 1
	if at != last {
		s.relink(last, at)
		s.all[at], s.from[at] = s.all[last], s.from[last]
		copy(s.der[at*s.entrySize:], s.der[last*s.entrySize:])
	}
	s.from[last] = nil
	s.all, s.from, s.der = s.all[:last], s.from[:last], s.der[:last*s.entrySize]
}

// relink makes what refers to the entry at one index refer to another index, or to noEntry.
func (s *shard) relink(at, to int) {
	serial := s.all[at].serial
	before := s.bySerial[serial]
	switch {
	case before != at:
		for s.all[before].next != at {
			before = s.all[before].next
		}
		s.all[before].next = to
	case to == noEntry:
		delete(s.bySerial, serial)
	default:
		s.bySerial[serial] = to
	}
}

// begin reports whether the caller is the first to sign the response for a CertID. The first must call end; the others
// wait for done.
func (c *responseCache) begin(id ocsp.CertID) (first bool, done <-chan struct{}) {
	s := c.shard(id.Serial)
	s.mu.Lock()
	defer s.mu.Unlock()
	if signing := s.signing[string(id.Raw)]; signing != nil {
		return false, signing
	}
	s.signing[string(id.Raw)] = make(chan struct{})
	return true, nil
}

// end wakes the callers that wait for the response to a CertID.
func (c *responseCache) end(id ocsp.CertID) {
	s := c.shard(id.Serial)
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.signing[string(id.Raw)])
	delete(s.signing, string(id.Raw))
}

// each calls visit for the entries of one shard, and removes those for which it returns false.
func (s *shard) each(visit func(*cacheEntry, *source) (stays bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for at := len(s.all) - 1; at >= 0; at-- { // remove moves only entries that were already visited
		if !visit(&s.all[at], s.from[at]) {
			s.remove(at)
		}
	}
}
