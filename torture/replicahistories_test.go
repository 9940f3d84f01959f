package torture

import (
	"math/rand/v2"
	"syscall"
	"testing"
	"time"
)

// A disturbance is what fails during a history of several servers. It returns the servers that died.
type disturbance struct {
	name string
	do   func(t *testing.T, rt *replicaTest, now func() int64) []restart
}

var disturbances = []disturbance{
	{"servers are killed", func(t *testing.T, rt *replicaTest, now func() int64) (crashes []restart) {
		for range 2 {
			time.Sleep(20*time.Millisecond + rt.upTo(150*time.Millisecond))
			r := rt.any()
			d := restart{died: r.process}
			rt.kill(t, r, 0)
			d.diedAt = now()
			must(t, rt.start(t, r))
			d.startAt = now()
			crashes = append(crashes, d)
		}
		return crashes
	}},
	{"PostgreSQL is killed", func(t *testing.T, rt *replicaTest, _ func() int64) []restart {
		time.Sleep(rt.upTo(200 * time.Millisecond))
		must(t, rt.haltDatabase(syscall.SIGKILL))
		return nil
	}},
	{"connections are lost in the middle of a COMMIT", func(t *testing.T, rt *replicaTest, _ func() int64) []restart {
		must(t, rt.cutCommits(time.Second))
		return nil
	}},
	{"a server stands still", func(t *testing.T, rt *replicaTest, _ func() int64) []restart {
		must(t, rt.pauseAt(killPoint{Step: before(stepCommit), N: 20}.random(rt.random), lease+time.Second))
		return nil
	}},
	{"nothing fails", func(*testing.T, *replicaTest, func() int64) []restart { return nil }},
}

// replicaHistoriesAreLinearizable records histories whose calls go to any of three servers.
func replicaHistoriesAreLinearizable(t *testing.T, g *testCA, random *rand.Rand) {
	rt := newReplicaTest(t, g, random, "", 3)
	end := time.Now().Add(*long)
	total, n := 0, 0
	for ; n < 3 || time.Now().Before(end); n++ {
		d := disturbances[n%len(disturbances)]
		faults, operations := rt.recordHistory(t, random, 15, func(now func() int64) []restart { return d.do(t, rt, now) })
		if len(faults) > 0 {
			t.Fatalf("history %d, %s: %s\n%s", n, d.name, report(faults), rt.logs())
		}
		total += operations
	}
	t.Logf("%d histories of 3 servers, %d operations", n, total)
}
