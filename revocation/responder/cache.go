package responder

import (
	"bytes"
	"math/rand/v2"
	"sync"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/ocsp"
)

const (
	// maxAnswers bounds the answers that are kept. With a P-256 delegate each takes about 500 octets.
	maxAnswers = 1 << 17
	// shardCount is how many parts the kept answers have, each with a lock of its own. The last octet of a serial number,
	// which is random, says which one.
	shardCount = 256
	// evictionSample is how many answers are looked at for the one that was asked for the longest ago.
	evictionSample = 8
	// longestKept bounds an answer that is kept, without the delegate's certificate, in octets.
	longestKept = 2 << 10
	// roomStep is what the room for an answer is a multiple of, in octets.
	roomStep = 32
)

// An answer is a signed response, as one request gets it.
type answer struct {
	head, tail []byte // the DER, in two pieces
	outcome    Outcome
	isKept     bool // others may be given it too, and so may caches
	times
	tag [tagSize]byte
}

// times are in seconds since 1970.
type times struct {
	nextUpdate, thisUpdate int64
	current                int64 // when the statuses were last known to be complete
}

// A kept answer is one that is given to whoever asks, but for its octets and its source. It has no pointers, so a hundred
// thousand of them are nothing to look through for the collector.
type kept struct {
	times
	version uint64 // of the status
	asked   int64  // when it was last asked for, to a part of the staleness limit; read and written atomically
	next    int    // the place of another one about the same serial number, or nowhere
	size    int    // of its octets
	serial  pki.Serial
	status  ocsp.CertStatus
	tag     [tagSize]byte
}

// nowhere is no place in a shard.
const nowhere = -1

// A source is what many kept answers have.
type source struct {
	prefix string // the DER of the CertID up to the serial number
	issuer *issuer
	signer *ocsp.Signer // whose certificate ends the DER
}

// answers keeps what was signed, by the DER of the CertID. It holds no answer that a change of status has overtaken:
// whoever changes a status drops the answers about it afterwards, and none is taken whose status is another one by then.
type answers struct {
	limit  int // of each shard
	shards [shardCount]shard

	mu      sync.Mutex // guards sources
	sources map[source]*source
}

// maxSources is more than there are at a time. They are forgotten when they are many, which costs copies alone.
const maxSources = 1 << 10

// A shard has its answers in places without gaps. What a reader is given is a copy.
type shard struct {
	mu       sync.RWMutex
	bySerial map[pki.Serial]int
	all      []kept
	from     []*source
	octets   []byte // of each answer's DER what comes before the delegate's certificate, in a room of the same size
	room     int
	signing  map[string]chan struct{} // closed when the answer about this CertID has been signed, or could not be
}

func newAnswers() *answers {
	c := &answers{limit: maxAnswers / shardCount, sources: map[source]*source{}}
	for n := range c.shards {
		c.shards[n].bySerial, c.shards[n].signing = map[pki.Serial]int{}, map[string]chan struct{}{}
	}
	return c
}

func (c *answers) shard(serial pki.Serial) *shard { return &c.shards[serial.Bytes()[pki.SerialSize-1]] }

// keeps reports whether answers about a certificate are kept: where the serial number has 20 octets in DER, too, as all
// have that were made since 2004.
func keeps(id ocsp.CertID) bool { return bytes.HasSuffix(id.Raw, id.Serial.Bytes()) }

// source is what an answer has in common with others.
func (c *answers) source(d *decision) *source {
	raw := d.response.Singles[0].ID.Raw
	s := source{string(raw[:len(raw)-pki.SerialSize]), d.issuer, d.signer}
	c.mu.Lock()
	defer c.mu.Unlock()
	if one := c.sources[s]; one != nil {
		return one
	}
	if len(c.sources) == maxSources {
		clear(c.sources)
	}
	c.sources[s] = &s
	return &s
}

// get finds the answer to a CertID that keeps says yes to, and that fits, and copies it.
func (c *answers) get(serial pki.Serial, id []byte, fits func(*kept) bool, into *workspace) *answer {
	s := &c.shards[id[len(id)-1]] // a CertID ends with the serial number
	s.mu.RLock()
	defer s.mu.RUnlock()
	at, found := s.bySerial[serial]
	if !found {
		return nil
	}
	for s.from[at].prefix != string(id[:len(id)-pki.SerialSize]) {
		if at = s.all[at].next; at == nowhere {
			return nil
		}
	}
	k := &s.all[at]
	if !fits(k) {
		return nil
	}
	into.answer = answer{
		head: append(into.room[:0], s.octetsAt(at)...), tail: s.from[at].signer.Certificate().Raw,
		outcome: outcomeOfOne(k.status), isKept: true, times: k.times, tag: k.tag,
	}
	return &into.answer
}

// octetsAt is what a shard has of an answer's DER.
func (s *shard) octetsAt(at int) []byte {
	begin := at * s.room
	return s.octets[begin : begin+s.all[at].size]
}

// put keeps what was decided and signed, and returns it, or nil where its status is another one by now. A full shard loses
// another answer.
func (c *answers) put(d *decision, der []byte, asked int64) *answer {
	single, from := &d.response.Singles[0], c.source(d)
	a := d.answer(der)
	a.isKept, a.times, a.tag = true, d.times(), tagOf(der)
	head, ended := bytes.CutSuffix(der, d.signer.Certificate().Raw)
	s := c.shard(single.ID.Serial)
	s.mu.Lock()
	defer s.mu.Unlock()
	// Apply changes the status first and then waits for this lock: it finds the answer, or the answer finds the change.
	if d.issuer.statuses.version(single.ID.Serial) != d.versions[0] {
		return nil
	}
	if !ended || len(head) > longestKept {
		return a // and it is signed again for the next one
	}
	s.dropOne(single.ID.Serial, from.prefix)
	if len(head) > s.room {
		s.clear((len(head) + roomStep - 1) / roomStep * roomStep)
	}
	if len(s.all) >= c.limit {
		s.evict()
	}
	next, found := s.bySerial[single.ID.Serial]
	if !found {
		next = nowhere
	}
	at := len(s.all)
	s.bySerial[single.ID.Serial] = at
	s.from = append(s.from, from)
	s.octets = append(s.octets, make([]byte, s.room)...)
	copy(s.octets[at*s.room:], head)
	s.all = append(s.all, kept{
		times: a.times, version: d.versions[0], asked: asked, serial: single.ID.Serial, next: next,
		size: len(head), status: single.Status, tag: a.tag,
	})
	return a
}

// evict drops an answer: of a few, the one that was asked for the longest ago.
func (s *shard) evict() {
	first := rand.N(len(s.all)) //nolint:gosec // whom it meets is no secret
	oldest := first
	for n := range min(evictionSample, len(s.all)) {
		if at := (first + n) % len(s.all); s.all[at].asked < s.all[oldest].asked {
			oldest = at
		}
	}
	s.remove(oldest)
}

// clear drops everything, and makes room of another size for what comes.
func (s *shard) clear(room int) {
	clear(s.bySerial)
	clear(s.from)
	s.all, s.from, s.octets, s.room = s.all[:0], s.from[:0], nil, room
}

// drop forgets the answers about a serial number.
func (c *answers) drop(serial pki.Serial) {
	s := c.shard(serial)
	s.mu.Lock()
	defer s.mu.Unlock()
	for at, found := s.bySerial[serial]; found; at, found = s.bySerial[serial] {
		s.remove(at)
	}
}

// dropOne forgets the answer to one CertID.
func (s *shard) dropOne(serial pki.Serial, prefix string) {
	at, found := s.bySerial[serial]
	for found && s.from[at].prefix != prefix {
		at = s.all[at].next
		found = at != nowhere
	}
	if found {
		s.remove(at)
	}
}

// remove forgets the answer in one place, and moves the last one there.
func (s *shard) remove(at int) {
	s.relink(at, s.all[at].next)
	last := len(s.all) - 1
	if at != last {
		s.relink(last, at)
		s.all[at], s.from[at] = s.all[last], s.from[last]
		copy(s.octets[at*s.room:], s.octets[last*s.room:])
	}
	s.from[last] = nil
	s.all, s.from, s.octets = s.all[:last], s.from[:last], s.octets[:last*s.room]
}

// relink has what leads to one place lead to another one, or nowhere.
func (s *shard) relink(at, to int) {
	serial := s.all[at].serial
	before := s.bySerial[serial]
	switch {
	case before != at:
		for s.all[before].next != at {
			before = s.all[before].next
		}
		s.all[before].next = to
	case to == nowhere:
		delete(s.bySerial, serial)
	default:
		s.bySerial[serial] = to
	}
}

// begin reports whether the caller is the one to sign the answer to a CertID, and has to call end then. The others wait
// for done.
func (c *answers) begin(id ocsp.CertID) (first bool, done <-chan struct{}) {
	s := c.shard(id.Serial)
	s.mu.Lock()
	defer s.mu.Unlock()
	if signing := s.signing[string(id.Raw)]; signing != nil {
		return false, signing
	}
	s.signing[string(id.Raw)] = make(chan struct{})
	return true, nil
}

func (c *answers) end(id ocsp.CertID) {
	s := c.shard(id.Serial)
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.signing[string(id.Raw)])
	delete(s.signing, string(id.Raw))
}

// each calls visit for the answers of one shard, and drops those for which it reports false.
func (s *shard) each(visit func(*kept, *source) (stays bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for at := len(s.all) - 1; at >= 0; at-- { // what moves to a place comes from behind it
		if !visit(&s.all[at], s.from[at]) {
			s.remove(at)
		}
	}
}
