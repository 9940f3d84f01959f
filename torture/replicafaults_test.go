package torture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"github.com/brevet-pki/brevet/revocation/crl"
)

// The ways to stop PostgreSQL.
const (
	sigFast      = syscall.SIGINT
	sigImmediate = syscall.SIGQUIT
)

// databaseSettings keep the connections few, so that a test can use them up.
var databaseSettings = []string{"max_connections=60"}

// A replicaFault is something that fails under several servers. do returns when it works again.
type replicaFault struct {
	name   string
	isLong bool // left out of the short form, because it takes long or resembles another one
	do     func(*testing.T, *replicaTest) error
}

// serverFaults are those of the servers.
var serverFaults = []replicaFault{
	{"nothing fails", true, func(*testing.T, *replicaTest) error { time.Sleep(time.Second); return nil }},
	{"a server dies at a step, and is started at once", false, func(t *testing.T, rt *replicaTest) error { return rt.dieAtStep(t, 0) }},
	{"a server dies at a step, and others take over what it left", false, func(t *testing.T, rt *replicaTest) error { return rt.dieAtStep(t, lease+time.Second) }},
	{"all servers die", true, func(t *testing.T, rt *replicaTest) error {
		for _, r := range rt.replicas {
			rt.kill(t, r, rt.upTo(100*time.Millisecond))
		}
		return rt.startAll(t)
	}},
	{"a server stands still at a step", false, func(_ *testing.T, rt *replicaTest) error {
		return rt.pauseAt(rt.deaths.pauses.next().kill, crl.LeaseTime+2*time.Second) // others take over its CRLs, too
	}},
	{"a server dies while it takes over from another one", false, func(t *testing.T, rt *replicaTest) error { return rt.dieTakingOver(t) }},
	{"a server dies while it begins another epoch", false, func(t *testing.T, rt *replicaTest) error { return rt.dieBeginningAgain(t) }},
	{"a server is restarted", true, func(t *testing.T, rt *replicaTest) error {
		r := rt.any()
		p := r.process
		r.process = nil
		rt.connect()
		p.stop(t)
		return rt.start(t, r)
	}},
	{"the clock of a server is an hour fast", false, func(t *testing.T, rt *replicaTest) error { return rt.skew(t, time.Hour) }},
	{"the clock of a server is an hour slow", true, func(t *testing.T, rt *replicaTest) error { return rt.skew(t, -time.Hour) }},
}

// databaseFaults are those of PostgreSQL.
var databaseFaults = []replicaFault{
	{"PostgreSQL stops fast", true, func(_ *testing.T, rt *replicaTest) error { return rt.haltDatabase(sigFast) }},
	{"PostgreSQL stops immediately", true, func(_ *testing.T, rt *replicaTest) error { return rt.haltDatabase(sigImmediate) }},
	{"PostgreSQL is killed", false, func(_ *testing.T, rt *replicaTest) error { return rt.haltDatabase(syscall.SIGKILL) }},
	{"PostgreSQL has no connections left", false, func(t *testing.T, rt *replicaTest) error { return rt.exhaust(t.Context(), 2*time.Second) }},
	{"PostgreSQL fails over to its synchronous standby", false, func(t *testing.T, rt *replicaTest) error { return rt.failOver(t) }},
}

// networkFaults are those between servers and PostgreSQL.
var networkFaults = []replicaFault{
	{"connections are lost in the middle of a COMMIT", false, func(_ *testing.T, rt *replicaTest) error { return rt.cutCommits(2 * time.Second) }},
	{"all connections are lost, again and again", true, func(_ *testing.T, rt *replicaTest) error {
		for range 5 {
			rt.networks((*proxy).disconnect)
			time.Sleep(rt.upTo(300 * time.Millisecond))
		}
		return nil
	}},
	{"a server loses its network for a moment", false, func(_ *testing.T, rt *replicaTest) error { return rt.isolate(rt.any(), time.Second) }},
	{"a server loses its network for longer than its lease", true, func(_ *testing.T, rt *replicaTest) error {
		return rt.isolate(rt.any(), lease+maxStaleness+3*time.Second)
	}},
	{"all servers lose their network", true, func(_ *testing.T, rt *replicaTest) error {
		rt.networks(func(p *proxy) { p.setFlow(false) })
		time.Sleep(lease + time.Second)
		rt.networks(func(p *proxy) { p.setFlow(true) })
		return nil
	}},
}

// networks does something with the networks of all servers.
func (rt *replicaTest) networks(do func(*proxy)) {
	for _, r := range rt.replicas {
		for _, p := range r.networks {
			do(p)
		}
	}
}

// cutCommits has connections be lost in the middle of a COMMIT for a time.
func (rt *replicaTest) cutCommits(d time.Duration) error {
	rt.networks(func(p *proxy) { p.cutCommits(true) })
	time.Sleep(d)
	lost := 0
	rt.networks(func(p *proxy) {
		p.cutCommits(false)
		lost += p.lost()
	})
	if lost == 0 {
		return errors.New("no COMMIT was found in the data: the proxy no longer matches package postgres")
	}
	return nil
}

// isolate stops the network between a server and PostgreSQL for a time.
func (*replicaTest) isolate(r *replica, d time.Duration) error {
	for _, p := range r.networks {
		p.setFlow(false)
	}
	time.Sleep(d)
	for _, p := range r.networks {
		p.setFlow(true)
	}
	return nil
}

// dieAtStep has a server die at a step, or at a random time, and starts another one after a time.
func (rt *replicaTest) dieAtStep(t *testing.T, away time.Duration) error {
	t.Helper()
	r, next := rt.any(), rt.deaths.kills.next()
	r.process.arm(next.kill)
	died := rt.kill(t, r, next.wait)
	rt.deaths.kills.note(next, died)
	rt.deaths.uses++
	if died {
		rt.deaths.steps[next.kill.Step]++
	}
	time.Sleep(away)
	if next.next.Step == "" {
		return rt.start(t, r)
	}
	return rt.startUntil(t, r, next.next)
}

// startUntil starts a server that may die at a step of its start, and then another one.
func (rt *replicaTest) startUntil(t *testing.T, r *replica, k killPoint) error {
	t.Helper()
	o := rt.options(r, "")
	o.KillAt = k
	p, err := rt.launch(t, o)
	if err != nil {
		return err
	}
	if p == nil {
		rt.deaths.steps["at a start, "+k.Step]++
		return rt.start(t, r)
	}
	r.process = p
	rt.connect()
	return nil
}

// dieTakingOver has a server die after an intent, and each of the others when it takes over. Then it starts all.
func (rt *replicaTest) dieTakingOver(t *testing.T) error {
	t.Helper()
	r := rt.any()
	r.process.arm(killPoint{Step: after(stepIntent), N: 30}.random(rt.random))
	rt.kill(t, r, time.Second)
	k := takeOverKillPoints[rt.random.IntN(len(takeOverKillPoints))]
	first := make(chan struct{}, len(rt.replicas))
	for _, other := range rt.replicas {
		if p := other.process; p != nil {
			p.arm(k)
			go func() {
				<-p.ended
				first <- struct{}{}
			}()
		}
	}
	select {
	case <-first:
		rt.deaths.steps[k.Step]++
	case <-time.After(hangTimeout):
		return errors.New("no server has taken over what another one left")
	}
	wait := rt.upTo(lease + 2*time.Second) // in which the next one takes over from both
	for _, other := range rt.replicas {
		if other.process != nil {
			rt.kill(t, other, wait)
		}
	}
	return rt.startAll(t)
}

// dieBeginningAgain has a server stand still until others have fenced it, and die when it begins another epoch.
func (rt *replicaTest) dieBeginningAgain(t *testing.T) error {
	t.Helper()
	r, k := rt.any(), beginAgainKillPoints[rt.random.IntN(len(beginAgainKillPoints))]
	r.process.arm(k)
	time.Sleep(rt.upTo(100 * time.Millisecond))
	if err := syscall.Kill(r.process.pid, syscall.SIGSTOP); err != nil {
		return err
	}
	err := rt.database.Wait(`SELECT NOT EXISTS (SELECT 1 FROM epochs WHERE server = $1)`, r.name)
	if err := errors.Join(err, syscall.Kill(r.process.pid, syscall.SIGCONT)); err != nil {
		return err
	}
	if !rt.kill(t, r, hangTimeout) {
		return errors.New("a server that was fenced has begun no other epoch")
	}
	rt.deaths.steps[k.Step]++
	return rt.start(t, r)
}

func (rt *replicaTest) startAll(t *testing.T) (err error) {
	t.Helper()
	for _, r := range rt.replicas {
		err = errors.Join(err, rt.start(t, r))
	}
	return err
}

// pauseAt has a server stand still at a step, or at a random time, for a time.
func (rt *replicaTest) pauseAt(k killPoint, d time.Duration) error {
	r := rt.any()
	k.Stops = true
	r.process.arm(k)
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end) && !r.process.standsStill(); {
		time.Sleep(5 * time.Millisecond)
	}
	if err := syscall.Kill(r.process.pid, syscall.SIGSTOP); err != nil { // if it did not reach the step
		return err
	}
	time.Sleep(d)
	r.process.arm(killPoint{})
	return syscall.Kill(r.process.pid, syscall.SIGCONT)
}

// skew has the clock of one server be ahead for a time. The server is killed before and after it, so that others take over
// what it left, and it what they left.
func (rt *replicaTest) skew(t *testing.T, by time.Duration) error {
	t.Helper()
	rt.watcher.skewed.Store(true)
	r := rt.any()
	for _, r.skew = range []time.Duration{by, 0} {
		rt.kill(t, r, 0)
		if err := rt.start(t, r); err != nil {
			return err
		}
		time.Sleep(time.Second)
	}
	return nil
}

// crash notes that PostgreSQL may crash from now on, and returns a function that ends that.
func (rt *replicaTest) crash() (end func()) {
	crashes := &rt.acme.transport.crashes
	crashes.Add(1)
	return func() { crashes.Add(1) }
}

// haltDatabase stops PostgreSQL and starts it again.
func (rt *replicaTest) haltDatabase(signal syscall.Signal) error {
	defer rt.crash()()
	if err := rt.database.Halt(signal); err != nil {
		return err
	}
	time.Sleep(rt.upTo(time.Second))
	return rt.runDatabase()
}

// exhaust uses up the connections of PostgreSQL for a time. The servers lose theirs.
func (rt *replicaTest) exhaust(ctx context.Context, d time.Duration) error {
	var taken []*pgx.Conn
	defer func() {
		for _, conn := range taken {
			_ = conn.Close(ctx) // it is not used any more
		}
	}()
	for end := time.Now().Add(d); time.Now().Before(end); {
		conn, err := pgx.Connect(ctx, rt.database.Connection("postgres"))
		if err == nil {
			taken = append(taken, conn)
			continue
		}
		if len(taken) == 0 {
			return err
		}
		if _, err := taken[0].Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'brevet%'`); err != nil {
			return err
		}
	}
	return nil
}

// standbyName is the name of standbys in synchronous_standby_names.
const standbyName = "standby"

// failOver adds a synchronous standby, kills PostgreSQL, and promotes the standby.
func (rt *replicaTest) failOver(t *testing.T) error {
	t.Helper()
	standby, err := rt.database.Standby(standbyName)
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = standby.Stop() })
	if err := rt.database.Synchronous(standbyName); err != nil {
		return err
	}
	defer rt.crash()()
	old := rt.database
	rt.database = standby
	rt.slot = 1 - rt.slot
	for _, r := range rt.replicas {
		r.networks[rt.slot].lead(standby.Dir())
	}
	time.Sleep(500*time.Millisecond + rt.upTo(time.Second)) // both have the same transactions
	if err := old.Halt(syscall.SIGKILL); err != nil {
		return err
	}
	rt.clients.outages.begin() // measures the failover alone
	if err := standby.Promote(); err != nil {
		return err
	}
	rt.instance.database = standby.Connection("postgres")
	_ = unix.Unmount(rt.smallDisk, unix.MNT_DETACH) // if there is one
	return old.Stop()
}

// fillDisk fills the disk of PostgreSQL for a time.
func (rt *replicaTest) fillDisk(d time.Duration) error {
	defer rt.crash()() // without space for its log, PostgreSQL ends itself
	path := filepath.Join(rt.smallDisk, "filler")
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		for err == nil {
			_, err = f.Write(make([]byte, 1<<20))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			return err
		}
		err = nil
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	if rt.database.Exec(`SELECT 1`) == nil {
		return nil
	}
	if err := rt.database.Halt(syscall.SIGKILL); err != nil {
		return err
	}
	return rt.runDatabase()
}

// smallDiskSize leaves some space for the data of PostgreSQL.
const smallDiskSize = 256 << 20

// useSmallDisk moves the data of PostgreSQL to a small disk.
func (rt *replicaTest) useSmallDisk(t *testing.T) {
	t.Helper()
	must(t, rt.database.Halt(sigFast))
	disk := filepath.Join(rt.database.Dir(), "data")
	rt.smallDisk = disk
	moved := filepath.Join(rt.database.Dir(), "moved")
	must(t, os.Rename(rt.smallDisk, moved))
	must(t, os.Mkdir(rt.smallDisk, 0o700))
	must(t, unix.Mount("tmpfs", rt.smallDisk, "tmpfs", 0, fmt.Sprintf("size=%d", smallDiskSize)))
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) }) // unless a failover has done so
	out, err := exec.CommandContext(t.Context(), "cp", "-a", moved+"/.", rt.smallDisk).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	must(t, rt.runDatabase())
}

// replicaRounds has each of the faults happen under several servers, which begin starts, and goes on until -torture.duration has passed.
func replicaRounds(t *testing.T, faults []replicaFault, begin func() *replicaTest) {
	t.Helper()
	if *long == 0 {
		faults = slices.DeleteFunc(slices.Clone(faults), func(f replicaFault) bool { return f.isLong })
	}
	var rt *replicaTest
	rounds := 0
	for end := time.Now().Add(*long); rounds < len(faults) || time.Now().Before(end); rounds++ {
		if rounds%roundsPerInstance == 0 {
			if rt != nil {
				rt.stop(t)
			}
			rt = begin()
		}
		f := faults[rounds%len(faults)]
		if found := rt.round(t, f); len(found) > 0 || t.Failed() {
			t.Fatalf("round %d, %s: %s\n%s", rounds, f.name, report(found), rt.logs())
		}
	}
	rt.stop(t)
	t.Logf("%d rounds of %d servers", rounds, len(rt.replicas))
}

// logs returns the ends of the logs of all servers.
func (rt *replicaTest) logs() (text string) {
	for _, r := range rt.replicas {
		if r.process == nil {
			continue
		}
		log := r.process.stderr.String()
		text += fmt.Sprintf("%s:\n%s\n", r.name, log[max(0, len(log)-4000):])
	}
	return text
}

func serversFail(t *testing.T, g *testCA, random *rand.Rand) {
	all := newDeaths(random)
	replicaRounds(t, serverFaults, func() *replicaTest {
		rt := newReplicaTest(t, g, random, "", 3)
		rt.deaths = all
		return rt
	})
	all.report(t)
}

func databaseFails(t *testing.T, g *testCA, random *rand.Rand) {
	faults := databaseFaults
	if os.Geteuid() == 0 {
		faults = append([]replicaFault{{"the disk of PostgreSQL is full", false, func(t *testing.T, rt *replicaTest) error {
			rt.useSmallDisk(t)
			return rt.fillDisk(3 * time.Second)
		}}}, faults...)
	} else {
		t.Log("the disk of PostgreSQL is not filled, because only root can mount a small one")
	}
	replicaRounds(t, faults, func() *replicaTest { return newReplicaTest(t, g, random, "", 2) })
}

func networkFails(t *testing.T, g *testCA, random *rand.Rand) {
	replicaRounds(t, networkFaults, func() *replicaTest { return newReplicaTest(t, g, random, "", 2) })
}
