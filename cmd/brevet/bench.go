package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/pki"
)

// Names in the token that a measurement makes for itself.
const (
	benchLabel = "brevet-bench"
	benchKey   = "bench"
)

func newBench() *cobra.Command {
	cmd := &cobra.Command{Use: "bench", Short: "Measure what this machine and its token can do"}
	cmd.AddCommand(newBenchToken(), newBenchIssue(), newBenchRevoke(), newBenchCRL(), newBenchCRLRound(), newBenchOCSP(), newBenchBare(), newBenchSigning())
	return cmd
}

// benchFlags are what measurements have in common.
type benchFlags struct {
	duration string
	rounds   int
}

func (b *benchFlags) add(cmd *cobra.Command, duration, what string) {
	cmd.Flags().StringVar(&b.duration, "duration", duration, what)
	cmd.Flags().IntVar(&b.rounds, "rounds", 3, "rounds, 1 to 99: what is compared takes turns")
	outputFlag(cmd)
}

// round returns how long each part of a round is to take.
func (b *benchFlags) round() (time.Duration, error) {
	d, err := pki.ParseDuration(b.duration)
	if err != nil {
		return 0, &usage{"--duration: " + trimPrefixes(err.Error())}
	}
	if b.rounds < 1 || b.rounds > 99 {
		return 0, &usage{fmt.Sprintf("--rounds %d: give 1 to 99", b.rounds)}
	}
	if d /= time.Duration(b.rounds); d < 20*time.Millisecond {
		return 0, &usage{fmt.Sprintf("--duration %s: give at least 20ms for each round", b.duration)}
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

// emit prints one JSON object, or rows of a table.
func (p *printer) emit(object any, rows [][]string) error {
	if p.json {
		b, err := json.Marshal(object)
		if err != nil {
			return err
		}
		return p.raw(b)
	}
	for _, cells := range rows {
		if err := p.row(cells); err != nil {
			return err
		}
	}
	return p.close()
}

// benchDirectory makes a directory that goes with the command.
func benchDirectory() (dir string, remove func() error, err error) {
	dir, err = os.MkdirTemp("", "brevet-bench-")
	if err != nil {
		return "", nil, err
	}
	return dir, func() error { return os.RemoveAll(dir) }, nil
}

// benchToken is a SoftHSM token of this process with one P-256 key in it.
type benchToken struct {
	token  *hsm.Token
	key    *hsm.Key
	module string
	pin    string
}

// makeBenchToken makes one in a directory, whatever the user's own configuration of SoftHSM says.
func makeBenchToken(ctx context.Context, dir string, sessions int) (b benchToken, err error) {
	if err := useSoftHSM(filepath.Join(dir, "token")); err != nil {
		return b, err
	}
	var pin hsm.PIN
	if b.pin, pin, err = newPIN(); err != nil {
		return b, err
	}
	if b.module, err = hsm.FindSoftHSM(); err != nil {
		return b, err
	}
	if _, err = hsm.InitToken(ctx, b.module, benchLabel, pin, pin); err != nil {
		return b, err
	}
	if b.token, err = hsm.Open(ctx, hsm.Config{Module: b.module, TokenLabel: benchLabel, Sessions: sessions}, pin); err != nil {
		return b, err
	}
	if b.key, err = b.token.Generate(ctx, benchKey, hsm.P256); err != nil {
		return b, errors.Join(err, b.token.Close())
	}
	return b, nil
}
