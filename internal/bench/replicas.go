package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/internal/bench/pace"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/devca"
)

// replicasBench measures two servers that share a store on PostgreSQL.
type replicasBench struct {
	commonFlags
	callers int
	pace    pace.Pace
}

func newReplicas() *cobra.Command {
	b := replicasBench{commonFlags: commonFlags{rounds: 3}}
	cmd := &cobra.Command{
		Use: "replicas", Short: "Measure two servers that share a store on PostgreSQL", Args: cobra.NoArgs,
		Long: "replicas starts PostgreSQL and two server processes with one HSM in a temporary directory. Operators request\n" +
			"certificates without pause, each over one connection. Each of these takes --duration:\n" +
			"one_issuer_per_second is the rate of the first server alone, two_issuers_per_second that of both with as many callers at\n" +
			"each, and with_two_issuers_ratio the second divided by the first. Each server has an HSM of --hsm-rate.\n" +
			"revoked_elsewhere_p99_ms and …_max_ms are how long the second server's OCSP says good after the first has revoked a\n" +
			"certificate and responded, without load, and loaded_… the same while both issue.\n" +
			"killed_gap_seconds is the longest time without a certificate for a caller that repeats failed requests at the other\n" +
			"server, when the first server is killed. The server starts again before the next round.",
	}
	cmd.Flags().IntVar(&b.callers, "callers", 64, "concurrent connections of operators to each server")
	paceFlags(cmd, &b.pace)
	b.timed(cmd, "45s", "how long each of the measurements takes, in all rounds together")
	b.measures(cmd, b.check, b.run, "MEASURE", "MEDIAN", "MIN", "MAX")
	b.store = storePostgres
	cmd.Flags().StringVar(&b.store, "store", storePostgres, "postgres, the only store that several servers can share")
	return cmd
}

func (b *replicasBench) check() error {
	if b.store != storePostgres {
		return cli.WrongUse("two servers share no other store: give --store " + storePostgres)
	}
	if b.callers < 1 || b.callers > maxCallers {
		return cli.WrongUse(fmt.Sprintf("--callers %d: give 1 to %d", b.callers, maxCallers))
	}
	if _, err := b.round(minReplicasRound); err != nil {
		return err
	}
	if err := b.pace.Check(); err != nil {
		return cli.WrongArgument(err)
	}
	return nil
}

// minReplicasRound is the minimum duration of a measurement in one round.
const minReplicasRound = time.Second

// replicasFields are the fields that each round measures, in the order of the output.
var replicasFields = []string{
	"one_issuer_per_second", "two_issuers_per_second", "with_two_issuers_ratio",
	"revoked_elsewhere_p50_ms", "revoked_elsewhere_p99_ms", "revoked_elsewhere_max_ms",
	"loaded_revoked_elsewhere_p50_ms", "loaded_revoked_elsewhere_p99_ms", "loaded_revoked_elsewhere_max_ms", "killed_gap_seconds",
}

// replicasRig is two servers with one issuing CA and one store, and callers of each.
type replicasRig struct {
	*bench
	options []string // of the servers
	store   string   // connection string
	devs    [2]devca.CA
	parties [2]*party
}

func (b *replicasBench) run(ctx context.Context, env *bench) (err error) {
	d, err := b.round(minReplicasRound)
	if err != nil {
		return err
	}
	rig := &replicasRig{bench: env}
	if !b.pace.IsZero() {
		rig.options = []string{"--hsm-rate", decimal(b.pace.Rate), "--hsm-latency", b.pace.Latency.String()}
	}
	defer func() { err = errors.Join(err, rig.parties[0].close(), rig.parties[1].close()) }()
	if err := rig.open(ctx, b.callers); err != nil {
		return err
	}
	measured := rounds{}
	for i := range b.rounds {
		values, err := rig.round(ctx, d)
		if err != nil {
			return err
		}
		measured.add(values)
		env.Logf("round %d of %d: two issuers against one %.2f, revoked elsewhere after %.0f ms, %.1f s without a certificate after a kill",
			i+1, b.rounds, values["with_two_issuers_ratio"], values["loaded_revoked_elsewhere_p99_ms"], values["killed_gap_seconds"])
	}
	return env.report(map[string]any{"callers": b.callers, "rounds": b.rounds, "hsm_rate": b.pace.Rate}, measured, replicasFields)
}

// open starts both servers, and connects callers to each.
func (r *replicasRig) open(ctx context.Context, callers int) (err error) {
	if r.store, err = r.Database(ctx, "servers"); err != nil {
		return err
	}
	if r.devs[0], err = r.NewDev(ctx, "a"); err != nil {
		return err
	}
	if err := r.start(ctx, 0, callers); err != nil {
		return err
	}
	if r.devs[1], err = r.AnotherDev(ctx, r.devs[0], "b"); err != nil {
		return err
	}
	return r.start(ctx, 1, callers)
}

// start starts a server, and connects callers to it.
func (r *replicasRig) start(ctx context.Context, i, callers int) (err error) {
	r.Logf("starting the server %s, and connecting %d callers", filepath.Base(r.devs[i].Dir), callers)
	p := &party{}
	r.parties[i] = p
	if p.server, err = r.StartServerOn(ctx, r.devs[i], r.store, r.options...); err != nil {
		return err
	}
	operator, err := r.operator(i)
	if err != nil {
		return err
	}
	p.callers, err = openCallers(ctx, operator, callers)
	for n, c := range p.callers { // a key belongs to one device
		c.devices.prefix = fmt.Sprintf("device/%s-%d-%d", filepath.Base(r.devs[i].Dir), time.Now().UnixNano(), n+1)
	}
	return err
}

// operator returns the operator's credential for a server.
func (r *replicasRig) operator(i int) (*enroll.Pair, error) {
	operator, err := enroll.ReadPair(r.devs[i].OperatorDir())
	if err != nil {
		return nil, err
	}
	operator.Origin.Server = r.devs[i].GRPC
	return operator, nil
}

func (r *replicasRig) round(ctx context.Context, d time.Duration) (map[string]float64, error) {
	values := map[string]float64{}
	first, second := r.parties[0].callers, r.parties[1].callers
	both := slices.Concat(first, second)
	if _, err := putLoad(ctx, both, (*caller).issue, d/3); err != nil { // a warm-up
		return nil, err
	}
	one, err := putLoad(ctx, first, (*caller).issue, d)
	if err != nil {
		return nil, err
	}
	two, err := putLoad(ctx, both, (*caller).issue, d)
	if err != nil {
		return nil, err
	}
	values["one_issuer_per_second"], values["two_issuers_per_second"], values["with_two_issuers_ratio"] = one.rate, two.rate, two.rate/one.rate
	if err := r.revocations(ctx, "", d, values); err != nil {
		return nil, err
	}
	var ended atomic.Bool
	loaded := make(chan error, 1)
	go func() {
		_, err := putLoadWhile(ctx, both, (*caller).issue, func() bool { return !ended.Load() })
		loaded <- err
	}()
	err = r.revocations(ctx, "loaded_", d, values)
	ended.Store(true)
	if err := errors.Join(err, <-loaded); err != nil {
		return nil, err
	}
	gap, err := r.kill(ctx, d)
	values["killed_gap_seconds"] = gap.Seconds()
	return values, err
}

// kill kills the first server in the middle of a load, and returns the longest time without a certificate for a caller. It
// then starts the server again.
func (r *replicasRig) kill(ctx context.Context, d time.Duration) (time.Duration, error) {
	callers := len(r.parties[0].callers)
	gaps, errs := make([]time.Duration, callers), make([]error, callers)
	var all sync.WaitGroup
	begin := time.Now()
	for i := range callers {
		pair := []*caller{r.parties[0].callers[i], r.parties[1].callers[i]}
		all.Go(func() { gaps[i], errs[i] = insist(ctx, pair, i%2, func() bool { return time.Since(begin) < d }) })
	}
	err := rest(ctx, d/3)
	killed := r.parties[0].server
	if err == nil {
		err = killed.Kill()
	}
	all.Wait()
	if err := errors.Join(append(errs, err)...); err != nil {
		return 0, err
	}
	for _, c := range r.parties[0].callers {
		_ = c.close() // its server is gone
	}
	r.parties[0].server = nil
	return slices.Max(gaps), r.start(ctx, 0, callers)
}

// insistPause is the pause before a caller repeats a failed request at the other server.
const insistPause = 20 * time.Millisecond

// insistTimeout limits a request of a caller that repeats.
const insistTimeout = time.Second

// insist requests certificates while more returns true, from the servers of the callers: after a failed request from the next
// one. It returns the longest time between two certificates.
func insist(ctx context.Context, callers []*caller, at int, more func() bool) (gap time.Duration, err error) {
	last := time.Now()
	for more() {
		if ctx.Err() != nil {
			return gap, context.Cause(ctx)
		}
		limited, cancel := context.WithTimeout(ctx, insistTimeout)
		_, err = callers[at].issue(limited)
		cancel()
		if err != nil {
			at = (at + 1) % len(callers)
			if err := rest(ctx, insistPause); err != nil {
				return gap, err
			}
			continue
		}
		now := time.Now()
		gap, last = max(gap, now.Sub(last)), now
	}
	return max(gap, time.Since(last)), nil
}
