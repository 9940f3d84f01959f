package node

import (
	"testing"
)

func TestGarbagePercent(t *testing.T) {
	for live, want := range map[uint64]int{0: 200, 10 << 20: 200, 16 << 20: 200, 32 << 20: 100, 48 << 20: 66, 64 << 20: 50, 10 << 30: 50} {
		if got := garbagePercent(live); got != want {
			t.Errorf("a live heap of %d bytes may grow by %d per cent, want %d", live, got, want)
		}
	}
}
