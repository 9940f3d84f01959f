package main

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   spread
	}{
		{[]float64{7}, spread{7, 7, 7}},
		{[]float64{3, 1, 2}, spread{1, 2, 3}},
		{[]float64{4, 1, 2, 3}, spread{1, 2.5, 4}},
		{[]float64{123456, 0.000123456}, spread{0.0001235, 61728, 123456}},
	} {
		if got, err := spreadOf("x", c.values); err != nil || got != c.want {
			t.Errorf("spreadOf(%v) = %v, %v, want %v", c.values, got, err, c.want)
		}
	}
	for _, values := range [][]float64{nil, {1, 0}, {1, -1}, {math.NaN()}, {math.Inf(1)}} {
		if got, err := spreadOf("x", values); err == nil {
			t.Errorf("spreadOf(%v) = %v, and it was not measured", values, got)
		}
	}
}

func TestBenchTextIsNoDER(t *testing.T) {
	if benchText[0] == 0x30 || benchText[len(benchText)-1] != 0 {
		t.Error("what a measurement signs could be the beginning of something that X.509 signs")
	}
}

func TestQuantile(t *testing.T) {
	var l load
	if !math.IsNaN(l.quantile(0.5)) {
		t.Error("no calls have a median")
	}
	for ms := range 200 {
		l.latencies = append(l.latencies, time.Duration(ms+1)*time.Millisecond)
	}
	for share, want := range map[float64]float64{0.5: 100, 0.99: 198, 1: 200} {
		if got := l.quantile(share); got != want {
			t.Errorf("quantile(%v) = %v, want %v", share, got, want)
		}
	}
}

func TestWithoutWrk(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if path, err := findWrk(); err == nil || !strings.Contains(err.Error(), "apt-get install wrk") {
		t.Errorf("findWrk() = %q, %v: want how to install it", path, err)
	}
}
