package responder

import (
	"bytes"
	"math/rand/v2"
	"sync"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/ocsp"
)

const (
	// maxCached is the maximum number of cached responses. With a P-256 key, each takes about 500 bytes.
	maxCached = 1 << 17
	// shardCount is the number of shards. Each has its own lock. The last byte of a serial number, which is random,
	// selects the shard.
	shardCount = 256
	// evictionSample is the number of entries among which evict removes the one that was not used for the longest time.
	evictionSample = 8
	// maxCachedSize is the maximum size of a cached response in bytes, without the delegate's certificate.
	maxCachedSize = 2 << 10
	// entrySizeStep is the unit of shard.entrySize, in bytes.
	entrySizeStep = 32
)

// A signedResponse is a response for one client.
type signedResponse struct {
	head, tail []byte // the two parts of the DER; tail may be empty
	outcome    Outcome
	cached     bool // whether it is in the cache, so that HTTP caches may keep it, too
	times
	tag [tagSize]byte
}

// times are the times of a response, in seconds since 1970.
type times struct {
	nextUpdate, thisUpdate int64
	current                int64 // when the statuses were last known to be complete
}

// A cacheEntry is a cached response without its DER and its source. It contains no pointers, so that the garbage
// collector need not scan all entries.
type cacheEntry struct {
	times
	version uint64 // version of the certificate's status
	lastUse int64  // time of last use in seconds since 1970, a multiple of Responder.lastUseStep; atomic
	next    int    // index of the next entry about the same serial number, or noEntry
	size    int    // size of its part of shard.der, in bytes
	serial  pki.Serial
	status  ocsp.CertStatus
	tag     [tagSize]byte
}

// noEntry is an index that stands for no entry.
const noEntry = -1

// A source holds the data that many cached responses share.
type source struct {
	prefix string // DER of the CertID, up to the serial number
	issuer *issuer
	signer *ocsp.Signer // the DER of the response ends with the certificate of this signer
}

// A responseCache holds signed responses, keyed by the DER of their CertID. It never holds a response with an outdated
// status. Apply changes the status, and then removes the responses about it. put refuses a response if the status has
// changed since the response was decided.
type responseCache struct {
	limit  int // maximum number of entries in each shard
	shards [shardCount]shard

	mu      sync.Mutex // guards sources
	sources map[source]*source
}

// maxSources is more than the number of sources in use. When it is reached, source clears the map. After that, equal
// sources may exist several times.
const maxSources = 1 << 10

// A shard holds its entries in slices without gaps. Readers get copies of the entries.
type shard struct {
	mu        sync.RWMutex
	bySerial  map[pki.Serial]int
	all       []cacheEntry
	from      []*source
	der       []byte // entrySize bytes for each entry: its DER without the delegate's certificate
	entrySize int
	signing   map[string]chan struct{} // closed when signing has succeeded or failed; keyed by CertID
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

// isCacheable reports whether responses about a certificate are cached. For that, its serial number must have 20 bytes
// in DER, like all that Brevet issues.
func isCacheable(id ocsp.CertID) bool { return bytes.HasSuffix(id.Raw, id.Serial.Bytes()) }

// source returns the source of a response. Equal sources are shared.
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

// get copies the cached response for a CertID into the workspace and returns it. It returns nil if there is none, or if
// fits returns false for it. isCacheable must be true for the CertID.
func (c *responseCache) get(serial pki.Serial, id []byte, fits func(*cacheEntry) bool, into *workspace) *signedResponse {
	s := &c.shards[id[len(id)-1]] // the last byte of a CertID belongs to the serial number
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

// derAt returns the DER of an entry, without the delegate's certificate.
func (s *shard) derAt(at int) []byte {
	begin := at * s.entrySize
	return s.der[begin : begin+s.all[at].size]
}

// put caches a signed response and returns it. If the status has changed since the response was decided, it returns
// nil. If the shard is full, put removes another entry.
func (c *responseCache) put(d *decision, der []byte, lastUse int64) *signedResponse {
	single, from := &d.response.Singles[0], c.source(d)
	a := d.signed(der)
	a.cached, a.times, a.tag = true, d.times(), tagOf(der)
	head, ended := bytes.CutSuffix(der, d.signer.Certificate().Raw)
	s := c.shard(single.ID.Serial)
	s.mu.Lock()
	defer s.mu.Unlock()
	// Apply changes the status before it takes this lock. Therefore either the change is visible here, or Apply later
	// removes this response.
	if d.issuer.statuses.version(single.ID.Serial) != d.versions[0] {
		return nil
	}
	if !ended || len(head) > maxCachedSize {
		return a // not cached: the next request signs a new response
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
		times: a.times, version: d.versions[0], lastUse: lastUse, serial: single.ID.Serial, next: next,
		size: len(head), status: single.Status, tag: a.tag,
	})
	return a
}

// evict removes the least recently used among a few random entries.
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

// clear removes all entries. room becomes the entry size, in bytes.
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

// dropOne removes the response for the CertID that consists of prefix and serial number.
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

// remove removes the entry at an index, and moves the last entry to this index.
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

// relink finds the reference to the entry at index at, and replaces it by index to, or by noEntry.
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

// begin reports whether the caller is the first that signs a response for a CertID. The first caller must call end. The
// others wait for done.
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

// end wakes the callers that wait for done of a CertID.
func (c *responseCache) end(id ocsp.CertID) {
	s := c.shard(id.Serial)
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.signing[string(id.Raw)])
	delete(s.signing, string(id.Raw))
}

// each calls visit for the entries of one shard, and removes those for which visit returns false.
func (s *shard) each(visit func(*cacheEntry, *source) (stays bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for at := len(s.all) - 1; at >= 0; at-- { // remove moves only entries that the loop has already visited
		if !visit(&s.all[at], s.from[at]) {
			s.remove(at)
		}
	}
}
