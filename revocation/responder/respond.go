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

// signTries is how many times a response is signed if its status changes during signing. After that the client gets
// tryLater.
const signTries = 4

// A decision is the content of a response that is not yet signed. It is computed from the statuses at one time.
type decision struct {
	issuer   *issuer
	signer   *ocsp.Signer
	response ocsp.Response
	versions []uint64  // versions of the statuses in response.Singles; 0 if a status is unknown
	current  time.Time // when the statuses were last known to be complete

	single  [1]ocsp.Single // storage for Singles and versions if there is one certificate, which is the usual case
	version [1]uint64
}

// times returns the times in a response about one certificate.
func (d *decision) times() times {
	single := &d.response.Singles[0]
	return times{single.NextUpdate.Unix(), single.ThisUpdate.Unix(), d.current.Unix()}
}

// signed returns the response for one client, with the signed DER.
func (d *decision) signed(der []byte) *signedResponse {
	return &signedResponse{head: der, outcome: outcomeOf(d.response)}
}

// respond returns a signed response or a refusal. Only responses without a nonce and about one issued certificate are
// cached, because the number of other possible responses is unlimited.
func (r *Responder) respond(ctx context.Context, host netip.Addr, q *ocsp.Request, into *workspace) (*signedResponse, ocsp.Refusal) {
	i, refusal := r.issuerOf(q)
	if refusal != 0 {
		return nil, refusal
	}
	if id := q.IDs[0]; len(q.IDs) == 1 && q.Nonce == nil && isCacheable(id) && i.statuses.version(id.Serial) != 0 {
		return r.cachedResponse(ctx, host, i, q, into)
	}
	return r.signUncached(ctx, host, i, q)
}

// signUncached signs a response that is not cached.
func (r *Responder) signUncached(ctx context.Context, host netip.Addr, i *issuer, q *ocsp.Request) (*signedResponse, ocsp.Refusal) {
	var d *decision
	var der []byte
	refusal := ocsp.TryLater
	r.uncachedQueue.do(ctx, host, func() { d, der, refusal = r.sign(i, q) })
	if refusal != 0 {
		return nil, refusal
	}
	return d.signed(der), 0
}

// cachedResponse returns the cached response, or signs one. Of several equal requests at the same time, only one signs.
func (r *Responder) cachedResponse(ctx context.Context, host netip.Addr, i *issuer, q *ocsp.Request, into *workspace) (*signedResponse, ocsp.Refusal) {
	id := q.IDs[0]
	for range signTries {
		if a := r.lookup(r.clock(), id.Serial, id.Raw, into); a != nil {
			return a, 0
		}
		first, done := r.cache.begin(id)
		if !first {
			select {
			case <-done: // look again, because the status may have changed
				continue
			case <-ctx.Done():
				return nil, ocsp.TryLater
			}
		}
		if a, refusal := r.signAndCache(ctx, host, i, q, into); a != nil || refusal != 0 {
			return a, refusal
		}
	}
	return nil, ocsp.TryLater
}

// signAndCache signs and caches a response for the first of several equal requests. If the status changes meanwhile, it
// returns neither a response nor a refusal.
func (r *Responder) signAndCache(ctx context.Context, host netip.Addr, i *issuer, q *ocsp.Request, into *workspace) (*signedResponse, ocsp.Refusal) {
	id := q.IDs[0]
	defer r.cache.end(id)
	if a := r.lookup(r.clock(), id.Serial, id.Raw, into); a != nil { // another request has signed it in the meantime
		return a, 0
	}
	var d *decision
	var der []byte
	refusal := ocsp.TryLater
	r.cachedQueue.do(ctx, host, func() { d, der, refusal = r.sign(i, q) })
	if refusal != 0 {
		return nil, refusal
	}
	if d.versions[0] == 0 { // the certificate expired in the meantime, and its status was removed
		return d.signed(der), 0
	}
	return r.cache.put(d, der, r.clock().Unix()), 0
}

// sign computes and signs a response. If a status changes meanwhile, it repeats both: after Apply has returned, no
// response may contain the older status.
func (r *Responder) sign(i *issuer, q *ocsp.Request) (*decision, []byte, ocsp.Refusal) {
	for range signTries {
		d, refusal := r.decide(i, q)
		if refusal != 0 {
			return nil, nil, refusal
		}
		der, err := d.signer.Sign(d.response)
		if err != nil {
			r.log.Error("signing an OCSP response failed, answering internalError", "issuer", i.id.Short(), "error", err)
			return nil, nil, ocsp.InternalError
		}
		if d.holds() {
			return d, der, 0
		}
	}
	return nil, nil, ocsp.TryLater
}

// issuerOf returns the CA of a request's certificates. A request about several CAs is unauthorized, because no delegate
// can sign for two.
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

// lookup returns a cached response that may still be sent, or nil. If the statuses are newer than the response by half
// of its validity, lookup returns nil. The response is then signed again, so that clients get no response that
// expires soon.
func (r *Responder) lookup(now time.Time, serial pki.Serial, id []byte, into *workspace) *signedResponse {
	current, known := r.knownAt(now)
	if !known {
		return nil
	}
	seconds := now.Unix()
	return r.cache.get(serial, id, func(k *cacheEntry) bool {
		if seconds >= k.nextUpdate || seconds < k.thisUpdate || current.Unix()-k.current >= r.maxLag {
			return false
		}
		// Rarely, because writing the entry slows down other processors that read it.
		if seconds-atomic.LoadInt64(&k.lastUse) > r.lastUseStep {
			atomic.StoreInt64(&k.lastUse, seconds)
		}
		return true
	}, into)
}

// knownAt returns when the statuses were last known to be complete, truncated to seconds, and at most now. It returns
// false if that time is further back than the limit. It also returns false if the time is more than a second ahead,
// because the clock was then set back.
//
// The age is measured twice, and the longer one counts. No correction of the wall clock changes the monotonic clock, but
// that clock stops while the machine sleeps.
func (r *Responder) knownAt(now time.Time) (time.Time, bool) {
	current, limit := r.CurrentAt(), r.validity
	if r.maxStaleness > 0 {
		limit = min(limit, r.maxStaleness)
	}
	age := now.Round(0).Sub(current.Round(0))
	if current.IsZero() || age < -time.Second || max(age, now.Sub(current)) > limit {
		return time.Time{}, false
	}
	if age < 0 {
		current = now
	}
	return current.Truncate(time.Second), true
}

// decide computes the content of a response from the current statuses.
func (r *Responder) decide(i *issuer, q *ocsp.Request) (*decision, ocsp.Refusal) {
	i.mu.RLock()
	signer, certificate := i.signer, i.certificate
	i.mu.RUnlock()
	now := r.clock()
	if signer == nil {
		if certificate.MaxPathLenZero {
			return nil, ocsp.TryLater // the delegate's certificate has not been issued yet
		}
		return nil, ocsp.Unauthorized
	}
	delegate := signer.Certificate()
	current, known := r.knownAt(now)
	if !known || now.Before(delegate.NotBefore) {
		return nil, ocsp.TryLater
	}
	end := current.Add(r.validity)
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
		// A revocation that was applied after current is known as of the time of the revocation.
		if single.RevokedAt.After(now) {
			single.RevokedAt = current // the clock was set back: clients must not see a revocation in the future
		} else if single.RevokedAt.After(current) {
			single.ThisUpdate = single.RevokedAt
		}
		d.response.Singles = append(d.response.Singles, single)
		d.versions = append(d.versions, status.Version)
	}
	return d, 0
}

// singleOf converts a status to OCSP. A certificate that was never issued has the zero status, which becomes unknown.
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

// holds reports whether neither the statuses nor the delegate have changed since the decision.
func (d *decision) holds() bool {
	for n, single := range d.response.Singles {
		if d.issuer.statuses.version(single.ID.Serial) != d.versions[n] {
			return false
		}
	}
	return d.issuer.delegate() == d.signer
}

// tagSize is the length of an ETag, in bytes.
const tagSize = 34

// tagOf returns the ETag of a body, which depends only on the body.
func tagOf(body []byte) (tag [tagSize]byte) {
	sum := sha256.Sum256(body)
	tag[0], tag[tagSize-1] = '"', '"'
	hex.Encode(tag[1:], sum[:(tagSize-2)/2])
	return tag
}
