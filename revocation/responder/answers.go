package responder

import (
	"bytes"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/ocsp"
)

const (
	// maxAnswers bounds the answers that are kept. With a P-256 delegate each takes about 600 octets.
	maxAnswers = 1 << 17
	// shardCount is how many parts the kept answers have, each with a lock of its own. The last octet of a serial number,
	// which is random, says which one.
	shardCount = 256
	// evictionSample is how many answers are looked at for the one that was asked for the longest ago.
	evictionSample = 8
)

// An answer is a signed response, with what HTTP says beside it. But for asked and next it never changes. Of a hundred
// thousand answers each lies in memory that was not touched for a while: what is read to give one stands together, and
// texts that many have are shared.
type answer struct {
	prefix     string // the DER of the CertID up to the serial number; empty where the answer is not kept
	nextUpdate int64  // times are in seconds since 1970
	thisUpdate int64
	current    int64        // when the statuses were last known to be complete
	asked      atomic.Int64 // when it was last asked for, to a part of the staleness limit
	next       *answer      // another one about the same serial number; the shard's lock guards it
	outcome    Outcome
	head, tail string             // the DER: answers of one delegate share the tail, which is its certificate
	values     [valueCount]string // of header fields; the ETag and the head are one piece of memory

	serial  pki.Serial
	issuer  *issuer
	signer  *ocsp.Signer
	version uint64 // of the status
}

// The header fields that an answer has values for.
const (
	valueETag = iota
	valueExpires
	valueModified
	valueCount
)

// newAnswer is for an answer that is given once.
func newAnswer(d *decision, der []byte) *answer {
	return &answer{head: string(der), outcome: outcomeOf(d.response)}
}

// newKept is for an answer that is given to whoever asks, and was last asked for at a time in seconds since 1970.
func (c *answers) newKept(d *decision, der []byte, asked int64) *answer {
	single := d.response.Singles[0]
	a := &answer{
		prefix: c.texts.one(string(single.ID.Raw[:len(single.ID.Raw)-pki.SerialSize])), outcome: outcomeOf(d.response),
		nextUpdate: single.NextUpdate.Unix(), thisUpdate: single.ThisUpdate.Unix(), current: d.current.Unix(),
		serial: single.ID.Serial, issuer: d.issuer, signer: d.signer, version: d.versions[0],
	}
	a.asked.Store(asked)
	tag := etag(der)
	if shared := d.signer.Certificate().Raw; bytes.HasSuffix(der, shared) {
		der, a.tail = der[:len(der)-len(shared)], c.texts.one(string(shared))
	}
	piece := tag + string(der)
	a.values[valueETag], a.head = piece[:len(tag)], piece[len(tag):]
	a.values[valueExpires] = c.texts.one(single.NextUpdate.UTC().Format(http.TimeFormat))
	a.values[valueModified] = c.texts.one(single.ThisUpdate.UTC().Format(http.TimeFormat))
	return a
}

// isKept reports whether others may be given the answer too.
func (a *answer) isKept() bool { return a.prefix != "" }

// certID is what the answer is about.
func (a *answer) certID() ocsp.CertID {
	return ocsp.CertID{Serial: a.serial, Raw: append([]byte(a.prefix), a.serial.Bytes()...)}
}

// value is one of the values as http.Header has them. Nobody may write into it.
func (a *answer) value(n int) []string { return a.values[n : n+1 : n+1] }

// texts are those that many answers have, so that each is there once. They are forgotten when they are many, which costs
// copies alone.
type texts struct {
	mu  sync.Mutex
	all map[string]string
}

// maxTexts is more than what answers differ in within their lives: the seconds of a staleness limit, twice, and what each
// CA and delegate has.
const maxTexts = 1 << 14

// one returns the copy of a text that the others have.
func (t *texts) one(text string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if one, known := t.all[text]; known {
		return one
	}
	if t.all == nil || len(t.all) == maxTexts {
		t.all = map[string]string{}
	}
	t.all[text] = text
	return text
}

// answers keeps what was signed, by the DER of the CertID. It holds no answer that a change of status has overtaken:
// whoever changes a status drops the answers about it afterwards, and none is taken whose status is another one by then.
type answers struct {
	limit  int // of each shard
	shards [shardCount]shard
	texts  texts
}

type shard struct {
	mu       sync.RWMutex
	bySerial map[pki.Serial]*answer
	count    int
	signing  map[string]chan struct{} // closed when the answer about this CertID has been signed, or could not be
}

func newAnswers() *answers {
	c := &answers{limit: maxAnswers / shardCount}
	for n := range c.shards {
		c.shards[n].bySerial, c.shards[n].signing = map[pki.Serial]*answer{}, map[string]chan struct{}{}
	}
	return c
}

func (c *answers) shard(serial pki.Serial) *shard { return &c.shards[serial.Bytes()[pki.SerialSize-1]] }

// keeps reports whether answers about a certificate are kept: where the serial number has 20 octets in DER, too, as all
// have that were made since 2004.
func keeps(id ocsp.CertID) bool { return bytes.HasSuffix(id.Raw, id.Serial.Bytes()) }

// get returns the answer to a CertID that keeps says yes to, or nil.
func (c *answers) get(serial pki.Serial, id []byte) *answer {
	s := &c.shards[id[len(id)-1]] // a CertID ends with the serial number
	s.mu.RLock()
	defer s.mu.RUnlock()
	a := s.bySerial[serial]
	for a != nil && a.prefix != string(id[:len(id)-pki.SerialSize]) {
		a = a.next
	}
	return a
}

// put keeps an answer, and reports whether its status is still so. A full shard loses another answer.
func (c *answers) put(a *answer) bool {
	s := c.shard(a.serial)
	s.mu.Lock()
	defer s.mu.Unlock()
	// Apply changes the status first and then waits for this lock: it finds the answer, or the answer finds the change.
	if a.issuer.statuses.version(a.serial) != a.version {
		return false
	}
	var others *answer
	for old := s.bySerial[a.serial]; old != nil; {
		next := old.next
		if old.prefix != a.prefix {
			old.next, others = others, old
		} else {
			s.count--
		}
		old = next
	}
	a.next, s.bySerial[a.serial] = others, a
	if s.count++; s.count > c.limit {
		s.evict(a.serial)
	}
	return true
}

// evict drops the answers about one serial number: of a few, the one that was asked for the longest ago.
func (s *shard) evict(but pki.Serial) {
	var oldest *answer
	looked := 0
	for serial, a := range s.bySerial {
		if serial == but {
			continue
		}
		if oldest == nil || a.asked.Load() < oldest.asked.Load() {
			oldest = a
		}
		if looked++; looked == evictionSample {
			break
		}
	}
	if oldest != nil {
		s.drop(oldest.serial)
	}
}

// drop forgets the answers about a serial number.
func (c *answers) drop(serial pki.Serial) {
	s := c.shard(serial)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(serial)
}

func (s *shard) drop(serial pki.Serial) {
	for a := s.bySerial[serial]; a != nil; a = a.next {
		s.count--
	}
	delete(s.bySerial, serial)
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

// each calls visit for the answers of one shard, which may be dropped then: those of a serial number for which visit
// reports false for all.
func (s *shard) each(visit func(*answer) (stays bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for serial, a := range s.bySerial {
		stays := false
		for ; a != nil; a = a.next {
			stays = visit(a) || stays
		}
		if !stays {
			s.drop(serial)
		}
	}
}
