package torture

import (
	"errors"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/store/postgres/postgrestest"
)

// cableFaults are those of a network between the kernels of a server and of PostgreSQL. While a cable is cut, connections
// stay, what either end sends is lost, and no end learns that the process at the other end has died.
var cableFaults = []replicaFault{
	{"a cable is cut for a moment", false, func(_ *testing.T, rt *replicaTest) error {
		return rt.cut(func() error { time.Sleep(rt.upTo(2 * time.Second)); return nil }, rt.any())
	}},
	{"a cable is cut for longer than the lease", false, func(_ *testing.T, rt *replicaTest) error {
		return rt.cut(func() error { time.Sleep(lease + maxStaleness + 3*time.Second); return nil }, rt.any())
	}},
	{"all cables are cut", true, func(_ *testing.T, rt *replicaTest) error {
		return rt.cut(func() error { time.Sleep(lease + time.Second); return nil }, rt.replicas...)
	}},
	{"cables are cut again and again", true, func(_ *testing.T, rt *replicaTest) error {
		var failed error
		for range 5 {
			failed = errors.Join(failed, rt.cut(func() error { time.Sleep(rt.upTo(time.Second)); return nil }, rt.any()))
			time.Sleep(rt.upTo(time.Second))
		}
		return failed
	}},
	{"a server dies while its cable is cut", false, func(t *testing.T, rt *replicaTest) error {
		r := rt.any()
		err := rt.cut(func() error {
			rt.kill(t, r, rt.upTo(time.Second))
			time.Sleep(rt.upTo(lease + 2*time.Second))
			return nil
		}, r)
		return errors.Join(err, rt.start(t, r))
	}},
	{"a server stands still while its cable is cut", true, func(_ *testing.T, rt *replicaTest) error {
		r := rt.any()
		return rt.cut(func() error {
			if err := syscall.Kill(r.process.pid, syscall.SIGSTOP); err != nil {
				return err
			}
			time.Sleep(lease + rt.upTo(2*time.Second))
			return syscall.Kill(r.process.pid, syscall.SIGCONT)
		}, r)
	}},
	{"PostgreSQL is killed while a cable is cut", true, func(_ *testing.T, rt *replicaTest) error {
		return rt.cut(func() error { return rt.haltDatabase(syscall.SIGKILL) }, rt.any())
	}},
}

// cut cuts the cables of servers, and mends them after a function.
func (*replicaTest) cut(during func() error, servers ...*replica) (err error) {
	for _, r := range servers {
		err = errors.Join(err, r.cable.Cut())
	}
	err = errors.Join(err, during())
	for _, r := range servers {
		err = errors.Join(err, r.cable.Mend())
	}
	return err
}

// cablesAreCut runs PostgreSQL in a network namespace of its own.
func cablesAreCut(t *testing.T, g *testCA, random *rand.Rand) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make a network namespace, in which PostgreSQL runs: run the test as root")
	}
	replicaRounds(t, cableFaults, func() *replicaTest {
		network, err := postgrestest.NewNetwork()
		must(t, err)
		t.Cleanup(func() { _ = network.Close() })
		return startReplicas(t, g, random, network, "", 3)
	})
}
