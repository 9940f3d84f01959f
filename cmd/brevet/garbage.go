package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// How much the heap grows before it is collected. What lives is little beside what issuing certificates takes for a
// moment, so it may be as much again and once more; but where much lives, such as the statuses of a large fleet, which cost
// the collector nothing to look at, no more than this many octets.
const (
	garbageShare = 200 // per cent of what lives
	garbageMost  = 32 << 20
	garbageLeast = 10 // per cent of what lives: below, collecting would be all that happens
)

// boundGarbage keeps the heap from growing with what lives on it, until ctx ends.
func boundGarbage(ctx context.Context) {
	debug.SetGCPercent(garbageShare)
	go func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		for now := garbageShare; ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			metrics.Read(sample)
			// Setting it stops the world for a moment, so only where it makes a difference.
			if next := garbagePercent(sample[0].Value.Uint64()); next < now*9/10 || next > now*11/10 {
				debug.SetGCPercent(next)
				now = next
			}
		}
	}()
}

// garbagePercent is how much the heap may grow, in per cent of so many octets that live.
func garbagePercent(live uint64) int {
	return int(max(garbageLeast, min(garbageShare, garbageMost*100/max(1, live))))
}
