package jwt

import (
	"crypto/sha256"
	"maps"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits of the TokenReviews of a source. If the source has no keys, every caller can cause them with tokens of their own
// making, and the API server would get a flood through this one.
const (
	// unverifiedPerSecond and unverifiedBurst are the maximum rate of reviews of tokens whose signature was not verified.
	unverifiedPerSecond, unverifiedBurst = 100, 200
	// refusedInterval and refusedBurst are the maximum rate of refused tokens from one network. Above it, the tokens from
	// this network are not reviewed. Networks without refused tokens have no such limit.
	refusedInterval, refusedBurst = 6 * time.Second, 10
	// refusedFor is how long a refused token is not reviewed again.
	refusedFor = 10 * time.Second
	// maxRefused is the maximum number of networks, and of tokens, that are remembered.
	maxRefused = 1024

	networkBits = 64 // of an IPv6 address; a host can choose the others itself (RFC 4291 section 2.5.4)
)

// reviewLimits limits the TokenReviews of a source.
type reviewLimits struct {
	slots chan struct{} // a value for each TokenReview in progress
	all   *rate.Limiter // nil if the signatures of all tokens are verified before

	mu       sync.Mutex
	networks map[netip.Addr]*rate.Limiter // networks with refused tokens
	tokens   map[[32]byte]time.Time       // when refused tokens may be reviewed again, by their SHA-256
}

func newReviewLimits(unverified bool) *reviewLimits {
	l := &reviewLimits{
		slots: make(chan struct{}, maxReviews), networks: map[netip.Addr]*rate.Limiter{},
		tokens: map[[32]byte]time.Time{},
	}
	if unverified {
		l.all = rate.NewLimiter(unverifiedPerSecond, unverifiedBurst)
	}
	return l
}

func networkOf(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		a = netip.PrefixFrom(a, networkBits).Masked().Addr()
	}
	return a
}

// refusedBefore reports whether the cluster has refused a token a moment ago.
func (l *reviewLimits) refusedBefore(t *token, at time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return at.Before(l.tokens[sha256.Sum256([]byte(t.raw))])
}

// begin counts a review of a token from an address. If there may be none now, it returns the time to wait.
func (l *reviewLimits) begin(from netip.Addr, at time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if network := l.networks[networkOf(from)]; network != nil && network.TokensAt(at) < 1 {
		return refusedInterval
	}
	if l.all != nil && !l.all.AllowN(at, 1) {
		return time.Second
	}
	return 0
}

// refused remembers that the cluster has refused a token from an address.
func (l *reviewLimits) refused(t *token, from netip.Addr, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	makeRoom(l.tokens, func(until time.Time) bool { return !at.Before(until) })
	l.tokens[sha256.Sum256([]byte(t.raw))] = at.Add(refusedFor)
	from = networkOf(from)
	if l.networks[from] == nil {
		makeRoom(l.networks, func(r *rate.Limiter) bool { return r.TokensAt(at) >= refusedBurst })
		l.networks[from] = rate.NewLimiter(rate.Every(refusedInterval), refusedBurst)
	}
	l.networks[from].AllowN(at, 1)
}

// makeRoom removes the values that are over from a full map. If there are none, it removes an arbitrary one.
func makeRoom[K comparable, V any](m map[K]V, over func(V) bool) {
	if len(m) < maxRefused {
		return
	}
	maps.DeleteFunc(m, func(_ K, v V) bool { return over(v) })
	for key := range m {
		if len(m) < maxRefused {
			return
		}
		delete(m, key)
	}
}
