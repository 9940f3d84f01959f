package torture

import (
	"crypto/x509"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/store/postgres"
	"github.com/brevet-pki/brevet/store/postgres/postgrestest"
)

// maxStaleness is how long a server may answer OCSP without the store. After that, it answers tryLater.
const maxStaleness = 5 * time.Second

// lease is how long a server may be silent before another one takes over what it left.
const lease = 3 * time.Second

// A replica is one of several servers that share a store. Its HSM has a clone of the issuing key.
type replica struct {
	name, dir, hsm string
	networks       [2]*proxy           // one to each PostgreSQL, of which one runs
	cable          *postgrestest.Cable // instead of networks, if PostgreSQL is in a network of its own
	process        *process
	skew           time.Duration // by which its clock is ahead

	// As of the last audit:
	before    *snapshot
	published map[string]*x509.RevocationList
}

// A replicaTest is several servers that share a store on PostgreSQL, with clients that send each RPC to any of them.
type replicaTest struct {
	*instance
	random      *rand.Rand
	database    *postgrestest.Cluster
	network     *postgrestest.Network // in which database runs; nil for that of this process
	slot        int                   // of the networks that lead to database
	smallDisk   string                // where the data of the first PostgreSQL is, if its disk is small
	replicas    []*replica
	fleet       *fleet
	watcher     *watcher
	idleTimeout time.Duration
	deaths      *deaths
}

// deaths are where servers die and stand still. Each test has one for all of its instances.
type deaths struct {
	kills, pauses schedule
	uses          int            // of kills
	steps         map[string]int // by step: servers that died there
}

func newDeaths(random *rand.Rand) *deaths {
	points := func() schedule { return schedule{random: random, points: replicaKillPoints, missed: map[string]int{}} }
	return &deaths{kills: points(), pauses: points(), steps: map[string]int{}}
}

// report logs where servers died. If no server died at some step in many rounds, it fails the test.
func (d *deaths) report(t *testing.T) {
	t.Helper()
	for _, step := range slices.Sorted(maps.Keys(d.steps)) {
		t.Logf("%4d servers died %s", d.steps[step], step)
	}
	checkReached(t, d.steps, d.uses/len(replicaKillPoints), replicaKillPoints)
}

// newReplicaTest starts PostgreSQL and n servers, with proxies between them.
func newReplicaTest(t *testing.T, g *testCA, random *rand.Rand, bug string, n int) *replicaTest {
	t.Helper()
	return startReplicas(t, g, random, nil, bug, n)
}

// startReplicas starts PostgreSQL, in a network if that is not nil, and n servers.
func startReplicas(t *testing.T, g *testCA, random *rand.Rand, network *postgrestest.Network, bug string, n int) *replicaTest {
	t.Helper()
	own := *g // with an operator of its own
	w := newInstance(t, &own)
	w.bug, w.staleness, w.clients.timeout, w.acme.transport.shared = bug, maxStaleness, maxStaleness, true
	rt := &replicaTest{instance: w, random: random, network: network, idleTimeout: hangTimeout}
	var err error
	rt.database, err = postgrestest.Start()
	must(t, err)
	first := rt.database
	t.Cleanup(func() { _ = first.Stop() })
	must(t, rt.database.Halt(sigFast))
	must(t, rt.runDatabase())
	// The audit's statements are written for SQLite.
	must(t, rt.database.Exec(`CREATE FUNCTION hex(bytea) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT upper(coalesce(encode($1, 'hex'), '')) $$`))
	w.database = rt.database.Connection("postgres")
	db, err := postgres.Open(t.Context(), w.database, "installer")
	must(t, err)
	own.install(t, db)
	must(t, db.Close())
	dir := t.TempDir()
	for i := range n {
		r := &replica{name: fmt.Sprintf("server-%d", i+1)}
		r.dir, r.hsm = filepath.Join(dir, r.name), filepath.Join(dir, r.name+"-hsm")
		must(t, os.MkdirAll(filepath.Join(r.dir, webName), 0o700))
		if network != nil {
			r.cable, err = network.Cable()
			must(t, err)
		} else {
			r.networks = [2]*proxy{newProxy(t, rt.database.Dir()), newProxy(t, filepath.Join(dir, "none"))}
		}
		rt.replicas = append(rt.replicas, r)
	}
	r := rt.replicas[0]
	r.process = w.start(t, rt.options(r, "torturer"))
	w.enrollOperator(t, r.process)
	for _, r := range rt.replicas[1:] {
		must(t, rt.start(t, r))
	}
	rt.fleet = w.newFleet(t, childRand(random), mixedLoad)
	rt.watcher = newWatcher(t, rt)
	return rt
}

func (rt *replicaTest) options(r *replica, operator string) serverOptions {
	o := serverOptions{Dir: r.dir, HSM: r.hsm, Name: r.name, Operator: operator, Skew: r.skew, IsNew: r.before == nil}
	if r.cable != nil {
		o.Database = fmt.Sprintf("host=%s user=brevet dbname=postgres sslmode=disable", r.cable.Host)
	} else {
		o.Database = fmt.Sprintf("host=%s,%s user=brevet dbname=postgres target_session_attrs=read-write", r.networks[0].dir, r.networks[1].dir)
	}
	return o
}

// runDatabase starts PostgreSQL, after it was stopped.
func (rt *replicaTest) runDatabase() error {
	if rt.network != nil {
		return rt.database.RunIn(rt.network, databaseSettings...)
	}
	return rt.database.Run(databaseSettings...)
}

// start starts a server that has ended.
func (rt *replicaTest) start(t *testing.T, r *replica) (err error) {
	t.Helper()
	r.process, err = rt.launch(t, rt.options(r, ""))
	rt.connect()
	return err
}

// connect has the clients use all servers that run.
func (rt *replicaTest) connect() {
	var all []*process
	for _, r := range rt.replicas {
		all = append(all, r.process)
	}
	rt.clients.connect(all...)
}

// kill waits until a server dies, and kills it after wait. It reports whether the server died before.
func (rt *replicaTest) kill(t *testing.T, r *replica, wait time.Duration) (died bool) {
	t.Helper()
	select {
	case <-r.process.ended:
		died = true
	case <-time.After(wait):
		r.process.kill()
	}
	p := r.process
	r.process = nil
	rt.connect()
	if !killed(p.err) {
		t.Errorf("the server exited by itself: %v\n%s", p.err, p.stderr.String())
	}
	return died
}

// any returns a server at random.
func (rt *replicaTest) any() *replica { return rt.replicas[rt.random.IntN(len(rt.replicas))] }

// round puts load on the servers, has something fail, and returns the faults that the checks find after it.
func (rt *replicaTest) round(t *testing.T, f replicaFault) []string {
	t.Helper()
	rt.clients.outages.begin()
	rt.watcher.begin()
	rt.fleet.start(t.Context())
	rt.fleet.repeat(func() { rt.watcher.step(t.Context()) })
	time.Sleep(rt.upTo(400 * time.Millisecond))
	begun := time.Now()
	err := f.do(t, rt)
	took := time.Since(begun)
	if err != nil || t.Failed() {
		rt.fleet.abort()
		return append([]string{fmt.Sprintf("%s: %v", f.name, err)}, rt.ended()...)
	}
	time.Sleep(rt.upTo(400 * time.Millisecond))
	rt.fleet.stop()
	if faults := rt.ended(); len(faults) > 0 {
		return faults
	}
	faults := rt.check(t)
	t.Logf("%-60s took %5.1f s, no response for %5.2f s at most; OCSP of the other servers: %s", f.name, took.Seconds(), rt.clients.outages.longestOutage().Seconds(), rt.watcher.report())
	return faults
}

func (rt *replicaTest) upTo(d time.Duration) time.Duration {
	return time.Duration(rt.random.Int64N(int64(d)))
}

// ended returns a fault for each server that has ended by itself.
func (rt *replicaTest) ended() (faults []string) {
	for _, r := range rt.replicas {
		if r.process == nil {
			faults = append(faults, r.name+" does not run")
			continue
		}
		select {
		case <-r.process.ended:
			faults = append(faults, fmt.Sprintf("%s exited by itself: %v\n%s", r.name, r.process.err, r.process.stderr.String()))
		default:
		}
	}
	return faults
}

// check waits until the servers are idle, and audits the store, and the archive, the OCSP responses and the CRLs of each.
func (rt *replicaTest) check(t *testing.T) (faults []string) {
	t.Helper()
	for _, r := range rt.replicas {
		s, open := rt.waitIdle(r.dir, rt.idleTimeout)
		if s == nil {
			return open
		}
		faults = append(append(faults, open...), rt.audit(s, r.before)...)
		faults = append(faults, rt.checkOCSPWithin(t, r, s)...)
		rt.publishedCRLs = r.published
		faults = append(faults, rt.checkCRLs(r.dir, rt.idleTimeout)...)
		r.published = rt.publishedCRLs
		r.before = s
		if len(faults) > 0 {
			return append(faults, "as seen at "+r.name)
		}
	}
	return faults
}

// checkOCSPWithin is checkOCSP of a server that may still have to learn what others have changed.
func (rt *replicaTest) checkOCSPWithin(t *testing.T, r *replica, s *snapshot) []string {
	t.Helper()
	for end := time.Now().Add(maxStaleness); ; time.Sleep(20 * time.Millisecond) {
		if faults := rt.checkOCSP(t, r.process, s); len(faults) == 0 || time.Now().After(end) {
			return faults
		}
	}
}

// stop ends all servers, and checks that a store that is recreated from an archive has the same records.
func (rt *replicaTest) stop(t *testing.T) {
	t.Helper()
	for _, r := range rt.replicas {
		r.process.stop(t)
	}
	last := rt.replicas[len(rt.replicas)-1] // its archive has the entries of those that were stopped before it
	if faults := rt.checkReplay(t, last.dir); len(faults) > 0 {
		t.Fatal(report(faults))
	}
}
