package node

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/brevet-pki/brevet/internal/memory"
)

// The garbage collector's target, as growth of the heap over its live part. The live heap is small compared with the
// short-lived memory of issuing, so the heap may grow by garbageShare, but by at most maxGarbage bytes. With a large
// live heap, such as a hundred thousand cached OCSP responses, it may grow by minGarbageShare: frequent collections
// would cost more than the cache saves.
const (
	garbageShare    = 200 // per cent of the live heap
	maxGarbage      = 32 << 20
	minGarbageShare = 100 // per cent of the live heap
)

// BoundGarbage adjusts the garbage collector to the live heap until ctx ends, and sets the memory limit of the cgroup.
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
			// Setting it stops the world briefly, so small differences are ignored.
			if next := garbagePercent(sample[0].Value.Uint64()); next < now*9/10 || next > now*11/10 {
				debug.SetGCPercent(next)
				now = next
			}
		}
	}()
}

// garbagePercent returns the allowed growth of the heap, in per cent of a live heap of the given size in bytes.
func garbagePercent(live uint64) int {
	return int(max(minGarbageShare, min(garbageShare, maxGarbage*100/max(1, live))))
}
