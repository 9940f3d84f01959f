package main

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
)

// benchText is the only thing that a measurement signs. It cannot be taken for anything that X.509 signs: that is DER
// and begins with 0x30. An operator's own issuing key may sign it.
const benchText = "brevet bench: this signature attests nothing\x00"

// tokenBench is a measurement of a token's key.
type tokenBench struct {
	benchFlags
	sessions []int
	keyLabel string
}

func newBenchToken() *cobra.Command {
	var b tokenBench
	cmd := &cobra.Command{
		Use: "token", Short: "Measure how many signatures a second a token makes", Args: cobra.NoArgs,
		Long: "token measures a P-256 key in a SoftHSM token of its own, which it removes again. With --config it measures a\n" +
			"key in the token of that configuration, which signs nothing but the SHA-256 of a fixed text: no certificate.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := newPrinter(cmd, "SESSIONS", "SIGNATURES/S", "MIN", "MAX")
			if err != nil {
				return err
			}
			round, err := b.round()
			if err != nil {
				return err
			}
			if err := b.check(cmd); err != nil {
				return err
			}
			return b.run(cmd, p, round)
		},
	}
	configFlag(cmd)
	cmd.Flags().Lookup("config").Usage = "configuration file with the token to measure (default: a token of its own)"
	cmd.Flags().StringVar(&b.keyLabel, "key-label", "", "label of the key to measure, with --config")
	cmd.Flags().IntSliceVar(&b.sessions, "sessions", []int{1, 2, 4, 8}, "how many signatures are in the token at once")
	b.add(cmd, "2s", "how long each number of sessions is measured, in all rounds together")
	return cmd
}

func (b *tokenBench) check(cmd *cobra.Command) error {
	if cmd.Flags().Changed("config") != (b.keyLabel != "") {
		return &usage{"--config and --key-label go together: they name the token and the key to measure"}
	}
	if len(b.sessions) == 0 {
		return &usage{"--sessions: give at least one number"}
	}
	for _, n := range b.sessions {
		if n < 1 || n > hsm.MaxSessions {
			return &usage{fmt.Sprintf("--sessions %d: give 1 to %d", n, hsm.MaxSessions)}
		}
	}
	return nil
}

func (b *tokenBench) run(cmd *cobra.Command, p *printer, round time.Duration) (err error) {
	ctx := cmd.Context()
	most := slices.Max(b.sessions)
	if b.keyLabel != "" {
		key, closeToken, err := b.configured(cmd, most)
		if err != nil {
			return err
		}
		return errors.Join(b.measure(cmd, p, key, round), closeToken())
	}
	dir, remove, err := benchDirectory()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	t, err := makeBenchToken(ctx, dir, most)
	if err != nil {
		return err
	}
	return errors.Join(b.measure(cmd, p, t.key, round), t.token.Close())
}

// configured opens an operator's own token.
func (b *tokenBench) configured(cmd *cobra.Command, sessions int) (*hsm.Key, func() error, error) {
	c, err := loadConfig(cmd)
	if err != nil {
		return nil, nil, err
	}
	pin, err := c.pin()
	if err != nil {
		return nil, nil, err
	}
	c.Token.Sessions = sessions
	token, err := openToken(cmd.Context(), c.Token, pin)
	if err != nil {
		return nil, nil, err
	}
	key, err := token.Find(cmd.Context(), hsm.KeyRef{Label: b.keyLabel})
	if err != nil {
		return nil, nil, errors.Join(err, token.Close())
	}
	return key, token.Close, nil
}

// tokenRate is what was measured with one number of sessions.
type tokenRate struct {
	Sessions   int     `json:"sessions"`
	Signatures float64 `json:"signatures_per_second"`
	Spread     spread  `json:"spread"`
}

func (b *tokenBench) measure(cmd *cobra.Command, p *printer, key *hsm.Key, round time.Duration) error {
	measured := make([][]float64, len(b.sessions))
	for r := range b.rounds {
		for i, n := range b.sessions {
			rate, err := signatureRate(cmd.Context(), key, n, round)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "round %d of %d: %d sessions, %.0f signatures a second\n", r+1, b.rounds, n, rate)
			measured[i] = append(measured[i], rate)
		}
	}
	result := struct {
		Algorithm string      `json:"algorithm"`
		Rates     []tokenRate `json:"rates"`
	}{Algorithm: key.Algorithm().String()}
	var rows [][]string
	for i, n := range b.sessions {
		s, err := spreadOf("signatures_per_second", measured[i])
		if err != nil {
			return err
		}
		result.Rates = append(result.Rates, tokenRate{n, s.Median, s})
		rows = append(rows, []string{strconv.Itoa(n), decimal(s.Median), decimal(s.Min), decimal(s.Max)})
	}
	return p.emit(result, rows)
}

func decimal(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

// signatureRate signs for d with so many signatures under way at once, and returns the signatures of a second.
func signatureRate(ctx context.Context, key *hsm.Key, sessions int, d time.Duration) (float64, error) {
	digest := sha256.Sum256([]byte(benchText))
	message, opts := digest[:], crypto.SHA256
	if _, ok := key.Public().(ed25519.PublicKey); ok {
		message, opts = []byte(benchText), crypto.Hash(0)
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
