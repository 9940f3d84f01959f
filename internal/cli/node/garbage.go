package node

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/brevet-pki/brevet/internal/memory"
)

// Limits on the growth of the heap between two garbage collections. The live heap is usually small compared with the
// short-lived memory of issuing. The heap may therefore grow by garbageShare, but by at most maxGarbage bytes. If the
// live heap is large, for instance because of a hundred thousand cached OCSP responses, it may grow by minGarbageShare,
// so that collections stay rare. A share of 100 would make those responses as fast and the server 40 MiB larger.
const (
	garbageShare    = 200 // per cent of the live heap
	maxGarbage      = 32 << 20
	minGarbageShare = 50 // per cent of the live heap
)

// BoundGarbage adjusts the garbage collector to the size of the live heap until ctx ends. It also sets the memory limit
// of the cgroup.
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
			// SetGCPercent stops the world briefly, so changes below 10 % are not applied.
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
