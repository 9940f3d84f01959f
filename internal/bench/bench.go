package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/output"
	"github.com/brevet-pki/brevet/pki"
)

// Commands returns the commands that measure, and the hidden ones that are processes of a measurement.
func Commands() []*cobra.Command {
	return []*cobra.Command{
		newHSM(), newIssue(), newRevoke(), newCRL(), newOCSP(), renamedCommand("token", "hsm"),
		newServer(), newCRLRound(), newBare(), newBareRPC(), newSigning(),
	}
}

// commonFlags are what measurements have in common.
type commonFlags struct {
	duration string // empty where a measurement ends when it has done its work
	rounds   int
	inHSM    int    // signatures at once; 0 for as many as the configuration has
	keyLabel string // an operator's own key, which takes no directory; empty for one that is thrown away
}

// measures makes a command measure: check looks at the flags, and run measures in a place that goes with it.
func (f *commonFlags) measures(cmd *cobra.Command, check func() error, run func(context.Context, *bench) error, heading ...string) {
	cmd.Flags().IntVar(&f.rounds, "rounds", f.rounds, "rounds, 1 to 99: what is compared takes turns")
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
		if err := check(); err != nil {
			return err
		}
		ctx := cmd.Context()
		b := &bench{Printer: p, log: cmd.ErrOrStderr()}
		if err = b.open(cmd, f); err == nil {
			err = b.explain(run(ctx, b))
		}
		if err != nil && ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		return errors.Join(err, b.close())
	}
}

// timed adds the flag that says how long to measure.
func (f *commonFlags) timed(cmd *cobra.Command, duration, what string) {
	cmd.Flags().StringVar(&f.duration, "duration", duration, what)
}

// round returns how long each part of a round is to take.
func (f *commonFlags) round(least time.Duration) (time.Duration, error) {
	d, err := pki.ParseDuration(f.duration)
	if err != nil {
		return 0, cli.WrongFlag("--duration", err)
	}
	if d /= time.Duration(f.rounds); d < least {
		return 0, cli.WrongUse(fmt.Sprintf("--duration %s: give at least %s for each round", f.duration, least))
	}
	return d, nil
}

// spread is what rounds have measured of one thing.
type spread struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
}

// spreadOf refuses what was not measured: there is nothing here whose value could be zero.
func spreadOf(name string, values []float64) (spread, error) {
	for _, v := range values {
		if !(v > 0) || math.IsInf(v, 0) { // not a number is not above zero either
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

// rounded keeps four significant digits, or all before the point: more would claim more than was measured.
func rounded(v float64) float64 {
	scale := math.Pow(10, max(0, 3-math.Floor(math.Log10(v))))
	return math.Round(v*scale) / scale
}

// rounds are what each round has measured, by name.
type rounds map[string][]float64

func (r rounds) add(values map[string]float64) {
	for name, v := range values {
		r[name] = append(r[name], v)
	}
}

// report prints an object with the medians of fields, and their spread. A field that was not measured fails it.
func (b *bench) report(object map[string]any, measured rounds, fields []string) error {
	spreads := map[string]spread{}
	object["spread"] = spreads
	var rows [][]string
	for _, name := range fields {
		s, err := spreadOf(name, measured[name])
		if err != nil {
			return err
		}
		object[name], spreads[name] = s.Median, s
		rows = append(rows, []string{name, decimal(s.Median), decimal(s.Min), decimal(s.Max)})
	}
	return b.Emit(object, rows)
}
