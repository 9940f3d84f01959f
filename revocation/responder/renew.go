package responder

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/ocsp"
)

// Divisors and multiples of Config.Validity. When the statuses are newer than a cached response by half of the
// validity, the response is no longer sent.
const (
	renewalPasses = 16 // divisor: interval between two passes over the cache
	renewalFirst  = 4  // divisor: how much newer the statuses are than a response when it is due
	renewalSpread = 8  // divisor: maximum random addition, so that not all responses are due together
	lastUseSteps  = 8  // divisor: resolution of the time of last use
	renewalWindow = 2  // multiple: responses are renewed if used within this time; servers that staple request one per limit
)

// renewalPause times the duration of the renewals in one shard is the pause after them. Renewing therefore uses at most
// a quarter of one processor.
const renewalPause = 3

// Renew signs cached responses again before they are too old, so that no client waits for a signature. It renews the
// responses that were used within twice the validity, and removes expired ones. It runs until ctx ends and
// returns nil. Only one Renew may run at a time.
func (r *Responder) Renew(ctx context.Context) error {
	ticker := time.NewTicker(r.validity / renewalPasses)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		for n := range r.cache.shards {
			begun := time.Now()
			if r.renewShard(ctx, &r.cache.shards[n]) == 0 {
				continue
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(renewalPause * time.Since(begun)):
			}
		}
	}
}

// renewShard renews the due responses of one shard. It returns how many it tried to renew.
func (r *Responder) renewShard(ctx context.Context, s *shard) (tried int) {
	now := r.clock()
	current, known := r.knownAt(now)
	var due []renewal
	s.each(func(k *cacheEntry, from *source) (stays bool) {
		if now.Unix() >= k.nextUpdate {
			return false
		}
		recent := now.Unix()-k.lastUse <= int64(renewalWindow*r.validity/time.Second)
		if known && recent && (current.Sub(time.Unix(k.current, 0)) >= r.renewalAge(k.serial) || from.signer != from.issuer.delegate()) {
			due = append(due, renewal{from, k.serial, k.lastUse})
		}
		return true
	})
	for _, d := range due {
		if ctx.Err() != nil || !r.renew(d) {
			return tried
		}
		tried++
	}
	return tried
}

// renewalAge returns how much newer the statuses are than a response when the response is due.
func (r *Responder) renewalAge(serial pki.Serial) time.Duration {
	random := time.Duration(serial.Bytes()[pki.SerialSize-2])
	return r.validity/renewalFirst + r.validity/renewalSpread*random/256
}

// A renewal identifies a cached response that is due.
type renewal struct {
	from    *source
	serial  pki.Serial
	lastUse int64
}

// renew replaces a cached response by a new one, unless the certificate's status has changed since it was signed. If
// signing fails, renew returns false, so that the caller does not try the others. It does not wait in a signing queue:
// only one renewal runs at a time, and Renew pauses between renewals.
func (r *Responder) renew(n renewal) bool {
	id := ocsp.CertID{Serial: n.serial, Raw: append([]byte(n.from.prefix), n.serial.Bytes()...)}
	d, der, refusal := r.sign(n.from.issuer, &ocsp.Request{IDs: []ocsp.CertID{id}})
	if refusal != 0 {
		return refusal != ocsp.InternalError
	}
	if d.versions[0] != 0 {
		r.cache.put(d, der, n.lastUse)
	}
	return true
}
