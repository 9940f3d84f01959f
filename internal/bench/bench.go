package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/internal/bench/testbed"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/internal/cli/output"
	"github.com/brevet-pki/brevet/pki"
)

// Commands returns the commands of brevet-bench. The hidden ones are processes that a measurement starts, and
// the comparison with step-ca, which needs that program.
func Commands() []*cobra.Command {
	return []*cobra.Command{
		newHSM(), newIssue(), newEnroll(), newEST(), newACME(), newReplicas(), newFleet(), newRevoke(), newCRL(), newOCSP(), renamedCommand("token", "hsm"),
		newStepCA(), testbed.ServerCommand(), newCRLRound(), newBare(), newBareRPC(), newBareEnrollment(), newAgents(), newSigning(),
	}
}

// bench is a measurement that runs.
type bench struct {
	*output.Printer
	*testbed.Testbed
}

// commonFlags holds the flags that several measurements have.
type commonFlags struct {
	duration string // of all rounds; empty if the work, not a time, ends a round
	rounds   int
	inHSM    int    // concurrent signatures; 0 for those of the configuration
	store    string // the value of --store; empty for SQLite
	keyLabel string // the operator's key to measure, without a directory; empty for a new key, which is destroyed at the end
}

// measures makes cmd run a measurement: check validates the flags, and run measures with a directory and key that are
// removed afterwards.
func (f *commonFlags) measures(cmd *cobra.Command, check func() error, run func(context.Context, *bench) error, heading ...string) {
	cmd.Flags().IntVar(&f.rounds, "rounds", f.rounds, "rounds, 1 to 99; each measures everything that is compared once")
	output.Flag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		p, err := output.New(cmd, heading...)
		if err != nil {
			return err
		}
		if f.rounds < 1 || f.rounds > 99 {
			return cli.WrongUse(fmt.Sprintf("--rounds %d: give 1 to 99", f.rounds))
		}
		if err := checkRenamed(cmd); err != nil {
			return err
		}
		if err := errors.Join(f.checkStore(cmd), check()); err != nil {
			return err
		}
		ctx := cmd.Context()
		b := &bench{Printer: p, Testbed: &testbed.Testbed{Log: cmd.ErrOrStderr()}}
		if err = b.Open(ctx, f.options(cmd)); err == nil {
			err = b.Explain(run(ctx, b))
		}
		if err != nil && ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		return errors.Join(err, b.Testbed.Close())
	}
}

// options returns the options of the testbed that the flags select.
func (f *commonFlags) options(cmd *cobra.Command) testbed.Options {
	o := testbed.Options{Sessions: f.inHSM, KeyLabel: f.keyLabel, Postgres: f.store == storePostgres}
	if flag := cmd.Flags().Lookup("config"); flag != nil && flag.Changed {
		o.Config = flag.Value.String()
	}
	return o
}

// configFlag adds the flag --config to a command whose result depends on HSM and disk.
func configFlag(cmd *cobra.Command) {
	node.ConfigFlag(cmd)
	cmd.Flags().Lookup("config").Usage = "configuration file with the HSM and the state_dir to measure (default: a new SoftHSM, and TMPDIR)"
	cmd.Long += "\n\nWith --config it measures the configured HSM with hsm.sessions, and the disk of state_dir, in a new directory there.\n" +
		"crl.partitions and the profiles in the file of policy apply, too. rate_limits, server_names, addresses, log, tracing and\n" +
		"crl.directories do not.\n" +
		"It signs with a new P-256 key in the HSM. Directory and key are named brevet-bench-… and removed at the end. Store, log\n" +
		"and issuing keys are not used, so a server may be running."
}

// timed adds the flag --duration, with its default and usage text.
func (f *commonFlags) timed(cmd *cobra.Command, duration, what string) {
	cmd.Flags().StringVar(&f.duration, "duration", duration, what)
}

// round returns how long each measurement of a round takes. It must be at least minimum.
func (f *commonFlags) round(minimum time.Duration) (time.Duration, error) {
	d, err := pki.ParseDuration(f.duration)
	if err != nil {
		return 0, cli.WrongFlag("--duration", err)
	}
	if d /= time.Duration(f.rounds); d < minimum {
		return 0, cli.WrongUse(fmt.Sprintf("--duration %s: give at least %s for each round", f.duration, minimum))
	}
	return d, nil
}

// spread summarizes the values of one field over all rounds.
type spread struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
}

// spreadOf returns the spread of values. It returns an error if a value is not above zero: every measured field is, so
// such a value was not measured.
func spreadOf(name string, values []float64) (spread, error) {
	for _, v := range values {
		if !(v > 0) || math.IsInf(v, 0) { // v > 0 is false for NaN, too
			return spread{}, fmt.Errorf("%s was not measured: give a longer --duration", name)
		}
	}
	if len(values) == 0 {
		return spread{}, fmt.Errorf("%s was not measured", name)
	}
	values = slices.Sorted(slices.Values(values))
	half := len(values) / 2
	median := values[half]
	if len(values)%2 == 0 {
		median = (median + values[half-1]) / 2
	}
	return spread{rounded(values[0]), rounded(median), rounded(values[len(values)-1])}, nil
}

// rounded rounds v to four significant digits, or to an integer if that has more. Measurements are not more precise.
func rounded(v float64) float64 {
	scale := math.Pow(10, max(0, 3-math.Floor(math.Log10(v))))
	return math.Round(v*scale) / scale
}

// rounds holds the values of each field, one for each round.
type rounds map[string][]float64

func (r rounds) add(values map[string]float64) {
	for name, v := range values {
		r[name] = append(r[name], v)
	}
}

// report prints object with the median and the spread of each field. If a field was not measured, it returns an error.
func (b *bench) report(object map[string]any, measured rounds, fields []string) error {
	rows, err := measured.describe(object, fields)
	if err != nil {
		return err
	}
	return b.Emit(object, rows)
}

// describe sets the median of each field in object, and all spreads. It returns a row for each field: its name, median,
// minimum and maximum.
func (r rounds) describe(object map[string]any, fields []string) (rows [][]string, err error) {
	spreads := map[string]spread{}
	object["spread"] = spreads
	for _, name := range fields {
		s, err := spreadOf(name, r[name])
		if err != nil {
			return nil, err
		}
		object[name], spreads[name] = s.Median, s
		rows = append(rows, []string{name, decimal(s.Median), decimal(s.Min), decimal(s.Max)})
	}
	return rows, nil
}
