package validation_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/server/acme/validation"
)

func target(n int) acme.Identifier {
	return acme.Identifier{Type: acme.DNS, Value: fmt.Sprintf("host-%d.fleet.example", n)}
}

func newPool() *validation.Pool { return validation.NewPool(slog.New(slog.DiscardHandler)) }

// never returns what must not run: the job has not waited for long.
func never(t *testing.T) func(context.Context) {
	return func(context.Context) { t.Error("a validation is late") }
}

// One account fills half of the queue at most, and another one is still served.
func TestPoolIsFairAndBounded(t *testing.T) {
	p := newPool()
	defer p.Close()
	loud, quiet := acme.NewID(), acme.NewID()
	release := make(chan struct{})
	var mu sync.Mutex
	ran := map[acme.ID]int{}
	start := func(account acme.ID, n int) error {
		job, err := p.Reserve(account, target(n))
		if err == nil {
			job.Start(func(context.Context) {
				<-release
				mu.Lock()
				defer mu.Unlock()
				ran[account]++
			}, never(t))
		}
		return err
	}
	accepted := 0
	for n := range 5000 {
		err := start(loud, n)
		if err == nil {
			accepted++
			continue
		}
		refusal, ok := pki.AsRefusal(err)
		if !ok || refusal.Rule != pki.RuleOverloaded || pki.RetryAfter(err) <= 0 || !pki.IsTemporary(err) {
			t.Fatalf("got %v, want a refusal with a delay", err)
		}
		break
	}
	if accepted < 100 || accepted > 1024 || p.Running() != 8 || p.Waiting() != accepted-8 {
		t.Errorf("%d validations were accepted, %d run and %d wait", accepted, p.Running(), p.Waiting())
	}
	if err := start(quiet, 100_000); err != nil {
		t.Errorf("the validation of another account is refused: %v", err)
	}
	close(release)
	deadline := time.Now().Add(10 * time.Second)
	for p.Running()+p.Waiting() > 0 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	mu.Lock()
	defer mu.Unlock()
	if ran[loud] != accepted || ran[quiet] != 1 {
		t.Errorf("%d and %d validations ran", ran[loud], ran[quiet])
	}
}

func TestPoolLimitsOneTarget(t *testing.T) {
	p := newPool()
	defer p.Close()
	var jobs []*validation.Job
	for {
		job, err := p.Reserve(acme.NewID(), target(1))
		if err != nil {
			break
		}
		jobs = append(jobs, job)
	}
	if len(jobs) != 8 {
		t.Errorf("%d validations of one identifier have a place", len(jobs))
	}
	if _, err := p.Reserve(acme.NewID(), target(2)); err != nil {
		t.Errorf("another identifier is refused: %v", err)
	}
	jobs[0].Drop()
	if _, err := p.Reserve(acme.NewID(), target(1)); err != nil {
		t.Errorf("a place that was given back is refused: %v", err)
	}
}

// A waiting job that is dropped or started later does not lose its slot.
func TestPoolWaitingJobs(t *testing.T) {
	p := newPool()
	defer p.Close()
	account := acme.NewID()
	var jobs []*validation.Job
	for n := range 10 {
		job, err := p.Reserve(account, target(n))
		if err != nil {
			t.Fatal(err)
		}
		jobs = append(jobs, job)
	}
	jobs[9].Drop() // waits
	jobs[0].Drop() // has a slot, which jobs[8] gets before it is started
	ran := make(chan struct{})
	jobs[8].Start(func(context.Context) { close(ran) }, never(t))
	select {
	case <-ran:
	case <-time.After(10 * time.Second):
		t.Fatal("the waiting job never ran")
	}
	for _, job := range jobs[1:8] {
		job.Drop()
	}
	if p.Running()+p.Waiting() > 1 {
		t.Errorf("%d jobs run and %d wait", p.Running(), p.Waiting())
	}
}

func TestPoolCloses(t *testing.T) {
	p := newPool()
	job, err := p.Reserve(acme.NewID(), target(1))
	if err != nil {
		t.Fatal(err)
	}
	job.Start(func(ctx context.Context) { <-ctx.Done() }, never(t))
	p.Close()
	if _, err := p.Reserve(acme.NewID(), target(2)); err == nil {
		t.Error("a closed pool takes a job")
	}
}

func TestPoolLimitsOneTargetOfAnAccount(t *testing.T) {
	p := newPool()
	defer p.Close()
	account := acme.NewID()
	first, err := p.Reserve(account, target(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Reserve(account, target(1)); err != nil {
		t.Errorf("a second validation of an identifier is refused: %v", err)
	}
	if _, err := p.Reserve(account, target(1)); err == nil {
		t.Error("an account validates an identifier three times at once")
	}
	if _, err := p.Reserve(account, target(2)); err != nil {
		t.Errorf("another identifier is refused: %v", err)
	}
	if _, err := p.Reserve(acme.NewID(), target(1)); err != nil {
		t.Errorf("another account is refused: %v", err)
	}
	first.Drop()
	if _, err := p.Reserve(account, target(1)); err != nil {
		t.Errorf("a place that was given back is refused: %v", err)
	}
}

// A panic ends neither the process nor the pool, and frees the slot.
func TestPoolSurvivesPanics(t *testing.T) {
	p := newPool()
	defer p.Close()
	for n := range 100 {
		job, err := p.Reserve(acme.NewID(), target(n))
		if err != nil {
			t.Fatal(err)
		}
		job.Start(func(context.Context) { panic("a bug") }, never(t))
	}
	deadline := time.Now().Add(10 * time.Second)
	for p.Running()+p.Waiting() > 0 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if p.Running()+p.Waiting() > 0 {
		t.Errorf("%d validations run and %d wait after they have panicked", p.Running(), p.Waiting())
	}
}

// TestPoolBoundsTheWait checks that no validation begins after a minute in the queue, and that an account whose validations wait
// for long gets no further places, until they wait shorter.
func TestPoolBoundsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool()
		defer p.Close()
		account := acme.NewID()
		var mu sync.Mutex
		longest, late := time.Duration(0), 0
		reserve := func(n int) error {
			job, err := p.Reserve(account, target(n))
			if err == nil {
				began := time.Now()
				job.Start(func(context.Context) {
					mu.Lock()
					longest = max(longest, time.Since(began))
					mu.Unlock()
					time.Sleep(10 * time.Second)
				}, func(context.Context) {
					mu.Lock()
					defer mu.Unlock()
					late++
				})
			}
			return err
		}
		for n := range 100 { // eight at a time: the last would begin after two minutes
			if err := reserve(n); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(25 * time.Second)
		if err := reserve(1000); pki.RetryAfter(err) <= 0 {
			t.Errorf("an account whose validations wait for 20 seconds gets a place: %v", err)
		}
		time.Sleep(2 * time.Minute)
		if longest >= time.Minute || late != 100-6*8 {
			t.Errorf("a validation began after %s, and %d were late", longest, late)
		}
		if err := reserve(1001); err != nil {
			t.Errorf("an account without waiting validations gets no place: %v", err)
		}
	})
}
