package torture

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// A load is the clients of an instance.
type load struct{ devices, acmeClients int }

var (
	mixedLoad = load{devices: 6, acmeClients: 2}
	acmeLoad  = load{devices: 2, acmeClients: 6}
)

// roundsPerInstance is the number of rounds after which a new instance begins.
const roundsPerInstance = 40

// killPoints lists where a server under load dies. Each count is chosen at random up to the number here.
var killPoints = []killPoint{
	{Step: before(stepIntent), N: 30}, {Step: after(stepIntent), N: 30}, {Step: before(stepSign), N: 30}, {Step: after(stepSign), N: 30},
	{Step: before(stepCommit), N: 30}, {Step: after(stepCommit), N: 30}, {Step: before(stepRespond), N: 200}, {Step: after(stepRespond), N: 200},
	{Step: before(stepSequence), N: 5}, {Step: after(stepSequence), N: 5}, {Step: before(stepEntries), N: 10}, {Step: after(stepEntries), N: 10},
	{Step: before(stepBind), N: 5}, {Step: after(stepBind), N: 5}, {Step: before(stepToken), N: 5}, {Step: after(stepToken), N: 5},
	{Step: before(stepChange), N: 8}, {Step: after(stepChange), N: 8}, {Step: before(stepNumber), N: 2}, {Step: after(stepNumber), N: 2},
	{Step: before(stepCreateBulk), N: 2}, {Step: after(stepCreateBulk), N: 2}, {Step: before(stepNotifyBulk), N: 2}, {Step: after(stepNotifyBulk), N: 2},
	{Step: before(stepApplyBulk), N: 8}, {Step: after(stepApplyBulk), N: 8}, {Step: after(stepCompleteBulk), N: 2},
	{Step: before(stepSignCRL), N: 2}, {Step: after(stepSignCRL), N: 2}, {Step: before(stepPutCRL), N: 2}, {Step: after(stepPutCRL), N: 2},
}

// replicaKillPoints lists where one of several servers dies or stands still.
var replicaKillPoints = slices.Concat(killPoints, []killPoint{
	{Step: before(stepPutFile), N: 5}, {Step: after(stepPutFile), N: 5}, {Step: before(stepCopyFile), N: 5}, {Step: after(stepCopyFile), N: 5},
})

// takeOverKillPoints lists where a server dies that takes over what another one left, and beginAgainKillPoints where one dies
// that was fenced.
var (
	takeOverKillPoints   = []killPoint{{Step: before(stepTakeOver), N: 1}, {Step: after(stepTakeOver), N: 1}}
	beginAgainKillPoints = []killPoint{{Step: before(stepBeginAgain), N: 1}, {Step: after(stepBeginAgain), N: 1}}
)

// acmeKillPoints lists where a server dies under the load of ACME clients and rotations.
var acmeKillPoints = []killPoint{
	{Step: before(stepIntent), N: 30}, {Step: after(stepIntent), N: 30}, {Step: before(stepSign), N: 30}, {Step: after(stepSign), N: 30},
	{Step: before(stepCommit), N: 30}, {Step: after(stepCommit), N: 30}, {Step: before(stepChange), N: 4}, {Step: after(stepChange), N: 4},
	{Step: before(stepExternalKey), N: 1}, {Step: after(stepExternalKey), N: 1}, {Step: before(stepAccount), N: 2}, {Step: after(stepAccount), N: 2},
	{Step: before(stepChangeAccount), N: 1}, {Step: after(stepChangeAccount), N: 1}, {Step: before(stepOrder), N: 4}, {Step: after(stepOrder), N: 4},
	{Step: before(stepMove), N: 8}, {Step: after(stepMove), N: 8}, {Step: before(stepRespondHTTPS), N: 60}, {Step: after(stepRespondHTTPS), N: 60},
	{Step: before(stepStartRotation), N: 1}, {Step: after(stepStartRotation), N: 1}, {Step: before(stepEndRotation), N: 1}, {Step: after(stepEndRotation), N: 1},
}

// startKillPoints lists where a server dies while it starts after the death of another one.
var startKillPoints = []killPoint{
	{Step: before(stepBegin), N: 1}, {Step: after(stepBegin), N: 1}, {Step: before(stepCommit), N: 1}, {Step: after(stepCommit), N: 1}, {Step: before(stepEntries), N: 1}, {Step: after(stepEntries), N: 1},
}

// diskCalls lists the system calls before which strace kills a server. strace counts the calls of each thread
// separately.
var diskCalls = []string{"pwrite64", "fdatasync", "fsync,fdatasync", "fsync"}

const atSystemCall = "at a system call"

// A crashTest runs rounds of kills and power cuts on one instance.
type crashTest struct {
	*instance
	random      *rand.Rand
	fleet       *fleet
	server      *process
	before      *snapshot     // as of the last audit
	idleTimeout time.Duration // how long to wait for an idle server to finish its work

	totals
}

func newCrashTest(t *testing.T, g *testCA, random *rand.Rand, bug string, r *recorder, l load) *crashTest {
	t.Helper()
	tt := &crashTest{instance: newInstance(t, g), random: random, idleTimeout: hangTimeout, totals: totals{steps: map[string]int{}}}
	tt.bug, tt.recorder = bug, r
	must(t, tt.startServer(t, killPoint{}))
	tt.fleet = tt.newFleet(t, childRand(tt.random), l)
	return tt
}

// startServer starts a server. If the server dies at k, startServer starts another one.
func (tt *crashTest) startServer(t *testing.T, k killPoint) error {
	t.Helper()
	p, err := tt.launch(t, serverOptions{KillAt: k})
	if p == nil && err == nil {
		tt.steps["at a start, "+k.Step]++
		tt.cutPower(t)
		p, err = tt.launch(t, serverOptions{})
	}
	if err != nil {
		return err
	}
	tt.server = p
	tt.clients.connect(p)
	return nil
}

// A round describes how a server dies, and which servers die before the next one serves.
type round struct {
	kill killPoint     // where the server dies
	wait time.Duration // time after which it is killed if it does not reach that point
	call string        // system call before which another server dies (see recorder.inject); empty for none
	next killPoint     // where the next server dies during its start
}

func (r round) String() string {
	return fmt.Sprintf("killed at %s or after %s, then at system call %q, then during the start at %s", r.kill, r.wait, r.call, r.next)
}

// round puts load on the server until it dies, starts another one, and returns the faults that the checks find.
func (tt *crashTest) round(t *testing.T, r round) []string {
	t.Helper()
	tt.fleet.start(t.Context())
	tt.server.arm(r.kill)
	tt.die(t, r.kill.Step, r.wait)
	var err error
	if r.call != "" {
		err = tt.inject(t, r)
	}
	if err == nil {
		err = tt.startServer(t, r.next)
	}
	if err != nil {
		tt.fleet.abort()
		return []string{err.Error()}
	}
	faults := tt.checkBulksAtStart(t)
	tt.fleet.stop()
	return append(faults, tt.checkFiles(t)...)
}

// inject starts another server, which dies at a system call.
func (tt *crashTest) inject(t *testing.T, r round) error {
	t.Helper()
	previous := tt.recorder
	tt.recorder = &recorder{inject: r.call}
	p, err := tt.launch(t, serverOptions{})
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
	if previous != nil {
		tt.cutPower(t)
	}
	tt.recorder = previous
	return nil
}

// die waits until the server dies at a step, and kills it after wait.
func (tt *crashTest) die(t *testing.T, step string, wait time.Duration) {
	t.Helper()
	select {
	case <-tt.server.ended:
		tt.steps[step]++
	case <-time.After(wait):
		tt.killed++
		tt.server.kill()
	}
	tt.clients.connect()
	if !killed(tt.server.err) {
		t.Errorf("the server exited by itself: %v\n%s", tt.server.err, tt.server.stderr.String())
	}
	tt.checkNoTornCRL(t)
	if tt.recorder != nil && tt.recorder.inject == "" {
		tt.cutPower(t)
	}
}

// cutPower simulates a power cut if a recorder runs.
func (tt *crashTest) cutPower(t *testing.T) {
	t.Helper()
	if tt.recorder == nil {
		return
	}
	c := randomCut(tt.random)
	c.ignoreFlush = tt.bug == diskIgnoresFlush
	if tt.bug == diskLosesCRLs {
		c.unflushed, c.keep = ".crl", min(c.keep, 0.9)
	}
	changes, open := tt.recorder.cutPower(t, c)
	tt.powerCuts++
	tt.changes, tt.unflushed = tt.changes+changes, tt.unflushed+open
	tt.checkNoTornCRL(t)
}

// checkFiles waits until the server is idle, and audits its files, OCSP responses and CRLs.
func (tt *crashTest) checkFiles(t *testing.T) []string {
	t.Helper()
	s, faults := tt.waitIdle(tt.dir, tt.idleTimeout)
	if s == nil {
		return faults
	}
	faults = append(faults, tt.audit(s, tt.before)...)
	faults = append(faults, tt.checkOCSP(t, tt.server, s)...)
	faults = append(faults, tt.checkCRLs(tt.dir, tt.idleTimeout)...)
	faults = append(faults, tt.checkRenewalWindows(s)...)
	tt.before = s
	return faults
}

// random returns the kill point with a random count up to N.
func (k killPoint) random(r *rand.Rand) killPoint { return killPoint{Step: k.Step, N: 1 + r.IntN(k.N)} }

// A schedule returns random rounds. It uses every kill point once before it uses one again. On a slow machine, servers
// reach some kill points only after a longer time, so the wait doubles with each use of a kill point at which no server
// died since its last use.
type schedule struct {
	random *rand.Rand
	points []killPoint
	due    []killPoint
	missed map[string]int // by step: uses in a row in which no server died there
}

// maxDoublings limits how often the wait of a round is doubled: to 22 s at most.
const maxDoublings = 5

// note records whether the server of a round died at the round's kill point.
func (p *schedule) note(r round, died bool) {
	if died {
		delete(p.missed, r.kill.Step)
	} else {
		p.missed[r.kill.Step]++
	}
}

func (p *schedule) next() round {
	r := p.random
	if len(p.due) == 0 {
		p.due = slices.Clone(p.points)
		r.Shuffle(len(p.due), func(i, j int) { p.due[i], p.due[j] = p.due[j], p.due[i] })
	}
	next := round{kill: p.due[0].random(r), wait: 200*time.Millisecond + time.Duration(r.Int64N(int64(500*time.Millisecond)))}
	next.wait <<= min(p.missed[next.kill.Step], maxDoublings)
	p.due = p.due[1:]
	switch r.IntN(4) {
	case 0:
		next.next = startKillPoints[r.IntN(len(startKillPoints))]
	case 1:
		next.call = fmt.Sprintf("%s:%d", diskCalls[r.IntN(len(diskCalls))], 1+r.IntN(25))
	}
	return next
}

// totals sums up the rounds of many instances.
type totals struct {
	steps                  map[string]int // by step: servers that died there
	killed, powerCuts      int            // servers killed after a timeout; power cuts
	changes, unflushed     int            // changes to the disk: all, and those not flushed at a power cut
	certificates, entries  int
	bulks, startsWithBulks int // bulk revocations; starts while one was open
	acmeOrders, started    int // ACME orders and rotations on record
	staleNonces            int // requests that were refused because their nonce was of an earlier process
}

func (s *totals) add(tt *crashTest) {
	for step, n := range tt.steps {
		s.steps[step] += n
	}
	s.killed, s.powerCuts, s.changes, s.unflushed = s.killed+tt.killed, s.powerCuts+tt.powerCuts, s.changes+tt.changes, s.unflushed+tt.unflushed
	s.certificates, s.entries = s.certificates+len(tt.before.rows), s.entries+len(tt.before.log)
	s.bulks, s.startsWithBulks = s.bulks+len(tt.before.bulks), s.startsWithBulks+tt.startsWithBulks
	s.acmeOrders, s.started = s.acmeOrders+len(tt.before.orders), s.started+len(tt.before.rotations)
	s.staleNonces += tt.acme.staleNonces()
}

// report logs where servers died. If no server died at some step in many rounds, it fails the test.
func (s *totals) report(t *testing.T, rounds int, points []killPoint) {
	t.Helper()
	died := 0
	for _, step := range slices.Sorted(maps.Keys(s.steps)) {
		t.Logf("%4d servers died %s", s.steps[step], step)
		died += s.steps[step]
	}
	t.Logf("%d rounds: %d servers died at a kill point, %d were killed after a timeout; %d power cuts, %d changes to the disk, %d of them not flushed; %d certificates, %d log entries",
		rounds, died, s.killed, s.powerCuts, s.changes, s.unflushed, s.certificates, s.entries)
	t.Logf("%d bulk revocations, %d starts while one was incomplete", s.bulks, s.startsWithBulks)
	t.Logf("%d ACME orders, %d requests with the nonce of an earlier server; %d rotations", s.acmeOrders, s.staleNonces, s.started)
	if rounds >= 100 && (s.acmeOrders < rounds || s.staleNonces == 0 || s.started == 0) {
		t.Error("the ACME clients or the rotations put no load on the servers")
	}
	checkReached(t, s.steps, rounds/len(points), append([]killPoint{{Step: atSystemCall}}, points...))
}

// checkReached fails the test if no server ever died at one of the points, although each was used ten times. steps has the
// servers that died by step.
func checkReached(t *testing.T, steps map[string]int, uses int, points []killPoint) {
	t.Helper()
	for _, k := range points {
		if uses >= 10 && steps[k.Step] == 0 {
			t.Errorf("no server ever died %s: the wrappers no longer match the pipeline", k.Step)
		}
	}
}

// rounds runs rounds until it has run minimum of them and -torture.duration has passed. A server dies at one of the points
// in each. begin starts a new instance.
func rounds(t *testing.T, minimum int, random *rand.Rand, points []killPoint, begin func() *crashTest) {
	t.Helper()
	all := totals{steps: map[string]int{}}
	p := schedule{random: random, points: points, missed: map[string]int{}}
	var tt *crashTest
	n := 0
	for end := time.Now().Add(*long); n < minimum || time.Now().Before(end); n++ {
		if n%roundsPerInstance == 0 {
			if tt != nil {
				all.add(tt)
				tt.stop(t)
			}
			tt = begin()
		}
		r := p.next()
		deaths := tt.steps[r.kill.Step]
		if faults := tt.round(t, r); len(faults) > 0 || t.Failed() {
			t.Fatalf("round %d, %s: %s\n%s", n, r, report(faults), tt.server.stderr.String())
		}
		p.note(r, tt.steps[r.kill.Step] > deaths)
	}
	all.add(tt)
	tt.stop(t)
	all.report(t, n, points)
}

func killedAtEveryStep(t *testing.T, g *testCA, random *rand.Rand) {
	rounds(t, 8, random, killPoints, func() *crashTest { return newCrashTest(t, g, random, "", nil, mixedLoad) })
}

func killedUnderACME(t *testing.T, g *testCA, random *rand.Rand) {
	rounds(t, 6, random, acmeKillPoints, func() *crashTest { return newCrashTest(t, g, random, "", nil, acmeLoad) })
}

func powerCuts(t *testing.T, g *testCA, random *rand.Rand) {
	rounds(t, 4, random, killPoints, func() *crashTest { return newCrashTest(t, g, random, "", &recorder{}, mixedLoad) })
}

// TestTorture runs every test of this package in its short form. With -torture.duration each one continues for that
// time.
func TestTorture(t *testing.T) {
	g := newTestCA(t)
	for i, c := range []struct {
		name string
		test func(*testing.T, *testCA, *rand.Rand)
	}{
		{"killed at every step", killedAtEveryStep},
		{"killed at every step of ACME and rotations", killedUnderACME},
		{"power cuts", powerCuts},
		{"power cuts of an agent", powerCutsOfAnAgent},
		{"histories are linearizable", historiesAreLinearizable},
		{"seeded bugs are found", seededBugsAreFound},
		{"a disk that ignores flushes under an agent is found", flushlessDiskUnderAnAgentIsFound},
		{"histories with seeded bugs are not linearizable", seededHistoriesAreNotLinearizable},
		{"altered files are found", alteredFilesAreFound},
		{"several servers on PostgreSQL fail", serversFail},
		{"PostgreSQL fails under several servers", databaseFails},
		{"the network of several servers fails", networkFails},
		{"the cables of several servers are cut", cablesAreCut},
		{"histories of several servers are linearizable", replicaHistoriesAreLinearizable},
		{"seeded bugs of several servers are found", seededReplicaBugsAreFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, g, rand.New(rand.NewPCG(*seed, uint64(i))))
		})
	}
}
