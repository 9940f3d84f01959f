package responder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/ocsp"
)

// signTries is how often an answer is signed anew because a status changed meanwhile, before the client is told to
// try later.
const signTries = 4

// A decision is what an answer will say, taken from the statuses at one time.
type decision struct {
	issuer   *issuer
	signer   *ocsp.Signer
	response ocsp.Response
	versions []uint64  // of the statuses of response.Singles, 0 where not known
	current  time.Time // when the statuses were last known to be complete

	single  [1]ocsp.Single // where Singles and versions are of one certificate, as they mostly are
	version [1]uint64
}

// times are those of an answer about one certificate.
func (d *decision) times() times {
	single := &d.response.Singles[0]
	return times{single.NextUpdate.Unix(), single.ThisUpdate.Unix(), d.current.Unix()}
}

// answer is what was decided, signed, for one who asked.
func (d *decision) answer(der []byte) *answer {
	return &answer{head: der, outcome: outcomeOf(d.response)}
}

// answer returns a signed answer, or why there is none. What is said without nonce of one certificate that was issued is
// kept; of others there is no end.
func (r *Responder) answer(ctx context.Context, host netip.Addr, q *ocsp.Request, into *workspace) (*answer, ocsp.Refusal) {
	i, refusal := r.issuerOf(q)
	if refusal != 0 {
		return nil, refusal
	}
	if id := q.IDs[0]; len(q.IDs) == 1 && q.Nonce == nil && keeps(id) && i.statuses.version(id.Serial) != 0 {
		return r.keptAnswer(ctx, host, i, q, into)
	}
	return r.signOnce(ctx, host, i, q)
}

// signOnce signs an answer that is not kept.
func (r *Responder) signOnce(ctx context.Context, host netip.Addr, i *issuer, q *ocsp.Request) (*answer, ocsp.Refusal) {
	var d *decision
	var der []byte
	refusal := ocsp.TryLater
	r.once.do(ctx, host, func() { d, der, refusal = r.sign(i, q) })
	if refusal != 0 {
		return nil, refusal
	}
	return d.answer(der), 0
}

// keptAnswer returns the answer that is kept, or signs it. Of several who ask the same at a time one signs.
func (r *Responder) keptAnswer(ctx context.Context, host netip.Addr, i *issuer, q *ocsp.Request, into *workspace) (*answer, ocsp.Refusal) {
	id := q.IDs[0]
	for range signTries {
		if a := r.recall(r.clock(), id.Serial, id.Raw, into); a != nil {
			return a, 0
		}
		first, done := r.answers.begin(id)
		if !first {
			select {
			case <-done: // and look: a change may have overtaken that answer
				continue
			case <-ctx.Done():
				return nil, ocsp.TryLater
			}
		}
		if a, refusal := r.signKept(ctx, host, i, q, into); a != nil || refusal != 0 {
			return a, refusal
		}
	}
	return nil, ocsp.TryLater
}

// signKept signs an answer that is kept, for the first who asks. It returns neither answer nor refusal where a change of
// status has overtaken it.
func (r *Responder) signKept(ctx context.Context, host netip.Addr, i *issuer, q *ocsp.Request, into *workspace) (*answer, ocsp.Refusal) {
	id := q.IDs[0]
	defer r.answers.end(id)
	if a := r.recall(r.clock(), id.Serial, id.Raw, into); a != nil { // another one has just signed it
		return a, 0
	}
	var d *decision
	var der []byte
	refusal := ocsp.TryLater
	r.lasting.do(ctx, host, func() { d, der, refusal = r.sign(i, q) })
	if refusal != 0 {
		return nil, refusal
	}
	if d.versions[0] == 0 { // it expired meanwhile, and is forgotten
		return d.answer(der), 0
	}
	return r.answers.put(d, der, r.clock().Unix()), 0
}

// sign decides and signs, anew when what it rests on has changed meanwhile: a change that came while an answer was
// signed has been promised to be in every answer after it.
func (r *Responder) sign(i *issuer, q *ocsp.Request) (*decision, []byte, ocsp.Refusal) {
	for range signTries {
		d, refusal := r.decide(i, q)
		if refusal != 0 {
			return nil, nil, refusal
		}
		der, err := d.signer.Sign(d.response)
		if err != nil {
			r.log.Error("an OCSP answer cannot be signed", "issuer", i.id.Short(), "error", err)
			return nil, nil, ocsp.InternalError
		}
		if d.holds() {
			return d, der, 0
		}
	}
	return nil, nil, ocsp.TryLater
}

// issuerOf finds the one CA that a request is about. A request about several is unauthorized: no delegate can sign
// for two CAs.
func (r *Responder) issuerOf(q *ocsp.Request) (*issuer, ocsp.Refusal) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var i *issuer
	for _, id := range q.IDs {
		found := r.byHash[id.Issuer]
		if found == nil || i != nil && found != i {
			return nil, ocsp.Unauthorized
		}
		i = found
	}
	return i, 0
}

// recall returns an answer that was signed before and is still fit to be given now. It is signed anew once the knowledge
// has moved on by half the staleness limit, so that no client gets one that is about to end.
func (r *Responder) recall(now time.Time, serial pki.Serial, id []byte, into *workspace) *answer {
	current, known := r.knownAt(now)
	if !known {
		return nil
	}
	seconds := now.Unix()
	return r.answers.get(serial, id, func(k *kept) bool {
		if seconds >= k.nextUpdate || seconds < k.thisUpdate || current.Unix()-k.current >= r.freshFor {
			return false
		}
		if seconds-atomic.LoadInt64(&k.asked) > r.askedStep { // a hot answer is read by all and rarely written
			atomic.StoreInt64(&k.asked, seconds)
		}
		return true
	}, into)
}

// knownAt returns when the statuses were last known to be complete, cut to the second and not after now; and false
// if that is longer ago than the limit, or so far ahead that the clock must have been set back since.
func (r *Responder) knownAt(now time.Time) (time.Time, bool) {
	current := r.CurrentAt()
	age := now.Sub(current)
	if current.IsZero() || age > r.staleness || age < -time.Second {
		return time.Time{}, false
	}
	if age < 0 {
		current = now
	}
	return current.Truncate(time.Second), true
}

// decide says what is true of the certificates now.
func (r *Responder) decide(i *issuer, q *ocsp.Request) (*decision, ocsp.Refusal) {
	i.mu.RLock()
	signer, certificate := i.signer, i.certificate
	i.mu.RUnlock()
	now := r.clock()
	if signer == nil {
		if certificate.MaxPathLenZero {
			return nil, ocsp.TryLater // its delegate is on its way
		}
		return nil, ocsp.Unauthorized
	}
	delegate := signer.Certificate()
	current, known := r.knownAt(now)
	if !known || now.Before(delegate.NotBefore) {
		return nil, ocsp.TryLater
	}
	end := current.Add(r.staleness)
	if delegate.NotAfter.Before(end) {
		end = delegate.NotAfter
	}
	if !end.After(now) {
		return nil, ocsp.TryLater
	}
	d := &decision{issuer: i, signer: signer, current: current}
	d.response.Singles, d.versions = d.single[:0], d.version[:0]
	d.response.ProducedAt, d.response.Nonce = now.Truncate(time.Second), q.Nonce
	for _, id := range q.IDs {
		status, issued := i.statuses.get(id.Serial)
		single := singleOf(id, status)
		if !issued && r.extendedRevoke {
			single, d.response.ExtendedRevoke = ocsp.NotIssued(id), true
		}
		single.ThisUpdate, single.NextUpdate = current, end
		// A revocation that this process heard of since is known as of its own time.
		if single.RevokedAt.After(now) {
			single.RevokedAt = current // the clock was set back since, and nobody shall take it for yet to come
		} else if single.RevokedAt.After(current) {
			single.ThisUpdate = single.RevokedAt
		}
		d.response.Singles = append(d.response.Singles, single)
		d.versions = append(d.versions, status.Version)
	}
	return d, 0
}

// singleOf says in OCSP's terms what a status is. The zero status, of what was never issued, is unknown.
func singleOf(id ocsp.CertID, status pki.Status) ocsp.Single {
	switch status.State {
	case pki.Good:
		return ocsp.Single{ID: id, Status: ocsp.Good}
	case pki.Hold:
		return ocsp.Single{ID: id, Status: ocsp.Revoked, RevokedAt: status.RevokedAt, Reason: pki.CertificateHold}
	case pki.Revoked:
		return ocsp.Single{ID: id, Status: ocsp.Revoked, RevokedAt: status.RevokedAt, Reason: status.Reason}
	default:
		return ocsp.Single{ID: id, Status: ocsp.Unknown}
	}
}

// holds reports whether everything that the decision rests on is still so.
func (d *decision) holds() bool {
	for n, single := range d.response.Singles {
		if d.issuer.statuses.version(single.ID.Serial) != d.versions[n] {
			return false
		}
	}
	return d.issuer.delegate() == d.signer
}

// tagSize is the length of an ETag, in octets.
const tagSize = 34

// tagOf is an ETag: the same for the same octets.
func tagOf(octets []byte) (tag [tagSize]byte) {
	sum := sha256.Sum256(octets)
	tag[0], tag[tagSize-1] = '"', '"'
	hex.Encode(tag[1:], sum[:(tagSize-2)/2])
	return tag
}
