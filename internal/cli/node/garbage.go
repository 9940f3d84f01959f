package node

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/brevet-pki/brevet/internal/memory"
)

// How much the heap grows before it is collected. What lives is little beside what issuing certificates takes for a
// moment, so it may be as much again and once more; but no more than this many bytes, unless more than that live,
// such as a hundred thousand OCSP answers: to look at those again and again would cost what they are kept to save.
const (
	garbageShare = 200 // per cent of what lives
	garbageMost  = 32 << 20
	garbageLeast = 100 // per cent of what lives
)

// BoundGarbage keeps the heap from growing with what lives on it, until ctx ends, and sets the memory limit that the
// cgroup asks for.
func BoundGarbage(ctx context.Context) {
	memory.SetLimit()
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

// garbagePercent is how much the heap may grow, in per cent of so many bytes that live.
func garbagePercent(live uint64) int {
	return int(max(garbageLeast, min(garbageShare, garbageMost*100/max(1, live))))
}
