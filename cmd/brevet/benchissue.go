package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/brevet-pki/brevet/cmd/internal/floor"
	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/hsm"
)

// maxCallers is how many connections a measurement holds.
const maxCallers = 1024

// floorReach is what a floor has to reach of the rate at which all cores do its single operations: one that is slower
// waits for something that it need not, and is no floor.
const floorReach = 0.85

// issueBench is a measurement of a whole server.
type issueBench struct {
	benchFlags
	callers int
}

func newBenchIssue() *cobra.Command {
	var b issueBench
	cmd := &cobra.Command{
		Use: "issue", Short: "Measure how many certificates a second a server issues", Args: cobra.NoArgs,
		Long: "issue starts a server process with a token and a store of its own in a temporary directory, enrolls devices,\n" +
			"and has each renew without pause over a connection that it keeps. In turn with it, it measures the floor, which\n" +
			"is the same work with nothing of Brevet around it and no RPC, and the token alone; each takes as long again as\n" +
			"--duration. Load and floor share this machine's cores with the server. Set TMPDIR to measure another disk.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := newPrinter(cmd, "MEASURE", "MEDIAN", "MIN", "MAX")
			if err != nil {
				return err
			}
			round, err := b.round()
			if err != nil {
				return err
			}
			if b.callers < 1 || b.callers > maxCallers {
				return &usage{fmt.Sprintf("--callers %d: give 1 to %d", b.callers, maxCallers)}
			}
			dir, remove, err := benchDirectory()
			if err != nil {
				return err
			}
			return errors.Join(b.run(cmd, p, dir, round), remove())
		},
	}
	cmd.Flags().IntVar(&b.callers, "callers", 16, "devices that renew at once")
	b.add(cmd, "10s", "how long certificates are issued, in all rounds together")
	return cmd
}

// issueRig is everything that is measured.
type issueRig struct {
	say        func(format string, args ...any)
	server     *benchServer
	callers    []*caller
	token      *hsm.Key
	floor      *floor.Floor
	goroutines int // that the floor is fastest with
}

// issueFields are what a round measures, in the order that they are shown in.
var issueFields = []string{
	"certificates_per_second", "p50_ms", "p99_ms", "token_signatures_per_second", "floor_per_second", "floor_ratio",
	"floor_reach", "rss_mib", "bytes_per_certificate", "server_cpu_us", "load_cpu_us", "floor_cpu_us",
}

func (b *issueBench) run(cmd *cobra.Command, p *printer, dir string, round time.Duration) (err error) {
	ctx := cmd.Context()
	rig := &issueRig{say: func(format string, args ...any) { fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...) }}
	defer func() { err = errors.Join(err, rig.close()) }()
	rig.say("starting a server of its own")
	if rig.server, err = startBenchServer(ctx, filepath.Join(dir, "server"), cmd.ErrOrStderr()); err != nil {
		return err
	}
	operator, err := enroll.ReadPair(rig.server.dev.operator())
	if err != nil {
		return err
	}
	rig.say("enrolling %d callers", b.callers)
	if rig.callers, err = enrollCallers(ctx, operator, b.callers); err != nil {
		return err
	}
	t, err := makeBenchToken(ctx, dir, hsm.DefaultSessions)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.token.Close()) }()
	rig.token = t.key
	if err := os.Mkdir(filepath.Join(dir, "floor"), 0o700); err != nil {
		return err
	}
	if rig.floor, err = floor.Open(ctx, floor.Config{
		Directory: filepath.Join(dir, "floor"), Module: t.module, TokenLabel: benchLabel, PIN: t.pin, KeyLabel: benchKey,
	}); err != nil {
		return err
	}
	measured, err := rig.measure(ctx, b.rounds, round)
	if err := errors.Join(err, rig.closeFloor()); err != nil { // before its token
		return err
	}
	return b.report(p, rig, measured)
}

func (r *issueRig) closeFloor() error {
	if r.floor == nil {
		return nil
	}
	f := r.floor
	r.floor = nil
	return f.Close()
}

func (r *issueRig) close() error {
	err := r.closeFloor()
	for _, c := range r.callers {
		err = errors.Join(err, c.close())
	}
	if r.server != nil {
		err = errors.Join(err, r.server.stop())
	}
	return err
}

func (r *issueRig) measure(ctx context.Context, rounds int, d time.Duration) (map[string][]float64, error) {
	if _, err := putLoad(ctx, r.callers, d); err != nil { // files and caches grow to their size
		return nil, err
	}
	var err error
	if r.goroutines, err = r.floor.Best(ctx, d); err != nil {
		return nil, err
	}
	r.say("the floor is fastest with %d goroutines", r.goroutines)
	measured := map[string][]float64{}
	for n := range rounds {
		values, err := r.round(ctx, d)
		if err != nil {
			return nil, err
		}
		for name, v := range values {
			measured[name] = append(measured[name], v)
		}
		r.say("round %d of %d: %.0f certificates a second, floor %.0f", n+1, rounds, values["certificates_per_second"], values["floor_per_second"])
	}
	return measured, nil
}

// round measures everything once. What the server has stored is looked at after the floor, by when its log is in the
// archive too.
func (r *issueRig) round(ctx context.Context, d time.Duration) (map[string]float64, error) {
	before, err := r.server.stored()
	if err != nil {
		return nil, err
	}
	cpu, err := r.cpu()
	if err != nil {
		return nil, err
	}
	issued, err := putLoad(ctx, r.callers, d)
	if err != nil {
		return nil, err
	}
	loaded, err := r.cpu()
	if err != nil {
		return nil, err
	}
	resident, err := r.server.residentMiB()
	if err != nil {
		return nil, err
	}
	signatures, err := signatureRate(ctx, r.token, hsm.DefaultSessions, d)
	if err != nil {
		return nil, err
	}
	cost, err := r.floor.Cost(ctx, d/3)
	if err != nil {
		return nil, err
	}
	begun, err := ownCPU()
	if err != nil {
		return nil, err
	}
	rate, err := r.floor.Rate(ctx, r.goroutines, d)
	if err != nil {
		return nil, err
	}
	ended, err := ownCPU()
	if err != nil {
		return nil, err
	}
	after, err := r.server.stored()
	if err != nil {
		return nil, err
	}
	n := float64(len(issued.latencies))
	r.say("floor, one certificate: check %s, sign %s, write %s", cost.Check, cost.Sign, cost.Write)
	return map[string]float64{
		"certificates_per_second": issued.rate, "p50_ms": issued.quantile(0.5), "p99_ms": issued.quantile(0.99),
		"token_signatures_per_second": signatures, "floor_per_second": rate, "floor_ratio": issued.rate / rate,
		"floor_reach": rate / cost.Bound(), "rss_mib": resident,
		"bytes_per_certificate": (after - before) / n,
		"server_cpu_us":         micros(loaded.server-cpu.server) / n, "load_cpu_us": micros(loaded.load-cpu.load) / n,
		"floor_cpu_us": micros(ended-begun) / (rate * d.Seconds()),
	}, nil
}

// spentCPU is the processor time that the server, and this process, have used so far. What a certificate costs in it
// says more than a rate where others use the machine too.
type spentCPU struct{ server, load time.Duration }

func (r *issueRig) cpu() (c spentCPU, err error) {
	if c.server, err = r.server.cpu(); err != nil {
		return c, err
	}
	c.load, err = ownCPU()
	return c, err
}

func ownCPU() (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("processor time was not measured: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func (b *issueBench) report(p *printer, rig *issueRig, measured map[string][]float64) error {
	spreads := map[string]spread{}
	object := map[string]any{"callers": b.callers, "rounds": b.rounds, "floor_goroutines": rig.goroutines, "spread": spreads}
	var rows [][]string
	for _, name := range issueFields {
		s, err := spreadOf(name, measured[name])
		if err != nil {
			return err
		}
		object[name], spreads[name] = s.Median, s
		rows = append(rows, []string{name, decimal(s.Median), decimal(s.Min), decimal(s.Max)})
	}
	if reach := spreads["floor_reach"].Median; reach < floorReach {
		rig.say("warning: the floor reaches %.2f of what its single operations allow, under %.2f: it is not yet a floor, and "+
			"floor_ratio flatters the server", reach, floorReach)
	}
	return p.emit(object, rows)
}
