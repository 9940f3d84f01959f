package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/internal/bench/fill"
	"github.com/brevet-pki/brevet/internal/bench/fleet"
	"github.com/brevet-pki/brevet/internal/bench/pace"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/pki"
)

const (
	minLifetime  = 10 * time.Second
	fleetCallers = 16 // connections of an operator that measure the rate of the server
	fleetRounds  = 3 * time.Second
	// perDevice is about how long the certificate and the credential directory of a device take to make and to read.
	perDevice = 3 * time.Millisecond
	// maxFleetRatio is the whole_ratio at which a measurement gives up, and fleetGrace the time that it adds.
	maxFleetRatio, fleetGrace = 10, 15 * time.Minute
)

// fleetBench measures how a fleet of agents returns after an outage.
type fleetBench struct {
	commonFlags
	agents   int
	lifetime string
	outages  []int // in hours
	dir      string
	pace     pace.Pace

	life time.Duration
}

func newFleet() *cobra.Command {
	b := fleetBench{commonFlags: commonFlags{rounds: 1}}
	cmd := &cobra.Command{
		Use: "fleet", Short: "Measure how a fleet of agents returns after an outage", Args: cobra.NoArgs,
		Long: "fleet starts a server process with a new HSM and a new store in a temporary directory. It fills the store with a\n" +
			"certificate for each of --agents devices, of the age that it has after an outage. Then all agents start at once, as\n" +
			"after a power cut. They are those of brevet-agent, with a credential directory and an address of their own in 127.0.0.0/8\n" +
			"each. They renew certificates that are valid, and recover expired ones. They share this machine's cores with the server.\n\n" +
			"rate is the number of certificates that the server issues for an operator in a second, with an HSM of --hsm-rate.\n" +
			"whole_seconds is the time until every agent has a new certificate whose renewal was overdue, and whole_ratio that time\n" +
			"divided by overdue / rate. lost counts the agents whose certificate was valid, and expired before there was a new one;\n" +
			"lost_avoidably those of them that a server would have saved which issues certificates at rate, first those that expire\n" +
			"first, of the agents that have made a request. order is the rank correlation of expiry and renewal: 1 if certificates that expire first are renewed first, and 0\n" +
			"without such certificates. rss_mib is the highest resident memory of the server. After several --rounds, counts and order\n" +
			"are those of the worst one.",
	}
	f := cmd.Flags()
	f.IntVar(&b.agents, "agents", 100_000, "devices with an agent")
	f.StringVar(&b.lifetime, "lifetime", "24h", "lifetime of the certificates; outages of --outages hours are shortened in proportion to 24 hours")
	f.IntSliceVar(&b.outages, "outages", []int{12, 24}, "hours of each outage, 1 to 48")
	f.StringVar(&b.dir, "agents-directory", "", "where the credential directories are, such as /dev/shm (default: TMPDIR, on the disk of the server)")
	paceFlags(cmd, &b.pace)
	b.pace.Rate = 200
	cmd.Flags().Lookup("hsm-rate").DefValue = "200"
	b.measures(cmd, b.check, b.run, "OUTAGE HOURS", "AGENTS", "OVERDUE", "EXPIRED", "RATE", "WHOLE SECONDS", "RATIO", "LOST", "AVOIDABLY", "ORDER", "RSS MIB")
	return cmd
}

func (b *fleetBench) check() (err error) {
	if b.agents < 1 || b.agents > fleet.MaxAgents {
		return cli.WrongUse(fmt.Sprintf("--agents %d: give 1 to %d", b.agents, fleet.MaxAgents))
	}
	if b.life, err = pki.ParseDuration(b.lifetime); err != nil {
		return cli.WrongFlag("--lifetime", err)
	}
	if b.life < minLifetime {
		return cli.WrongUse(fmt.Sprintf("--lifetime %s: give at least %s", b.lifetime, minLifetime))
	}
	for _, hours := range b.outages {
		if hours < 1 || hours > 48 {
			return cli.WrongUse(fmt.Sprintf("--outages %d: give 1 to 48 hours", hours))
		}
	}
	if err := b.pace.Check(); err != nil {
		return cli.WrongArgument(err)
	}
	return nil
}

// fleetFields are the fields that each round measures for each outage, and fleetCounts those that may be zero.
var (
	fleetFields = []string{"rate", "whole_seconds", "whole_ratio", "rss_mib", "server_cpu_us", "agent_kib"}
	fleetCounts = []string{"overdue", "expired", "lost", "lost_avoidably", "requests", "refused", "unreachable", "failed"}
)

func (b *fleetBench) run(ctx context.Context, env *bench) error {
	if b.dir == "" {
		b.dir = os.TempDir()
	}
	scratch, err := env.Scratch(b.dir)
	if err != nil {
		return err
	}
	var objects []map[string]any
	var rows [][]string
	for _, hours := range b.outages {
		measured, counts, worst := rounds{}, map[string]int{}, 1.0
		for n := range b.rounds {
			name := fmt.Sprintf("outage-%d-%d", hours, n)
			r := &fleetRig{bench: env, fleetBench: b, dir: filepath.Join(scratch, name)}
			if err := r.round(ctx, name, time.Duration(float64(b.life)*float64(hours)/24)); err != nil {
				return fmt.Errorf("outage of %d hours: %w", hours, err)
			}
			measured.add(r.values)
			for name, v := range r.counts {
				counts[name] = max(counts[name], v)
			}
			worst = min(worst, r.outcome.Order)
			env.Logf("round %d of %d: %d h, %d agents whole after %.0f s, ratio %.2f, %d lost, %d of them avoidably", n+1, b.rounds, hours,
				r.outcome.Overdue, r.values["whole_seconds"], r.values["whole_ratio"], r.outcome.Lost, r.outcome.Avoidable)
			if err := os.RemoveAll(r.dir); err != nil {
				return err
			}
		}
		object := map[string]any{"outage_hours": hours, "order": math.Round(worst*1000) / 1000}
		for _, name := range fleetCounts {
			object[name] = counts[name]
		}
		if _, err := measured.describe(object, fleetFields); err != nil {
			return fmt.Errorf("outage of %d hours: %w", hours, err)
		}
		objects = append(objects, object)
		row := []string{strconv.Itoa(hours), strconv.Itoa(b.agents)}
		for _, name := range []string{"overdue", "expired", "rate", "whole_seconds", "whole_ratio", "lost", "lost_avoidably", "order", "rss_mib"} {
			row = append(row, fmt.Sprint(object[name]))
		}
		rows = append(rows, row)
	}
	return env.Emit(map[string]any{"agents": b.agents, "lifetime": b.lifetime, "hsm_rate": b.pace.Rate, "rounds": b.rounds, "outages": objects}, rows)
}

// fleetRig is a server, and the agents that return to it.
type fleetRig struct {
	*bench
	*fleetBench
	dir     string // of the credential directories
	party   party
	maker   *fleet.Maker
	outcome fleet.Outcome
	values  map[string]float64
	counts  map[string]int
}

func (r *fleetRig) round(ctx context.Context, name string, outage time.Duration) (err error) {
	defer func() { err = errors.Join(err, r.party.close()) }()
	if err := r.open(ctx, name, outage); err != nil {
		return err
	}
	rate, err := putLoad(ctx, r.party.callers, (*caller).issue, fleetRounds)
	if err != nil {
		return err
	}
	r.values = map[string]float64{"rate": rate.rate}
	r.Logf("the server issues %.0f certificates a second; starting %d agents", rate.rate, r.agents)
	processes, err := fleet.Start(ctx, r.Testbed, fleet.Options{Dir: r.dir, Agents: r.agents, Lifetime: r.life})
	if err != nil {
		return err
	}
	if err := rest(ctx, time.Until(r.maker.Return)); err != nil {
		return errors.Join(err, processes.Stop())
	}
	return r.measure(ctx, processes)
}

// open fills a server's store and makes the credential directories, starts the server, and allows recoveries.
func (r *fleetRig) open(ctx context.Context, name string, outage time.Duration) error {
	r.Logf("starting the server to measure")
	d, err := r.NewDevSince(ctx, name, time.Now().Add(-outage-2*r.life))
	if err != nil {
		return err
	}
	err = r.PrepareStore(ctx, d, func() error {
		like, err := enroll.ReadPair(d.OperatorDir())
		if err != nil {
			return err
		}
		r.maker = &fleet.Maker{
			Dir: r.dir, Server: d.GRPC, Like: like, Lifetime: r.life, Outage: outage,
			Return: time.Now().Add(3*fleetRounds + time.Duration(r.agents)*perDevice),
		}
		r.Logf("making %d devices that return after %s", r.agents, outage)
		return fill.Certificates(ctx, d, fill.Spec{Certificates: r.agents, Devices: &fill.Devices{
			Key: r.Key, Lifetime: r.life, IssuedAt: r.maker.IssuedAt, Keep: r.maker.Keep,
		}}, r.Logf)
	})
	if err != nil {
		return err
	}
	if r.party.server, err = r.StartServer(ctx, d, "--hsm-rate", decimal(r.pace.Rate), "--hsm-latency", r.pace.Latency.String()); err != nil {
		return err
	}
	operator, err := enroll.ReadPair(d.OperatorDir())
	if err != nil {
		return err
	}
	if r.party.callers, err = openCallers(ctx, operator, fleetCallers); err != nil {
		return err
	}
	return r.allowRecoveries(ctx)
}

// allowRecoveries applies a policy that lets devices recover.
func (r *fleetRig) allowRecoveries(ctx context.Context) error {
	document, err := yaml.Marshal(map[string]any{
		"rules": []map[string]any{
			{"name": "tokens", "evidence": []string{"token"}}, {"name": "recoveries", "evidence": []string{"recovery"}},
		},
		"recovery": map[string]any{"grace": "72h", "times": 100},
	})
	if err != nil {
		return err
	}
	rig := issueRig{party: &r.party}
	return rig.applyPolicy(ctx, document)
}

// measure lets the agents begin, waits until all are whole, and evaluates how they returned.
func (r *fleetRig) measure(ctx context.Context, processes *fleet.Processes) error {
	before, err := r.party.server.CPU()
	if err != nil {
		return errors.Join(err, processes.Stop())
	}
	begin := time.Now()
	expected := time.Duration(float64(r.agents) / r.values["rate"] * float64(time.Second))
	events, report, err := processes.Run(ctx, r.maker.Devices(), begin, maxFleetRatio*expected+fleetGrace, r.Logf)
	if err != nil {
		return err
	}
	after, err := r.party.server.CPU()
	if err != nil {
		return err
	}
	if r.outcome, err = fleet.Evaluate(r.maker.Devices(), events, begin, r.values["rate"]); err != nil {
		return err
	}
	if report.Invalid > 0 {
		return fmt.Errorf("%d agents have no valid certificate at the end; the last error: %s", report.Invalid, report.Error)
	}
	if r.outcome.Overdue == 0 {
		return errors.New("no renewal was overdue after the outage: give more --agents")
	}
	o := r.outcome
	r.values["whole_seconds"], r.values["whole_ratio"] = o.Whole.Seconds(), o.Whole.Seconds()*r.values["rate"]/float64(o.Overdue)
	r.values["server_cpu_us"], r.values["agent_kib"] = micros(after-before)/float64(o.Overdue), report.AgentKiB
	r.counts = map[string]int{
		"overdue": o.Overdue, "expired": o.Expired, "lost": o.Lost, "lost_avoidably": o.Avoidable, "requests": int(report.Calls),
		"refused": int(report.Refused), "unreachable": int(report.Unreachable), "failed": int(report.Failed),
	}
	r.values["rss_mib"], err = r.party.server.PeakMiB()
	return err
}

// newAgents returns the hidden command that runs agents in a process of its own.
func newAgents() *cobra.Command {
	var o fleet.Options
	cmd := &cobra.Command{
		Use: "agents", Short: "Run agents for bench fleet", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return fleet.Run(cmd.Context(), o, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Dir, "directory", "", "directory of the credential directories")
	f.IntVar(&o.First, "first", 0, "number of the first device")
	f.IntVar(&o.Agents, "agents", 0, "number of devices")
	f.DurationVar(&o.Lifetime, "lifetime", 0, "requested lifetime of certificates")
	return cmd
}
