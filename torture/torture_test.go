package torture

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// fleetSize is how many devices put load on a server.
const fleetSize = 6

// worldRounds is how many kills a world goes through before a new one begins.
const worldRounds = 40

// kills are the places where a server under load dies, each at a time up to the number.
var kills = []kill{
	{before(stepAnnounce), 30}, {after(stepAnnounce), 30}, {before(stepSign), 30}, {after(stepSign), 30},
	{before(stepSettle), 30}, {after(stepSettle), 30}, {before(stepAnswer), 200}, {after(stepAnswer), 200},
	{before(stepSequence), 5}, {after(stepSequence), 5}, {before(stepEntries), 10}, {after(stepEntries), 10},
	{before(stepBind), 5}, {after(stepBind), 5}, {before(stepToken), 5}, {after(stepToken), 5},
	{before(stepOrder), 8}, {after(stepOrder), 8}, {before(stepNumber), 2}, {after(stepNumber), 2},
	{before(stepSignCRL), 2}, {after(stepSignCRL), 2}, {before(stepPutCRL), 2}, {after(stepPutCRL), 2},
}

// startKills are the places where a server dies that starts on what another one left.
var startKills = []kill{
	{before(stepBegin), 1}, {after(stepBegin), 1}, {before(stepSettle), 1}, {after(stepSettle), 1}, {before(stepEntries), 1}, {after(stepEntries), 1},
}

// diskCalls are the system calls before which strace kills.
var diskCalls = []string{"pwrite64", "fdatasync", "fsync", "ftruncate"}

// torture is one world and what happens to it.
type torture struct {
	*world
	random   *rand.Rand
	fleet    *fleet
	server   *process
	before   *snapshot     // of the last audit
	patience time.Duration // for a server to come to rest

	died, killed, cut     int // servers, by how they ended
	changes, open         int // to the disk: all, and those that were not flushed when the power was cut
	certificates, entries int
}

func newTorture(t *testing.T, g *ground, random *rand.Rand, plant string, r *recorder) *torture {
	t.Helper()
	tt := &torture{world: newWorld(t, g), random: random, patience: patience}
	tt.plant, tt.recorder = plant, r
	tt.begin(t, kill{})
	return tt
}

// begin starts a server, and where that dies, another one.
func (tt *torture) begin(t *testing.T, k kill) {
	t.Helper()
	p, up := tt.launch(t, orders{Kill: k})
	if !up {
		tt.died++
		tt.lose(t)
		p, _ = tt.launch(t, orders{})
	}
	tt.server = p
	tt.clients.connect(p)
	if tt.fleet == nil {
		tt.fleet = tt.world.fleet(t, child(tt.random), fleetSize)
	}
}

// round is what a server goes through.
type round struct {
	kill kill          // where it dies
	wait time.Duration // or when, where it does not come there
	call string        // the system call before which another one dies in between, as recorder.inject has it; empty for none
	next kill          // where the start of the next one dies
}

func (r round) String() string {
	return fmt.Sprintf("killed at %s, or after %s, at system call %q, and at %s", r.kill, r.wait, r.call, r.next)
}

// round puts load on the server, which dies; goes on with another one; and returns what is wrong then.
func (tt *torture) round(t *testing.T, r round) []string {
	t.Helper()
	tt.fleet.work(t.Context())
	tt.server.arm(r.kill)
	tt.die(t, r.wait)
	if r.call != "" {
		tt.inject(t, r)
	}
	tt.begin(t, r.next)
	tt.fleet.end()
	return tt.look(t)
}

// inject has another server die at a system call.
func (tt *torture) inject(t *testing.T, r round) {
	t.Helper()
	usual := tt.recorder
	tt.recorder = &recorder{inject: r.call}
	p, up := tt.launch(t, orders{})
	if up {
		tt.server = p
		tt.clients.connect(p)
		tt.die(t, r.wait)
	} else {
		tt.died++
	}
	if usual != nil {
		tt.lose(t)
	}
	tt.recorder = usual
}

// die waits for the server's death, and helps.
func (tt *torture) die(t *testing.T, wait time.Duration) {
	t.Helper()
	select {
	case <-tt.server.ended:
		tt.died++
	case <-time.After(wait):
		tt.killed++
		tt.server.kill()
	}
	tt.clients.connect(nil)
	if !killed(tt.server.err) {
		t.Errorf("the server ended by itself: %v\n%s", tt.server.err, tt.server.stderr.String())
	}
	if tt.recorder != nil && tt.recorder.inject == "" {
		tt.lose(t)
	}
}

// lose cuts the power, where a recorder knows what that means.
func (tt *torture) lose(t *testing.T) {
	t.Helper()
	if tt.recorder == nil {
		return
	}
	c := drawnCut(tt.random)
	c.lies = tt.plant == diskLies
	changes, open := tt.recorder.power(t, c)
	tt.cut++
	tt.changes, tt.open = tt.changes+changes, tt.open+open
}

// look audits.
func (tt *torture) look(t *testing.T) []string {
	t.Helper()
	s, faults := tt.atRest(tt.dir, tt.patience)
	if s == nil {
		return faults
	}
	faults = append(faults, tt.audit(s, tt.before)...)
	faults = append(faults, tt.checkOCSP(t, tt.server, s)...)
	tt.before = s
	return faults
}

// drawn is the kill at a random one of its times.
func (k kill) drawn(r *rand.Rand) kill { return kill{k.Step, 1 + r.IntN(k.N)} }

// draw is a round of a random kind.
func draw(r *rand.Rand) round {
	rd := round{kill: kills[r.IntN(len(kills))].drawn(r), wait: 200*time.Millisecond + time.Duration(r.Int64N(int64(time.Second)))}
	switch r.IntN(4) {
	case 0:
		rd.next = startKills[r.IntN(len(startKills))]
	case 1:
		rd.call = fmt.Sprintf("%s:%d", diskCalls[r.IntN(len(diskCalls))], 1+r.IntN(20))
	}
	return rd
}

// run goes through rounds, at least so many and as long as the flag says.
func run(t *testing.T, rounds int, begin func() *torture, random *rand.Rand) {
	t.Helper()
	end := time.Now().Add(*long)
	var all torture
	var tt *torture
	for n := 0; n < rounds || time.Now().Before(end); n++ {
		if n%worldRounds == 0 {
			if tt != nil {
				all.add(tt)
				tt.server.stop(t)
			}
			tt = begin()
		}
		r := draw(random)
		if faults := tt.round(t, r); len(faults) > 0 {
			t.Fatalf("round %d, %s: %s\n%s", n, r, report(faults), tt.server.stderr.String())
		}
	}
	all.add(tt)
	t.Logf("servers died at steps and system calls: %d, at random: %d; power cuts: %d, %d changes, %d of them not flushed; %d certificates, %d log entries",
		all.died, all.killed, all.cut, all.changes, all.open, all.certificates, all.entries)
}

func (tt *torture) add(o *torture) {
	tt.died, tt.killed, tt.cut, tt.changes, tt.open = tt.died+o.died, tt.killed+o.killed, tt.cut+o.cut, tt.changes+o.changes, tt.open+o.open
	tt.certificates, tt.entries = tt.certificates+len(o.before.rows), tt.entries+len(o.before.log)
}

func TestKilledAtEveryStep(t *testing.T) {
	random := rand.New(rand.NewPCG(*seed, 1))
	g := newGround(t)
	run(t, 12, func() *torture { return newTorture(t, g, random, "", nil) }, random)
}

func TestPowerCuts(t *testing.T) {
	random := rand.New(rand.NewPCG(*seed, 2))
	g := newGround(t)
	run(t, 6, func() *torture { return newTorture(t, g, random, "", &recorder{}) }, random)
}
