package bench

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/internal/bench/stepca"
	"github.com/brevet-pki/brevet/internal/bench/testbed"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/node"
)

// stepCABench measures step-ca beside Brevet.
type stepCABench struct {
	commonFlags
	callers int
	program string
}

// newStepCA returns the hidden command that make bench-step-ca runs.
func newStepCA() *cobra.Command {
	b := stepCABench{commonFlags: commonFlags{rounds: 6}}
	cmd := &cobra.Command{
		Use: "step-ca", Short: "Measure how many certificates a second step-ca issues beside Brevet", Args: cobra.NoArgs, Hidden: true,
		Long: "step-ca starts Brevet's server as brevet-bench issue does, and a step-ca with the same key in the same SoftHSM, and with\n" +
			"a badger v2 database on the same disk. It measures them alternately, with as many callers of both, each over one kept\n" +
			"connection:\n\n" +
			"  Brevet          an operator requests certificates for devices with CSRs, over mutual TLS\n" +
			"  step-ca sign    POST /1.0/sign with a CSR and a one-time token of a JWK provisioner. This is the nearest to Brevet's:\n" +
			"                  both verify the CSR's signature and keep a durable record of the request. The tokens are made before\n" +
			"                  the measurement\n" +
			"  step-ca renew   POST /1.0/renew with a client certificate, which has neither CSR nor token, and is less work\n\n" +
			"A rate ratio is Brevet's rate divided by step-ca's: more is better for Brevet. The ratios of p50 and p99 are Brevet's\n" +
			"latency divided by step-ca's: less is better for Brevet. All callers share this machine's cores with the servers.",
	}
	cmd.Flags().IntVar(&b.callers, "callers", 64, "concurrent connections")
	cmd.Flags().StringVar(&b.program, "program", "step-ca", "the step-ca to start")
	b.timed(cmd, "12s", "how long each of the three is measured, in all rounds together")
	b.measures(cmd, b.check, b.run, "MEASURE", "MEDIAN", "MIN", "MAX")
	return cmd
}

func (b *stepCABench) check() error {
	if _, err := b.round(minRound); err != nil {
		return err
	}
	if b.callers < 1 || b.callers > maxCallers {
		return cli.WrongUse(fmt.Sprintf("--callers %d: give 1 to %d", b.callers, maxCallers))
	}
	if _, err := exec.LookPath(b.program); err != nil {
		return cli.WrongUse(fmt.Sprintf("--program: %v; make bench-step-ca builds it", err))
	}
	return nil
}

// stepCAFields are the fields that each round measures, in the order of the output.
var stepCAFields = []string{
	"certificates_per_second", "p50_ms", "p99_ms", "server_cpu_us",
	"step_ca_sign_per_second", "step_ca_sign_p50_ms", "step_ca_sign_p99_ms", "step_ca_sign_cpu_us",
	"step_ca_renew_per_second", "step_ca_renew_p50_ms", "step_ca_renew_p99_ms", "step_ca_renew_cpu_us",
	"step_ca_sign_rate_ratio", "step_ca_sign_p50_ratio", "step_ca_sign_p99_ratio",
	"step_ca_renew_rate_ratio", "step_ca_renew_p50_ratio", "step_ca_renew_p99_ratio",
}

func (b *stepCABench) run(ctx context.Context, env *bench) (err error) {
	d, err := b.round(minRound)
	if err != nil {
		return err
	}
	issue := issueBench{commonFlags: b.commonFlags, callers: b.callers}
	rig := &stepCARig{issueRig: issueRig{mode: issue.mode(), bench: env}}
	defer func() { err = errors.Join(err, rig.other.Stop(), rig.party.close()) }()
	if rig.party, err = issue.open(ctx, &rig.issueRig, "server", 0); err != nil {
		return err
	}
	if rig.other, err = env.startStepCA(ctx, b.program, b.callers); err != nil {
		return err
	}
	if _, err := rig.round(ctx, d); err != nil { // a warm-up: files and caches grow to their size
		return err
	}
	measured := rounds{}
	for n := range b.rounds {
		values, err := rig.round(ctx, d)
		if err != nil {
			return err
		}
		measured.add(values)
		rig.Logf("round %d of %d: %.0f certificates a second; step-ca signs %.0f, and renews %.0f", n+1, b.rounds,
			values["certificates_per_second"], values["step_ca_sign_per_second"], values["step_ca_renew_per_second"])
	}
	return rig.report(map[string]any{"callers": b.callers, "rounds": b.rounds}, measured, stepCAFields)
}

// stepCARig holds both servers with their callers.
type stepCARig struct {
	issueRig
	other *stepca.Server
}

// settling is the pause after each load, in which the server finishes what it does in the background.
const settling = time.Second

// round measures Brevet and both ways to get a certificate from step-ca once.
func (r *stepCARig) round(ctx context.Context, d time.Duration) (map[string]float64, error) {
	values := map[string]float64{}
	if _, err := r.load(ctx, d, values); err != nil {
		return nil, err
	}
	if err := rest(ctx, settling); err != nil {
		return nil, err
	}
	if err := r.other.MakeTokens(d); err != nil {
		return nil, err
	}
	if err := r.loadOther(ctx, d, "step_ca_sign_", (*stepca.Caller).Sign, values); err != nil {
		return nil, err
	}
	return values, r.loadOther(ctx, d, "step_ca_renew_", (*stepca.Caller).Renew, values)
}

// stepCACall requests one certificate of step-ca, and returns how long that took.
type stepCACall func(*stepca.Caller, context.Context) (time.Duration, error)

// loadOther requests certificates of step-ca for d, and compares Brevet's rate and latency with it. The names of the
// fields begin with prefix.
func (r *stepCARig) loadOther(ctx context.Context, d time.Duration, prefix string, call stepCACall, values map[string]float64) error {
	before, err := testbed.CPUOf(r.other.Process())
	if err != nil {
		return err
	}
	l, err := putLoad(ctx, r.other.Callers, call, d)
	if err != nil {
		return r.other.Explain(err)
	}
	after, err := testbed.CPUOf(r.other.Process())
	if err != nil {
		return err
	}
	p50, p99 := l.quantile(0.5), l.quantile(0.99)
	values[prefix+"per_second"], values[prefix+"p50_ms"], values[prefix+"p99_ms"] = l.rate, p50, p99
	values[prefix+"cpu_us"] = micros(after-before) / float64(len(l.latencies))
	values[prefix+"rate_ratio"] = values["certificates_per_second"] / l.rate
	values[prefix+"p50_ratio"], values[prefix+"p99_ratio"] = values["p50_ms"]/p50, values["p99_ms"]/p99
	return rest(ctx, settling)
}

// startStepCA starts step-ca with the measured key.
func (b *bench) startStepCA(ctx context.Context, program string, callers int, options ...string) (*stepca.Server, error) {
	b.Logf("starting step-ca")
	module, err := node.Module(b.Like.HSM.Module)
	if err != nil {
		return nil, err
	}
	return stepca.Start(ctx, stepca.Config{
		Program: program, Dir: filepath.Join(b.Dir, "step-ca"), Module: module, HSMLabel: b.Like.HSM.Label, KeyLabel: b.Key.Label(), Key: b.Key.Public(),
		Options: options, Process: b.Program,
	}, callers)
}
