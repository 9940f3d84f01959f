package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/internal/bench/enrollment"
	"github.com/brevet-pki/brevet/internal/bench/fill"
	"github.com/brevet-pki/brevet/internal/bench/floor"
	"github.com/brevet-pki/brevet/internal/bench/pace"
	"github.com/brevet-pki/brevet/internal/bench/testbed"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/devca"
)

// maxCallers limits --callers, and with it the connections of a measurement.
const maxCallers = 1024

// minRound is the minimum duration of a measurement in one round.
const minRound = 20 * time.Millisecond

// floorReach is the share that a valid floor must reach of its bound, the rate at which all cores perform its single
// operations. A slower floor waited for something else, and is too low to compare with.
const floorReach = 0.85

// issueBench measures how fast a whole server issues certificates.
type issueBench struct {
	commonFlags
	callers        int
	newConnections bool
	pace           pace.Pace
	preload        int
	fill           func(context.Context, devca.CA) error // if not nil, prepares the store instead of preload
	bulk           bool
	count          int
}

func newIssue() *cobra.Command {
	b := issueBench{commonFlags: commonFlags{rounds: 3}}
	cmd := &cobra.Command{
		Use: "issue", Short: "Measure how many certificates a second a server issues", Args: cobra.NoArgs,
		Long: "issue starts a server process with a new HSM and a new store in a temporary directory. Operators request certificates\n" +
			"for devices without pause, each over one connection. Alternating with that, it measures three more rates:\n" +
			"the floor, which is the same work without any code of Brevet and without RPC; the HSM alone; and bare RPCs, which are\n" +
			"unary RPCs over mutual TLS with messages of the same size from the same callers. Each of them takes --duration, too.\n" +
			"composed_ratio is the server's rate divided by the rate that floor and bare RPC allow together,\n" +
			"1 / (1/floor + 1/RPC). Load and floor share this machine's cores with the server. Set TMPDIR to measure another disk.\n" +
			"With --store postgres server and floor each have a database of a PostgreSQL server that the measurement starts.\n\n" +
			"With --callers 1 it measures the latencies that a certificate needs at least, each on the otherwise idle machine:\n" +
			"p50_bound_us is two durable SQLite transactions, one HSM signature, two P-256 verifications, and a bare RPC.\n" +
			"p50_bound_ratio is p50_ms divided by that bound.\n\n" +
			"With --new-connections each certificate needs a new TLS connection. handshake_ratio is the rate of certificates\n" +
			"divided by the rate of empty RPCs over new connections. With --hsm-rate the HSM makes at most that many signatures per\n" +
			"second, each after --hsm-latency. hsm_share is the share of that rate that certificates reach; open_loop_p99_ms is the\n" +
			"latency of a certificate when requests come at random times at 80 % of that rate. With --bulk each caller is a stream\n" +
			"of an operator, with requests for 64 devices in progress.",
	}
	f := cmd.Flags()
	f.IntVar(&b.callers, "callers", 16, "concurrent connections of operators")
	f.BoolVar(&b.newConnections, "new-connections", false, "a new connection for each certificate")
	f.BoolVar(&b.bulk, "bulk", false, "callers are streams, each with 64 requests in progress")
	f.IntVar(&b.count, "count", 0, "with --bulk, certificates to issue in each round, instead of --duration")
	f.IntVar(&b.preload, "preload", 0, "certificates in the store at the start; a server with an empty store is measured alternately")
	b.storeFlag(cmd)
	paceFlags(cmd, &b.pace)
	b.timed(cmd, "10s", "how long certificates are issued, in all rounds together")
	configFlag(cmd)
	b.measures(cmd, b.check, b.run, "MEASURE", "MEDIAN", "MIN", "MAX")
	return cmd
}

func (b *issueBench) check() error {
	if _, err := b.round(minRound); err != nil {
		return err
	}
	if b.callers < 1 || b.callers > maxCallers {
		return cli.WrongUse(fmt.Sprintf("--callers %d: give 1 to %d", b.callers, maxCallers))
	}
	if err := b.pace.Check(); err != nil {
		return cli.WrongArgument(err)
	}
	if b.pace.Latency > 0 && b.pace.Rate == 0 {
		return cli.WrongUse("--hsm-latency goes with --hsm-rate")
	}
	given := 0
	for _, is := range []bool{b.newConnections, !b.pace.IsZero(), b.preload != 0, b.bulk} {
		if is {
			given++
		}
	}
	if given > 1 || b.preload < 0 {
		return cli.WrongUse("--new-connections, --hsm-rate, --preload and --bulk measure different things: give one of them")
	}
	if b.store == storePostgres && b.preload > 0 {
		return cli.WrongUse("--preload fills SQLite only")
	}
	if b.count < 0 || b.count > 0 && (!b.bulk || b.count < b.callers*requestsInFlight) {
		return cli.WrongUse(fmt.Sprintf("--count goes with --bulk, and is at least %d for each caller", requestsInFlight))
	}
	return nil
}

// mode is one way to request certificates, with the additional fields that it measures.
type mode struct {
	put           func(ctx context.Context, p *party, d time.Duration) (load, error)
	options       []string // of the server
	fields        []string
	measure       func(ctx context.Context, r *issueRig, d time.Duration, values map[string]float64) error
	newConnection bool // each certificate needs a new connection
	counted       bool // a round is a number of certificates, without a warm-up
}

func (b *issueBench) mode() mode {
	switch {
	case b.newConnections:
		return mode{newConnection: true, put: each((*caller).issueOverNewConnection), fields: []string{"handshakes_per_second", "handshake_ratio"}, measure: measureHandshakes}
	case !b.pace.IsZero():
		return mode{
			put: each((*caller).issue), fields: []string{"hsm_share", "open_loop_p99_ms", "open_loop_latencies"}, measure: b.measureArrivals,
			options: []string{"--hsm-rate", decimal(b.pace.Rate), "--hsm-latency", b.pace.Latency.String()},
		}
	case b.preload > 0:
		return mode{put: each((*caller).issue), fields: []string{"growth_ratio", "empty_certificates_per_second"}, measure: measureEmpty}
	case b.bulk:
		return mode{measure: measureNothing, counted: b.count > 0, put: func(ctx context.Context, p *party, d time.Duration) (load, error) {
			return putBulkLoad(ctx, p.streams, b.count, d)
		}}
	case b.callers == 1: // with more callers, each waits for the others, so p50 has no such bound
		return mode{put: each((*caller).issue), fields: boundFields, measure: measureBound}
	default:
		return mode{put: each((*caller).issue), measure: measureNothing}
	}
}

// each returns a load in which all callers repeat an RPC.
func each(call func(*caller, context.Context) (time.Duration, error)) func(context.Context, *party, time.Duration) (load, error) {
	return func(ctx context.Context, p *party, d time.Duration) (load, error) {
		return putLoad(ctx, p.callers, call, d)
	}
}

func measureNothing(context.Context, *issueRig, time.Duration, map[string]float64) error { return nil }

// measureHandshakes makes empty RPCs over new connections.
func measureHandshakes(ctx context.Context, r *issueRig, d time.Duration, values map[string]float64) error {
	l, err := putLoad(ctx, r.callers, (*caller).checkOverNewConnection, d)
	values["handshakes_per_second"], values["handshake_ratio"] = l.rate, values["certificates_per_second"]/l.rate
	return err
}

// measureEmpty requests certificates from the server whose store was empty at the start.
func measureEmpty(ctx context.Context, r *issueRig, d time.Duration, values map[string]float64) error {
	l, err := r.put(ctx, r.empty, d)
	values["empty_certificates_per_second"], values["growth_ratio"] = l.rate, values["certificates_per_second"]/l.rate
	return err
}

// openShare is the rate of requests in the open loop, as a share of the HSM's rate.
const openShare = 0.8

// measureArrivals sends requests at random times, and measures their latencies.
func (b *issueBench) measureArrivals(ctx context.Context, r *issueRig, d time.Duration, values map[string]float64) error {
	l, err := arrive(ctx, r.callers, openShare*b.pace.Rate, d)
	if over := new(overrun); errors.As(err, &over) {
		return fmt.Errorf("%w; give a --hsm-rate of %.0f or less, which this machine can handle", err, over.reached)
	}
	values["hsm_share"] = values["certificates_per_second"] / b.pace.Rate
	values["open_loop_p99_ms"] = l.quantile(0.99)
	values["open_loop_latencies"] = l.quantile(0.99) / max(1, float64(b.pace.Latency)/float64(time.Millisecond))
	return err
}

// issueRig holds everything that brevet-bench issue measures.
type issueRig struct {
	mode
	*bench
	*party
	empty      *party // with --preload, the server with an empty store; else nil
	floor      *floor.Floor
	rpc        *bareRPC
	goroutines int // with which the floor is fastest
}

// party is a measured server with its callers.
type party struct {
	server  *testbed.Server
	callers []*caller
	streams []*bulkCaller // with --bulk, instead of callers
}

func (p *party) close() error {
	if p == nil {
		return nil
	}
	var err error
	for _, c := range p.callers {
		err = errors.Join(err, c.close())
	}
	for _, o := range p.streams {
		err = errors.Join(err, o.close())
	}
	if p.server != nil {
		err = errors.Join(err, p.server.Stop())
	}
	return err
}

// issueFields are the fields that each round measures, in the order of the output.
var issueFields = []string{
	"certificates_per_second", "p50_ms", "p99_ms", "hsm_signatures_per_second", "floor_per_second", "floor_ratio", "rpc_per_second", "composed_ratio",
	"floor_reach", "rss_mib", "bytes_per_certificate", "server_cpu_us", "load_cpu_us", "floor_cpu_us",
}

func (b *issueBench) run(ctx context.Context, env *bench) (err error) {
	d, err := b.round(minRound)
	if err != nil {
		return err
	}
	rig := &issueRig{mode: b.mode(), bench: env}
	defer func() { err = errors.Join(err, rig.close()) }()
	if rig.party, err = b.open(ctx, rig, "server", b.preload); err != nil {
		return err
	}
	if b.preload > 0 {
		if rig.empty, err = b.open(ctx, rig, "empty", 0); err != nil {
			return err
		}
	}
	if rig.floor, err = env.Floor(ctx); err != nil {
		return err
	}
	if rig.rpc, err = rig.openBareRPC(ctx, b.callers); err != nil {
		return err
	}
	measured, err := rig.rounds(ctx, b.rounds, d)
	if err != nil {
		return err
	}
	return b.report(rig, measured)
}

func (r *issueRig) close() error {
	var err error
	if r.floor != nil {
		err = r.floor.Close()
	}
	return errors.Join(err, r.rpc.close(), r.party.close(), r.empty.close())
}

// open starts a server on a store with some certificates, and connects its callers.
func (b *issueBench) open(ctx context.Context, rig *issueRig, name string, certificates int) (p *party, err error) {
	p = &party{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
			p = nil
		}
	}()
	rig.Logf("starting the server to measure")
	d, err := rig.NewDev(ctx, name)
	if err != nil {
		return p, err
	}
	if b.fill != nil {
		if err := rig.PrepareStore(ctx, d, func() error { return b.fill(ctx, d) }); err != nil {
			return p, err
		}
	}
	database, err := rig.Database(ctx, name)
	if err != nil {
		return p, err
	}
	if certificates > 0 {
		if err := rig.FillStore(ctx, d, fill.Spec{Certificates: certificates, PerIdentity: fill.PerIdentity}); err != nil {
			return p, err
		}
	}
	if p.server, err = rig.StartServerOn(ctx, d, database, rig.options...); err != nil {
		return p, err
	}
	operator, err := enroll.ReadPair(p.server.Dev.OperatorDir())
	if err != nil {
		return p, err
	}
	rig.Logf("connecting %d callers", b.callers)
	if b.bulk {
		p.streams, err = openStreams(ctx, operator, b.callers)
		return p, err
	}
	p.callers, err = openCallers(ctx, operator, b.callers)
	return p, err
}

// applyPolicy replaces the policy of the measured server.
func (r *issueRig) applyPolicy(ctx context.Context, document []byte) error {
	if err := enrollment.ApplyPolicy(ctx, r.callers[0].conn, document); err != nil {
		return fmt.Errorf("apply the policy of the measurement: %w", enroll.CallError(r.server.Dev.GRPC, err))
	}
	return nil
}

func (r *issueRig) rounds(ctx context.Context, n int, d time.Duration) (rounds, error) {
	var err error
	if !r.counted { // a warm-up: files and caches grow to their size
		if _, err = r.put(ctx, r.party, d); err != nil {
			return nil, err
		}
	}
	if r.goroutines, err = r.floor.Best(ctx, d); err != nil {
		return nil, err
	}
	r.Logf("the floor is fastest with %d goroutines", r.goroutines)
	measured := rounds{}
	for i := range n {
		values, err := r.round(ctx, d)
		if err != nil {
			return nil, err
		}
		measured.add(values)
		r.Logf("round %d of %d: %.0f certificates a second, floor %.0f", i+1, n, values["certificates_per_second"], values["floor_per_second"])
	}
	return measured, nil
}

// round measures everything once. It reads the size of the server's files after the floor, because the server has
// archived its log by then.
func (r *issueRig) round(ctx context.Context, d time.Duration) (map[string]float64, error) {
	before, err := r.server.Stored(ctx)
	if err != nil {
		return nil, err
	}
	values := map[string]float64{}
	n, err := r.load(ctx, d, values)
	if err != nil {
		return nil, err
	}
	if values["hsm_signatures_per_second"], err = signatureRate(ctx, r.Key, r.Like.HSM.Sessions, d); err != nil {
		return nil, err
	}
	if err := r.compare(ctx, d, values); err != nil {
		return nil, err
	}
	if err := r.compose(ctx, d, values); err != nil {
		return nil, err
	}
	after, err := r.server.Stored(ctx)
	if err != nil {
		return nil, err
	}
	values["bytes_per_certificate"] = (after - before) / float64(n)
	return values, r.measure(ctx, r, d, values)
}

// load requests certificates for d, and returns how many were issued.
func (r *issueRig) load(ctx context.Context, d time.Duration, values map[string]float64) (int, error) {
	before, err := r.cpu()
	if err != nil {
		return 0, err
	}
	l, err := r.put(ctx, r.party, d)
	if err != nil {
		return 0, err
	}
	after, err := r.cpu()
	if err != nil {
		return 0, err
	}
	n := len(l.latencies)
	values["certificates_per_second"], values["p50_ms"], values["p99_ms"] = l.rate, l.quantile(0.5), l.quantile(0.99)
	if r.UsesPostgres() {
		values["postgres_cpu_us"] = micros(after.postgres-before.postgres) / float64(n)
	}
	values["server_cpu_us"] = micros(after.server-before.server) / float64(n)
	values["load_cpu_us"] = micros(after.load-before.load) / float64(n)
	values["rss_mib"], err = r.server.ResidentMiB()
	return n, err
}

// compare measures the floor, and compares the server's rate with it.
func (r *issueRig) compare(ctx context.Context, d time.Duration, values map[string]float64) error {
	cost, err := r.floor.Cost(ctx, d/3)
	if err != nil {
		return err
	}
	before, err := ownCPU()
	if err != nil {
		return err
	}
	rate, err := r.floor.Rate(ctx, r.goroutines, d)
	if err != nil {
		return err
	}
	after, err := ownCPU()
	if err != nil {
		return err
	}
	r.Logf("floor, one certificate: check %s, sign %s, write %s", cost.Check, cost.Sign, cost.Write)
	values["floor_per_second"], values["floor_ratio"] = rate, values["certificates_per_second"]/rate
	values["floor_reach"], values["floor_cpu_us"] = rate/cost.Bound(), micros(after-before)/(rate*d.Seconds())
	return nil
}

// compose measures the bare RPC, and compares the server's rate with the rate that floor and bare RPC allow together.
func (r *issueRig) compose(ctx context.Context, d time.Duration, values map[string]float64) error {
	exchange := (*caller).exchange
	if r.newConnection {
		exchange = (*caller).exchangeOverNewConnection
	}
	l, err := putLoad(ctx, r.rpc.callers, exchange, d)
	if err != nil {
		return fmt.Errorf("bare RPC: %w", err)
	}
	values["rpc_per_second"], values["bound_rpc_us"] = l.rate, 1000*l.quantile(0.5)
	values["composed_ratio"] = values["certificates_per_second"] * (1/values["floor_per_second"] + 1/l.rate)
	return nil
}

// spentCPU is the processor time that the server and this process have used so far. If other programs use the machine,
// the processor time of a certificate is a better measure than the rate.
type spentCPU struct{ server, load, postgres time.Duration }

func (r *issueRig) cpu() (c spentCPU, err error) {
	if c.server, err = r.server.CPU(); err != nil {
		return c, err
	}
	if c.postgres, err = r.PostgresCPU(); err != nil {
		return c, err
	}
	c.load, err = ownCPU()
	return c, err
}

// ownCPU returns the processor time that this process has used so far.
func ownCPU() (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("processor time was not measured: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// floorCounts reports whether a floor with these values of floor_reach is valid. It logs a warning if it is not.
func (b *bench) floorCounts(values []float64) (bool, error) {
	reach, err := spreadOf("floor_reach", values)
	if err != nil {
		return false, err
	}
	if reach.Median < floorReach {
		b.Logf("warning: the floor reaches %.2f of its bound, less than %.2f, and is not valid: floor_ratio is too high; "+
			"stop other programs and measure longer; if two processors are threads of one core, the floor stays below that", reach.Median, floorReach)
	}
	return reach.Median >= floorReach, nil
}

func (b *issueBench) report(rig *issueRig, measured rounds) error {
	counts, err := rig.floorCounts(measured["floor_reach"])
	if err != nil {
		return err
	}
	fields := slices.Concat(issueFields, rig.fields)
	if rig.UsesPostgres() {
		fields = append(fields, "postgres_cpu_us")
	}
	return rig.report(map[string]any{
		"callers": b.callers, "rounds": b.rounds, "floor_goroutines": rig.goroutines, "floor_counts": counts,
	}, measured, fields)
}
