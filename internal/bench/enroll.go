package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/internal/bench/enrollment"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/devca"
	"github.com/brevet-pki/brevet/pki"
)

// enrollBench measures how fast a whole server enrolls devices, for each kind of evidence.
type enrollBench struct {
	commonFlags
	callers int
	kind    string
	kinds   []pki.EvidenceKind
}

func newEnroll() *cobra.Command {
	b := enrollBench{commonFlags: commonFlags{rounds: 3}}
	cmd := &cobra.Command{
		Use: "enroll", Short: "Measure how many devices a second a server enrolls, by kind of evidence", Args: cobra.NoArgs,
		Long: "enroll starts a server process as issue does. Devices enroll without pause, each for the first time and over a new TLS\n" +
			"connection. Their keys and evidence are made before the measurement. Callers have addresses of their own in 127.0.0.0/8,\n" +
			"because a server limits the concurrent enrollments of one address. The kinds of evidence are:\n\n" +
			"  token   a one-time token of an operator\n" +
			"  x5c     a factory certificate with one CA between it and the manufacturer's root; it responds to a challenge\n" +
			"  tpm     an attestation of a TPM with a certified P-256 endorsement key; it responds to a challenge. The TPM is\n" +
			"          simulated, because a real one needs 0.1 to 1 second for an attestation\n" +
			"  jwt     a JWT that is signed with ES256\n\n" +
			"Alternating with that, it measures three more rates: handshakes_per_second is the rate of the same connections and RPCs\n" +
			"to a server that does nothing else; floor_per_second is that of issue; checks_per_second is how often all cores do the\n" +
			"cryptography that the evidence needs. composed_ratio is the rate of enrollments divided by the rate that these allow\n" +
			"together, 1 / (1/handshakes + 1/floor + 1/checks).",
	}
	f := cmd.Flags()
	f.IntVar(&b.callers, "callers", 16, "devices that enroll concurrently")
	f.StringVar(&b.kind, "kind", "", "the only kind of evidence to measure: token, x5c, tpm or jwt (default: all)")
	b.timed(cmd, "6s", "how long devices of each kind enroll, in all rounds together")
	configFlag(cmd)
	b.measures(cmd, b.check, b.run, "KIND", "CERTIFICATES/S", "P50 MS", "P99 MS", "HANDSHAKES/S", "FLOOR/S", "CHECKS/S", "RATIO", "SERVER CPU US", "LOAD CPU US")
	return cmd
}

func (b *enrollBench) check() error {
	if _, err := b.round(minRound); err != nil {
		return err
	}
	if b.callers < 1 || b.callers > maxCallers {
		return cli.WrongUse(fmt.Sprintf("--callers %d: give 1 to %d", b.callers, maxCallers))
	}
	b.kinds = slices.DeleteFunc(slices.Clone(enrollment.Kinds), func(k pki.EvidenceKind) bool { return b.kind != "" && k.String() != b.kind })
	if len(b.kinds) == 0 {
		return cli.WrongUse(fmt.Sprintf("--kind %q: give token, x5c, tpm or jwt", b.kind))
	}
	return nil
}

// enrollFields are the fields that each round measures for each kind, in the order of the columns.
var enrollFields = []string{
	"certificates_per_second", "p50_ms", "p99_ms", "handshakes_per_second", "floor_per_second", "checks_per_second", "composed_ratio", "server_cpu_us", "load_cpu_us",
}

func (b *enrollBench) run(ctx context.Context, env *bench) (err error) {
	d, err := b.round(minRound)
	if err != nil {
		return err
	}
	rig := &issueRig{bench: env}
	var kinds []*enrollKind
	defer func() {
		for _, k := range kinds {
			err = errors.Join(err, k.bare.stop())
		}
		err = errors.Join(err, rig.close())
	}()
	one := issueBench{callers: 1} // an operator, who creates tokens
	if rig.party, err = one.open(ctx, rig, "server", 0); err != nil {
		return err
	}
	if rig.floor, err = env.Floor(ctx); err != nil {
		return err
	}
	if rig.goroutines, err = rig.floor.Best(ctx, d); err != nil {
		return err
	}
	issuers, err := enrollment.NewIssuers(rig.callers[0].conn, devca.DefaultTrustDomain)
	if err != nil {
		return err
	}
	if err := issuers.ApplyPolicy(ctx); err != nil {
		return fmt.Errorf("apply the policy of the measurement: %w", enroll.CallError(rig.server.Dev.GRPC, err))
	}
	for _, kind := range b.kinds {
		k, err := b.open(ctx, rig, issuers, kind)
		if err != nil {
			return fmt.Errorf("evidence of the kind %s: %w", kind, err)
		}
		kinds = append(kinds, k)
	}
	reach := rounds{}
	for n := range b.rounds {
		floor := map[string]float64{}
		if err := rig.compare(ctx, d, floor); err != nil {
			return err
		}
		reach.add(floor)
		for _, k := range kinds {
			if err := k.round(ctx, rig, d, floor["floor_per_second"]); err != nil {
				return fmt.Errorf("evidence of the kind %s: %w", k.kind, err)
			}
			rig.Logf("round %d of %d: %s, %.0f certificates a second", n+1, b.rounds, k.kind, k.rate)
		}
	}
	return b.report(rig, kinds, reach["floor_reach"])
}

// enrollKind is the measurement of one kind of evidence.
type enrollKind struct {
	kind     pki.EvidenceKind
	issuers  *enrollment.Issuers
	clients  []*enrollment.Client
	bare     *bareServer
	bareLoad []*enrollment.Client // of bare
	sample   *enrollment.Device   // which enrolls at bare again and again
	rate     float64              // of the previous load, in certificates per second
	measured rounds
}

// open enrolls a first device, starts a bare server with the messages that the device got, and warms up.
func (b *enrollBench) open(ctx context.Context, rig *issueRig, issuers *enrollment.Issuers, kind pki.EvidenceKind) (k *enrollKind, err error) {
	k = &enrollKind{kind: kind, issuers: issuers, measured: rounds{}}
	operator := rig.callers[0].pair
	tls := enroll.AnonymousTLS(operator.RootPool(), operator.ID().TrustDomain())
	for i := range b.callers {
		k.clients = append(k.clients, &enrollment.Client{Server: rig.server.Dev.GRPC, TLS: tls, From: net.IPv4(127, 0, byte(1+i/250), byte(1+i%250))})
	}
	first, err := issuers.Devices(ctx, kind, 1)
	if err != nil {
		return nil, err
	}
	k.sample = first[0]
	messages, err := k.clients[0].Enroll(ctx, k.sample)
	if err != nil {
		return nil, err
	}
	prefix := filepath.Join(rig.Dir, kind.String())
	if err := messages.Write(prefix); err != nil {
		return nil, err
	}
	devices, err := k.make(ctx, 4*b.callers)
	if err != nil {
		return nil, err
	}
	if _, err := k.load(ctx, devices); err != nil { // a warm-up, and a first rate
		return nil, err
	}
	if k.bare, err = rig.startBareServer(ctx, "bare-enrollment", "--credential", filepath.Join(rig.server.Dev.Dir, "own", "server"), "--messages", prefix); err != nil {
		return nil, err
	}
	for _, c := range k.clients {
		k.bareLoad = append(k.bareLoad, &enrollment.Client{Server: k.bare.address, TLS: tls, From: c.From})
	}
	return k, nil
}

// make makes n devices that have not enrolled.
func (k *enrollKind) make(ctx context.Context, n int) (chan *enrollment.Device, error) {
	made, err := k.issuers.Devices(ctx, k.kind, n)
	if err != nil {
		return nil, fmt.Errorf("make %d devices: %w", n, err)
	}
	devices := make(chan *enrollment.Device, n)
	for _, d := range made {
		devices <- d
	}
	return devices, nil
}

// load enrolls all devices.
func (k *enrollKind) load(ctx context.Context, devices chan *enrollment.Device) (load, error) {
	n := int64(len(devices))
	var begun atomic.Int64
	l, err := putLoadWhile(ctx, k.clients, func(c *enrollment.Client, ctx context.Context) (time.Duration, error) {
		return enrollOne(ctx, c, <-devices)
	}, func() bool { return begun.Add(1) <= n })
	k.rate = l.rate
	return l, err
}

func enrollOne(ctx context.Context, c *enrollment.Client, d *enrollment.Device) (time.Duration, error) {
	begin := time.Now()
	_, err := c.Enroll(ctx, d)
	return time.Since(begin), err
}

// round measures everything once, with as many devices as probably enroll in d. floor is the rate of the floor.
func (k *enrollKind) round(ctx context.Context, rig *issueRig, d time.Duration, floor float64) error {
	devices, err := k.make(ctx, 1+int(k.rate*d.Seconds()))
	if err != nil {
		return err
	}
	before, err := rig.cpu()
	if err != nil {
		return err
	}
	l, err := k.load(ctx, devices)
	if err != nil {
		return err
	}
	after, err := rig.cpu()
	if err != nil {
		return err
	}
	handshakes, err := putLoad(ctx, k.bareLoad, func(c *enrollment.Client, ctx context.Context) (time.Duration, error) {
		return enrollOne(ctx, c, k.sample)
	}, d)
	if err != nil {
		return fmt.Errorf("bare server: %w", err)
	}
	checks, err := k.issuers.CheckRate(ctx, k.kind, d/3)
	if err != nil {
		return err
	}
	n := float64(len(l.latencies))
	k.measured.add(map[string]float64{
		"certificates_per_second": l.rate, "p50_ms": l.quantile(0.5), "p99_ms": l.quantile(0.99),
		"handshakes_per_second": handshakes.rate, "floor_per_second": floor, "checks_per_second": checks,
		"composed_ratio": l.rate * (1/handshakes.rate + 1/floor + 1/checks),
		"server_cpu_us":  micros(after.server-before.server) / n, "load_cpu_us": micros(after.load-before.load) / n,
	})
	return nil
}

func (b *enrollBench) report(rig *issueRig, kinds []*enrollKind, reach []float64) error {
	counts, err := rig.floorCounts(reach)
	if err != nil {
		return err
	}
	var objects []map[string]any
	var rows [][]string
	for _, k := range kinds {
		object, row := map[string]any{"kind": k.kind.String()}, []string{k.kind.String()}
		described, err := k.measured.describe(object, enrollFields)
		if err != nil {
			return err
		}
		for _, field := range described {
			row = append(row, field[1])
		}
		objects, rows = append(objects, object), append(rows, row)
	}
	return rig.Emit(map[string]any{"callers": b.callers, "rounds": b.rounds, "floor_counts": counts, "kinds": objects}, rows)
}

// newBareEnrollment returns the hidden command that is the bare server of brevet-bench enroll.
func newBareEnrollment() *cobra.Command {
	var credential, messages string
	cmd := &cobra.Command{
		Use: "bare-enrollment", Short: "Respond to devices without any work, for bench enroll to compare with", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			pair, err := enroll.ReadPair(credential)
			if err != nil {
				return err
			}
			exchange, err := enrollment.ReadExchange(messages)
			if err != nil {
				return err
			}
			return serveBare(cmd, enrollment.NewBareServer(pair.TLSWith(append(slices.Clone(pair.Chain), pair.Root())), exchange))
		},
	}
	cmd.Flags().StringVar(&credential, "credential", "", "directory of the server's credential")
	cmd.Flags().StringVar(&messages, "messages", "", "files with the messages to send")
	return cmd
}
