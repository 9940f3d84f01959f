package admission

import (
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

func TestQuota(t *testing.T) {
	t.Parallel()
	q := NewQuota[string]("new accounts", 10)
	count := func(key string, at time.Time) (passed int, last error) {
		for range 30 {
			if err := q.Allow(key, at); err != nil {
				last = err
				continue
			}
			passed++
		}
		return passed, last
	}
	passed, err := count("loud", start)
	refusal, ok := pki.AsRefusal(err)
	if passed != 10 || !ok || refusal.Rule != pki.RuleRateLimited || !pki.IsTemporary(err) {
		t.Errorf("%d things are allowed at once, then: %v", passed, err)
	}
	after := pki.RetryAfter(err)
	if after < 6*time.Minute || after > 6*time.Minute+2*time.Second {
		t.Errorf("the retry delay is %s, want six minutes", after)
	}
	if passed, _ := count("quiet", start); passed != 10 {
		t.Errorf("another key is allowed %d things", passed)
	}
	if passed, _ := count("loud", start.Add(after)); passed != 1 {
		t.Errorf("after the retry delay, %d things are allowed, want 1", passed)
	}
	if passed, _ := count("loud", start.Add(after+time.Hour)); passed != 10 {
		t.Errorf("after another hour, %d things are allowed, want 10", passed)
	}
}
