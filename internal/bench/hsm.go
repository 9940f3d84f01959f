package bench

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/node"
)

// signedText is the only text that a measurement signs with an operator's key, which may be an issuing key. The text is
// not valid as a structure that X.509 signs: those are DER and begin with 0x30.
const signedText = "brevet-bench: this signature attests nothing\x00"

// hsmBench measures how fast a key in an HSM signs.
type hsmBench struct {
	commonFlags
	sessions []int
}

func newHSM() *cobra.Command {
	b := hsmBench{commonFlags: commonFlags{rounds: 3}}
	cmd := &cobra.Command{
		Use: "hsm", Short: "Measure how many signatures per second an HSM makes", Args: cobra.NoArgs,
		Long: "hsm measures a P-256 key in a new SoftHSM, which it removes at the end. With --config it measures a key in the HSM of\n" +
			"that configuration. The key signs only the SHA-256 of a fixed text, never a certificate.",
	}
	node.ConfigFlag(cmd)
	cmd.Flags().Lookup("config").Usage = "configuration file with the HSM to measure (default: a new SoftHSM)"
	cmd.Flags().StringVar(&b.keyLabel, "key-label", "", "label of the key to measure, with --config")
	cmd.Flags().IntSliceVar(&b.sessions, "sessions", []int{1, 2, 4, 8}, "numbers of concurrent signatures")
	b.timed(cmd, "2s", "how long each number of sessions is measured, in all rounds together")
	b.measures(cmd, func() error { return b.check(cmd) }, b.run, "SESSIONS", "SIGNATURES/S", "MIN", "MAX")
	return cmd
}

func (b *hsmBench) check(cmd *cobra.Command) error {
	if _, err := b.round(minRound); err != nil {
		return err
	}
	if cmd.Flags().Changed("config") != (b.keyLabel != "") {
		return cli.WrongUse("--config and --key-label go together: they name the HSM and the key to measure")
	}
	if len(b.sessions) == 0 {
		return cli.WrongUse("--sessions: give at least one number")
	}
	for _, n := range b.sessions {
		if n < 1 || n > hsm.MaxSessions {
			return cli.WrongUse(fmt.Sprintf("--sessions %d: give 1 to %d", n, hsm.MaxSessions))
		}
	}
	b.inHSM = slices.Max(b.sessions)
	return nil
}

// hsmRate is the rate with one number of sessions.
type hsmRate struct {
	Sessions   int     `json:"sessions"`
	Signatures float64 `json:"signatures_per_second"`
	Spread     spread  `json:"spread"`
}

func (b *hsmBench) run(ctx context.Context, env *bench) error {
	round, err := b.round(minRound)
	if err != nil {
		return err
	}
	measured := make([][]float64, len(b.sessions))
	for r := range b.rounds {
		for i, n := range b.sessions {
			rate, err := signatureRate(ctx, env.Key, n, round)
			if err != nil {
				return err
			}
			env.Logf("round %d of %d: %d sessions, %.0f signatures a second", r+1, b.rounds, n, rate)
			measured[i] = append(measured[i], rate)
		}
	}
	result := struct {
		Algorithm string    `json:"algorithm"`
		Rates     []hsmRate `json:"rates"`
	}{Algorithm: env.Key.Algorithm().String()}
	var rows [][]string
	for i, n := range b.sessions {
		s, err := spreadOf("signatures_per_second", measured[i])
		if err != nil {
			return err
		}
		result.Rates = append(result.Rates, hsmRate{n, s.Median, s})
		rows = append(rows, []string{strconv.Itoa(n), decimal(s.Median), decimal(s.Min), decimal(s.Max)})
	}
	return env.Emit(result, rows)
}

func decimal(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

// signatureRate signs for d, with as many concurrent signatures as sessions. It returns the signatures per second.
func signatureRate(ctx context.Context, key *hsm.Key, sessions int, d time.Duration) (float64, error) {
	digest := sha256.Sum256([]byte(signedText))
	message, opts := digest[:], crypto.SHA256
	if _, ok := key.Public().(ed25519.PublicKey); ok {
		message, opts = []byte(signedText), crypto.Hash(0)
	}
	made, errs := make([]int, sessions), make([]error, sessions)
	var all sync.WaitGroup
	begin := time.Now()
	for i := range sessions {
		all.Go(func() {
			for errs[i] == nil && ctx.Err() == nil && time.Since(begin) < d {
				if _, errs[i] = key.Sign(nil, message, opts); errs[i] == nil {
					made[i]++
				}
			}
		})
	}
	all.Wait()
	took := time.Since(begin)
	if err := errors.Join(append(errs, context.Cause(ctx))...); err != nil {
		return 0, err
	}
	n := 0
	for _, m := range made {
		n += m
	}
	return float64(n) / took.Seconds(), nil
}
