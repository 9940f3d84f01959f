package admission

import (
	"math"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

var start = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func TestRateLimitsEachSource(t *testing.T) {
	t.Parallel()
	r := NewRates("rate_limits.identity", Rate{PerSecond: 2, Burst: 10})
	loud, quiet := named(t, "loud"), named(t, "quiet")
	count := func(from Source, calls int, at time.Time) (passed int) {
		for range calls {
			err := r.Allow(from, at)
			if err == nil {
				passed++
				continue
			}
			if why, ok := pki.AsRefusal(err); !ok || why.Rule != pki.RuleRateLimited || why.Hint == "" || !pki.IsTemporary(err) {
				t.Fatalf("refused with %v", err)
			}
			if after := pki.RetryAfter(err); after < 500*time.Millisecond || after > maxRetryAfter {
				t.Errorf("the retry delay is %s", after)
			}
		}
		return passed
	}
	for _, step := range []struct {
		after time.Duration
		calls int
		want  int
	}{{0, 100, 10}, {time.Second, 100, 2}, {3 * time.Second, 100, 4}, {time.Hour, 5, 5}, {time.Hour, 100, 5}} {
		if got := count(loud, step.calls, start.Add(step.after)); got != step.want {
			t.Errorf("%s after the start %d of %d calls pass, want %d", step.after, got, step.calls, step.want)
		}
	}
	if got := count(quiet, 10, start.Add(time.Hour)); got != 10 {
		t.Errorf("another source gets %d of its 10 calls", got)
	}
}

// TestBucketIsKeptUntilFull checks that a bucket is kept until it has filled, although generations are dropped.
func TestBucketIsKeptUntilFull(t *testing.T) {
	t.Parallel()
	r := NewRates("rate_limits.address", Rate{PerSecond: 1, Burst: 10})
	loud, passed := named(t, "loud"), 0
	for second := range 1000 {
		for range 3 {
			if r.Allow(loud, start.Add(time.Duration(second)*time.Second)) == nil {
				passed++
			}
		}
	}
	if passed < 1005 || passed > 1010 {
		t.Errorf("%d calls passed in 1000 seconds, want one per second and a burst of ten", passed)
	}
}

func TestBucketsAreBounded(t *testing.T) {
	t.Parallel()
	r := NewRates("rate_limits.address", Rate{PerSecond: 1, Burst: 10})
	most := 0
	for n := range 4 * maxBuckets {
		ip := netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
		if err := r.Allow(Address(net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 1))), start); err != nil {
			t.Fatal(err)
		}
		most = max(most, r.buckets.size())
	}
	if most > 2*maxBuckets || most < maxBuckets {
		t.Errorf("%d buckets were kept for %d sources, want at most %d", most, 4*maxBuckets, 2*maxBuckets)
	}
	for _, after := range []time.Duration{10 * time.Second, 20 * time.Second} {
		if err := r.Allow(named(t, "late"), start.Add(after)); err != nil {
			t.Fatal(err)
		}
	}
	if r.buckets.size() != 1 {
		t.Errorf("%d buckets are kept after all have filled, want 1", r.buckets.size())
	}
}

func TestUnlimitedRatesAreRefused(t *testing.T) {
	t.Parallel()
	for _, r := range []Rate{{0, 0}, {-1, -1}, {math.NaN(), 0}, {math.Inf(1), math.MaxInt}, {0.001, 1_000_001}} {
		if r.CheckPerSecond() == nil || r.CheckBurst() == nil {
			t.Errorf("%+v is accepted: %v, %v", r, r.CheckPerSecond(), r.CheckBurst())
		}
	}
	if r := (Rate{0.01, 1}); r.CheckPerSecond() != nil || r.CheckBurst() != nil {
		t.Errorf("%+v is refused: %v, %v", r, r.CheckPerSecond(), r.CheckBurst())
	}
}

func TestSourcesByAddress(t *testing.T) {
	t.Parallel()
	at := func(ip string, port uint16) Source {
		return Address(net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), port)))
	}
	for _, c := range []struct {
		a, b  string
		alike bool
	}{
		{"192.0.2.1", "192.0.2.1", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"192.0.2.1", "::ffff:192.0.2.1", true},
		{"2001:db8:0:1::1", "2001:db8:0:1:ffff::2", true},
		{"2001:db8:0:1::1", "2001:db8:0:2::1", false},
		{"fe80::1%eth0", "fe80::1%eth1", true},
	} {
		if a, b := at(c.a, 1), at(c.b, 2); (a == b) != c.alike {
			t.Errorf("%s and %s are one source: %v, want %v", a, b, a == b, c.alike)
		}
	}
	if s := at("2001:db8:0:1::1", 1).String(); s != "2001:db8:0:1::/64" {
		t.Errorf("the source is called %s", s)
	}
	if Address(&net.UnixAddr{}) != Address(nil) {
		t.Error("callers without an IP address are several sources")
	}
}
