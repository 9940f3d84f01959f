package grpcapi

import (
	"sync"
	"testing"
	"testing/synctest"
)

// TestWorkersAreReused runs more functions at a time than workers may wait, and then others one after the other. No function
// waits for another, and no goroutine remains when the server stops.
func TestWorkersAreReused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stopping := make(chan struct{})
		w := newWorkers(stopping)
		proceed := make(chan struct{})
		var running sync.WaitGroup
		for range maxIdleWorkers + 1 {
			running.Add(1)
			w.run(func() {
				running.Done()
				<-proceed
			})
		}
		running.Wait()
		close(proceed)
		synctest.Wait()
		if n := len(w.idle); n != maxIdleWorkers {
			t.Errorf("%d workers wait, want %d", n, maxIdleWorkers)
		}
		for range 3 {
			done := make(chan struct{})
			w.run(func() { close(done) })
			<-done
			synctest.Wait()
			if n := len(w.idle); n != maxIdleWorkers {
				t.Errorf("%d workers wait after another function, want %d", n, maxIdleWorkers)
			}
		}
		close(stopping) // synctest fails if a goroutine remains
	})
}
