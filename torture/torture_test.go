package torture

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
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
	{before(stepSet), 2}, {after(stepSet), 2}, {before(stepTellSet), 2}, {after(stepTellSet), 2},
	{before(stepFollow), 8}, {after(stepFollow), 8}, {after(stepEndSet), 2},
	{before(stepSignCRL), 2}, {after(stepSignCRL), 2}, {before(stepPutCRL), 2}, {after(stepPutCRL), 2},
}

// startKills are the places where a server dies that starts on what another one left.
var startKills = []kill{
	{before(stepBegin), 1}, {after(stepBegin), 1}, {before(stepSettle), 1}, {after(stepSettle), 1}, {before(stepEntries), 1}, {after(stepEntries), 1},
}

// diskCalls are the system calls before which strace kills. Each thread counts for itself.
var diskCalls = []string{"pwrite64", "fdatasync", "fsync,fdatasync", "fsync"}

const atSystemCall = "at a system call"

// torture is one world and what happens to it.
type torture struct {
	*world
	random   *rand.Rand
	fleet    *fleet
	server   *process
	before   *snapshot     // of the last audit
	patience time.Duration // for a server to come to rest

	sum
}

func newTorture(t *testing.T, g *ground, random *rand.Rand, plant string, r *recorder) *torture {
	t.Helper()
	tt := &torture{world: newWorld(t, g), random: random, patience: patience, sum: sum{steps: map[string]int{}}}
	tt.plant, tt.recorder = plant, r
	must(t, tt.begin(t, kill{}))
	tt.fleet = tt.world.fleet(t, child(tt.random), fleetSize)
	return tt
}

// begin starts a server, and where that dies, another one.
func (tt *torture) begin(t *testing.T, k kill) error {
	t.Helper()
	p, err := tt.launch(t, orders{Kill: k})
	if p == nil && err == nil {
		tt.steps["at a start, "+k.Step]++
		tt.lose(t)
		p, err = tt.launch(t, orders{})
	}
	if err != nil {
		return err
	}
	tt.server = p
	tt.clients.connect(p)
	return nil
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
	tt.die(t, r.kill.Step, r.wait)
	var err error
	if r.call != "" {
		err = tt.inject(t, r)
	}
	if err == nil {
		err = tt.begin(t, r.next)
	}
	if err != nil {
		tt.fleet.giveUp()
		return []string{err.Error()}
	}
	faults := tt.checkSetsAtOnce(t)
	tt.fleet.end()
	return append(faults, tt.look(t)...)
}

// inject has another server die at a system call.
func (tt *torture) inject(t *testing.T, r round) error {
	t.Helper()
	usual := tt.recorder
	tt.recorder = &recorder{inject: r.call}
	p, err := tt.launch(t, orders{})
	if err != nil {
		return err
	}
	if p != nil {
		tt.server = p
		tt.clients.connect(p)
		tt.die(t, atSystemCall, r.wait)
	} else {
		tt.steps["at a start, "+atSystemCall]++
	}
	if usual != nil {
		tt.lose(t)
	}
	tt.recorder = usual
	return nil
}

// die waits for the server's death at a step, and helps.
func (tt *torture) die(t *testing.T, step string, wait time.Duration) {
	t.Helper()
	select {
	case <-tt.server.ended:
		tt.steps[step]++
	case <-time.After(wait):
		tt.killed++
		tt.server.kill()
	}
	tt.clients.connect(nil)
	if !killed(tt.server.err) {
		t.Errorf("the server ended by itself: %v\n%s", tt.server.err, tt.server.stderr.String())
	}
	tt.checkWhole(t)
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
	if tt.plant == diskTearsCRLs {
		c.tears, c.keep = ".crl", min(c.keep, 0.9)
	}
	changes, open := tt.recorder.power(t, c)
	tt.cut++
	tt.changes, tt.open = tt.changes+changes, tt.open+open
	tt.checkWhole(t)
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
	faults = append(faults, tt.checkLists(tt.dir, tt.patience)...)
	tt.before = s
	return faults
}

// drawn is the kill at a random one of its times.
func (k kill) drawn(r *rand.Rand) kill { return kill{k.Step, 1 + r.IntN(k.N)} }

// plan draws rounds. It comes to every place of kills before it comes to one again.
type plan struct {
	random *rand.Rand
	due    []kill
}

func (p *plan) draw() round {
	r := p.random
	if len(p.due) == 0 {
		p.due = slices.Clone(kills)
		r.Shuffle(len(p.due), func(i, j int) { p.due[i], p.due[j] = p.due[j], p.due[i] })
	}
	next := round{kill: p.due[0].drawn(r), wait: 200*time.Millisecond + time.Duration(r.Int64N(int64(500*time.Millisecond)))}
	p.due = p.due[1:]
	switch r.IntN(4) {
	case 0:
		next.next = startKills[r.IntN(len(startKills))]
	case 1:
		next.call = fmt.Sprintf("%s:%d", diskCalls[r.IntN(len(diskCalls))], 1+r.IntN(25))
	}
	return next
}

// sum is what many worlds went through.
type sum struct {
	steps                 map[string]int // servers that died at each
	killed, cut           int            // servers that were killed at some moment; power cuts
	changes, open         int            // to the disk: all, and those that were not flushed when the power was cut
	certificates, entries int
	sets, ahead           int // orders about sets; starts at which some were open
}

func (s *sum) add(tt *torture) {
	for step, n := range tt.steps {
		s.steps[step] += n
	}
	s.killed, s.cut, s.changes, s.open = s.killed+tt.killed, s.cut+tt.cut, s.changes+tt.changes, s.open+tt.open
	s.certificates, s.entries = s.certificates+len(tt.before.rows), s.entries+len(tt.before.log)
	s.sets, s.ahead = s.sets+len(tt.before.sets), s.ahead+tt.ahead
}

// report says where servers died, and fails where one should have, often, and never did.
func (s *sum) report(t *testing.T, rounds int) {
	t.Helper()
	died := 0
	for _, step := range slices.Sorted(maps.Keys(s.steps)) {
		t.Logf("%4d died %s", s.steps[step], step)
		died += s.steps[step]
	}
	t.Logf("%d rounds: %d servers died where they were told to, %d were killed at some moment; %d power cuts, %d changes to the disk, %d of them not flushed; %d certificates, %d log entries",
		rounds, died, s.killed, s.cut, s.changes, s.open, s.certificates, s.entries)
	t.Logf("%d sets, and %d starts while records had to follow", s.sets, s.ahead)
	expected := []string{atSystemCall}
	for _, k := range kills {
		expected = append(expected, k.Step)
	}
	for _, step := range expected {
		if passes := rounds / len(kills); passes >= 10 && s.steps[step] == 0 {
			t.Errorf("nobody ever died %s: the wrappers no longer fit the pipeline", step)
		}
	}
}

// rounds kills servers, at least so many times and as long as the flag says.
func rounds(t *testing.T, least int, random *rand.Rand, begin func() *torture) {
	t.Helper()
	all := sum{steps: map[string]int{}}
	p := plan{random: random}
	var tt *torture
	n := 0
	for end := time.Now().Add(*long); n < least || time.Now().Before(end); n++ {
		if n%worldRounds == 0 {
			if tt != nil {
				all.add(tt)
				tt.server.stop(t)
			}
			tt = begin()
		}
		r := p.draw()
		if faults := tt.round(t, r); len(faults) > 0 || t.Failed() {
			t.Fatalf("round %d, %s: %s\n%s", n, r, report(faults), tt.server.stderr.String())
		}
	}
	all.add(tt)
	all.report(t, n)
}

func killedAtEveryStep(t *testing.T, g *ground, random *rand.Rand) {
	rounds(t, 8, random, func() *torture { return newTorture(t, g, random, "", nil) })
}

func powerCuts(t *testing.T, g *ground, random *rand.Rand) {
	rounds(t, 4, random, func() *torture { return newTorture(t, g, random, "", &recorder{}) })
}

// TestTorture is the short form of all tortures; with -torture.duration each goes on for so long.
func TestTorture(t *testing.T) {
	g := newGround(t)
	for i, c := range []struct {
		name string
		test func(*testing.T, *ground, *rand.Rand)
	}{
		{"killed at every step", killedAtEveryStep},
		{"power cuts", powerCuts},
		{"power cuts of an agent", powerCutsOfAnAgent},
		{"histories are linearizable", historiesAreLinearizable},
		{"planted faults are found", plantedFaultsAreFound},
		{"a lying disk under an agent is found", lyingDiskUnderAnAgentIsFound},
		{"histories with planted faults are not linearizable", plantedHistoriesAreNot},
		{"what is missing in the files is found", missingIsFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, g, rand.New(rand.NewPCG(*seed, uint64(i))))
		})
	}
}
