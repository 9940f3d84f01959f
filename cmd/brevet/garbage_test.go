package main

import "testing"

func TestGarbagePercent(t *testing.T) {
	for live, want := range map[uint64]int{0: 200, 10 << 20: 200, 16 << 20: 200, 32 << 20: 100, 64 << 20: 50, 320 << 20: 10, 10 << 30: 10} {
		if got := garbagePercent(live); got != want {
			t.Errorf("with %d octets that live: %d per cent, want %d", live, got, want)
		}
	}
}
