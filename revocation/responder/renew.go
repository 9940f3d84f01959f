package responder

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/ocsp"
)

// Parts and multiples of the staleness limit. An answer is given until the knowledge is half of it newer.
const (
	renewalPasses = 16 // the kept answers are looked through every sixteenth
	renewalFirst  = 4  // an answer is due when the knowledge is a quarter newer,
	renewalSpread = 8  // and up to an eighth more, so that those signed together are not due together
	askedSteps    = 8  // that an answer was asked for is noted by the eighth
	askedRecently = 2  // who staples asks once per limit
)

// renewalRest is how much longer than they took the renewals of one shard are followed by a rest: they take a quarter of
// one processor at most.
const renewalRest = 3

// Renew signs kept answers that were asked for within twice the staleness limit anew before they are too old to be given,
// so that the next caller finds them ready, and forgets those that have ended. It does so until ctx is done, and returns
// nil. One Renew runs at a time.
func (r *Responder) Renew(ctx context.Context) error {
	ticker := time.NewTicker(r.staleness / renewalPasses)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		for n := range r.answers.shards {
			begun := time.Now()
			if r.renewShard(ctx, &r.answers.shards[n]) == 0 {
				continue
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(renewalRest * time.Since(begun)):
			}
		}
	}
}

// renewShard renews the answers of one shard that are due, and returns how many it tried to.
func (r *Responder) renewShard(ctx context.Context, s *shard) (tried int) {
	now := r.clock()
	current, known := r.knownAt(now)
	var due []renewal
	s.each(func(k *kept, from *source) (stays bool) {
		if now.Unix() >= k.nextUpdate {
			return false
		}
		recent := now.Unix()-k.asked <= int64(askedRecently*r.staleness/time.Second)
		if known && recent && (current.Sub(time.Unix(k.current, 0)) >= r.renewalAge(k.serial) || from.signer != from.issuer.delegate()) {
			due = append(due, renewal{from, k.serial, k.asked})
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

// renewalAge is how old what an answer rests on is when it is due.
func (r *Responder) renewalAge(serial pki.Serial) time.Duration {
	random := time.Duration(serial.Bytes()[pki.SerialSize-2])
	return r.staleness/renewalFirst + r.staleness/renewalSpread*random/256
}

// A renewal is of one answer that is due.
type renewal struct {
	from   *source
	serial pki.Serial
	asked  int64
}

// renew puts a new answer in the place of one, unless its status has changed; it reports whether others are worth a try.
// It takes no place in a budget: it is one of its kind, and rests.
func (r *Responder) renew(n renewal) bool {
	id := ocsp.CertID{Serial: n.serial, Raw: append([]byte(n.from.prefix), n.serial.Bytes()...)}
	d, der, refusal := r.sign(n.from.issuer, &ocsp.Request{IDs: []ocsp.CertID{id}})
	if refusal != 0 {
		return refusal != ocsp.InternalError
	}
	if d.versions[0] != 0 {
		r.answers.put(d, der, n.asked)
	}
	return true
}
