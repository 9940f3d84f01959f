package responder

import (
	"crypto/sha256"
	"encoding/hex"
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
	versions []uint64 // of the statuses of response.Singles, 0 where not known
	// thisUpdate and nextUpdate enclose those of the singles.
	thisUpdate, nextUpdate time.Time
}

// answer returns a signed answer, and whether it may be kept and given to others; or why there is none.
func (r *Responder) answer(q *ocsp.Request) (a *answer, shared bool, refusal ocsp.Refusal) {
	i, refusal := r.issuerOf(q)
	if refusal != 0 {
		return nil, false, refusal
	}
	alone := len(q.IDs) == 1 && q.Nonce == nil
	if alone {
		if a := r.kept(i, q.IDs[0]); a != nil {
			return a, true, 0
		}
	}
	select {
	case r.signing <- struct{}{}:
		defer func() { <-r.signing }()
	default:
		return nil, false, ocsp.TryLater
	}
	for range signTries {
		d, refusal := r.decide(i, q)
		if refusal != 0 {
			return nil, false, refusal
		}
		der, err := d.signer.Sign(d.response)
		if err != nil {
			r.log.Error("an OCSP answer cannot be signed", "issuer", i.id.Short(), "error", err)
			return nil, false, ocsp.InternalError
		}
		// A change that came while this was signed has been promised to be in every answer after it.
		if !d.holds() {
			continue
		}
		a := &answer{
			der: der, etag: etag(der), outcome: outcomeOf(d.response.Singles), signer: d.signer, version: d.versions[0],
			thisUpdate: d.thisUpdate, nextUpdate: d.nextUpdate,
		}
		// Answers about what was never issued are not kept: there is no end of such serial numbers.
		shared := alone && a.version != 0
		if shared {
			r.answers.put(q.IDs[0].Raw, a)
		}
		return a, shared, 0
	}
	return nil, false, ocsp.TryLater
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

// kept returns an answer that was signed before and is still what would be signed now. It is signed anew once the
// knowledge has moved on by half the staleness limit, so that no client gets one that is about to end.
func (r *Responder) kept(i *issuer, id ocsp.CertID) *answer {
	a := r.answers.get(id.Raw)
	if a == nil {
		return nil
	}
	now := r.clock()
	current, known := r.knownAt(now)
	if !known || !now.Before(a.nextUpdate) || current.Sub(a.thisUpdate) >= r.staleness/2 || now.Before(a.thisUpdate) {
		return nil
	}
	i.mu.RLock()
	signer := i.signer
	i.mu.RUnlock()
	// The version is read last: whatever Apply changed before this moment is seen.
	if a.signer != signer || a.version != i.statuses.version(id.Serial) {
		return nil
	}
	return a
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
	d := &decision{issuer: i, signer: signer, thisUpdate: current, nextUpdate: end}
	d.response = ocsp.Response{ProducedAt: now.Truncate(time.Second), Nonce: q.Nonce}
	for _, id := range q.IDs {
		status, _ := i.statuses.get(id.Serial)
		single := singleOf(id, status)
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
	d.issuer.mu.RLock()
	defer d.issuer.mu.RUnlock()
	return d.issuer.signer == d.signer
}

func etag(der []byte) string {
	sum := sha256.Sum256(der)
	return `"` + hex.EncodeToString(sum[:16]) + `"`
}
