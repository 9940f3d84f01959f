package torture

import (
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

// torture is one world and what happens to it.
type torture struct {
	*world
	random *rand.Rand
	fleet  *fleet
	server *process
	before *snapshot // of the last audit

	died, killed, cut int // servers, by how they ended
}

func newTorture(t *testing.T, g *ground, random *rand.Rand, plant string) *torture {
	t.Helper()
	tt := &torture{world: newWorld(t, g), random: random}
	tt.plant = plant
	tt.begin(t, kill{})
	return tt
}

// begin starts a server, and where that dies, another one.
func (tt *torture) begin(t *testing.T, k kill) {
	t.Helper()
	p, up := tt.launch(t, orders{Kill: k})
	if !up {
		tt.died++
		p, _ = tt.launch(t, orders{})
	}
	tt.server = p
	tt.clients.connect(p)
	if tt.fleet == nil {
		tt.fleet = tt.world.fleet(t, child(tt.random), fleetSize)
	}
}

// round puts load on the server, which dies at a step, or after a time that the step did not come in; goes on with
// another one; and returns what is wrong then.
func (tt *torture) round(t *testing.T, k, next kill, wait time.Duration) []string {
	t.Helper()
	tt.fleet.work(t.Context())
	tt.server.arm(k)
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
	tt.begin(t, next)
	tt.fleet.end()
	return tt.look(t, patience)
}

// look audits.
func (tt *torture) look(t *testing.T, wait time.Duration) []string {
	t.Helper()
	s, faults := tt.atRest(tt.dir, wait)
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

func TestKilledAtEveryStep(t *testing.T) {
	random := rand.New(rand.NewPCG(*seed, 1))
	g := newGround(t)
	end := time.Now().Add(*long)
	var tt *torture
	for n := 0; n < 12 || time.Now().Before(end); n++ {
		if n%worldRounds == 0 {
			tt = newTorture(t, g, random, "")
		}
		k, next := kills[random.IntN(len(kills))].drawn(random), kill{}
		if random.IntN(3) == 0 {
			next = startKills[random.IntN(len(startKills))]
		}
		wait := 200*time.Millisecond + time.Duration(random.Int64N(int64(time.Second)))
		if faults := tt.round(t, k, next, wait); len(faults) > 0 {
			t.Fatalf("round %d, killed at %s, then at %s: %s", n, k, next, report(faults))
		}
	}
	t.Logf("died at steps: %d, at random: %d; %d certificates, %d entries", tt.died, tt.killed, len(tt.before.rows), len(tt.before.log))
}
