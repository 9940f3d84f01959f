package bench

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/internal/bench/fill"
	"github.com/brevet-pki/brevet/internal/bench/testbed"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/file"
	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/internal/cli/output"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/revocation/responder"
	"github.com/brevet-pki/brevet/store/sqlite"
)

// maxBenchEntries limits --entries.
const maxBenchEntries = 100_000_000

// crlBench measures how long a full CRL takes, and how much memory.
type crlBench struct {
	commonFlags
	entries int
}

func newCRL() *cobra.Command {
	b := crlBench{commonFlags: commonFlags{rounds: 5}}
	cmd := &cobra.Command{
		Use: "crl", Short: "Measure how long a full CRL takes, from the store to the published file", Args: cobra.NoArgs,
		Long: "crl fills a new store with revoked certificates. A process publishes their full CRL: it takes a CRL number, reads the\n" +
			"store, writes the CRL, signs it with the HSM, flushes, records and renames it. Alternating with it, another process\n" +
			"does the same with an empty store. crl_peak_mib is the difference between their peaks of resident memory (VmHWM).\n" +
			"The stores and CRLs are removed at the end.",
	}
	cmd.Flags().IntVar(&b.entries, "entries", 1_000_000, "revoked certificates in the store")
	configFlag(cmd)
	b.measures(cmd, b.check, b.run, "MEASURE", "MEDIAN", "MIN", "MAX")
	return cmd
}

func (b *crlBench) check() error {
	if b.entries < 1 || b.entries > maxBenchEntries {
		return cli.WrongUse(fmt.Sprintf("--entries %d: give 1 to %d", b.entries, maxBenchEntries))
	}
	return nil
}

// crlRound is the result of one process.
type crlRound struct {
	Seconds float64 `json:"seconds"`
	PeakMiB float64 `json:"peak_mib"`
	Entries int64   `json:"entries"`
	Size    int64   `json:"size"`
}

func (b *crlBench) run(ctx context.Context, env *bench) error {
	if err := env.prepareCRLs(ctx, b.entries); err != nil {
		return err
	}
	var seconds, peaks []float64
	var last crlRound
	for round := range b.rounds {
		empty, err := env.crlRound(ctx, emptyStore)
		if err != nil {
			return err
		}
		if last, err = env.crlRound(ctx, fullStore); err != nil {
			return err
		}
		if last.Entries != int64(b.entries) || empty.Entries != 0 {
			return fmt.Errorf("the CRLs have %d and %d entries, want %d and 0", last.Entries, empty.Entries, b.entries)
		}
		env.Logf("round %d of %d: %.3f s, peak %.1f MiB, and %.1f MiB with nothing revoked", round+1, b.rounds, last.Seconds, last.PeakMiB, empty.PeakMiB)
		seconds, peaks = append(seconds, last.Seconds), append(peaks, last.PeakMiB-empty.PeakMiB)
	}
	return emitCRLBench(env.Printer, seconds, peaks, last)
}

func emitCRLBench(p *output.Printer, seconds, peaks []float64, last crlRound) error {
	took, err := spreadOf("crl_seconds", seconds)
	if err != nil {
		return err
	}
	peak, err := spreadOf("crl_peak_mib", peaks)
	if err != nil {
		return fmt.Errorf("crl_peak_mib was not measured, because so few entries take less memory than two equal processes differ by: give more --entries (%w)", err)
	}
	result := struct {
		Size    int64             `json:"bytes"`
		PeakMiB float64           `json:"crl_peak_mib"`
		Seconds float64           `json:"crl_seconds"`
		Entries int64             `json:"entries"`
		Rounds  int               `json:"rounds"`
		Spread  map[string]spread `json:"spread"`
	}{last.Size, peak.Median, took.Median, last.Entries, len(seconds), map[string]spread{"crl_peak_mib": peak, "crl_seconds": took}}
	return p.Emit(result, [][]string{
		{"crl_seconds", decimal(took.Median), decimal(took.Min), decimal(took.Max)},
		{"crl_peak_mib", decimal(peak.Median), decimal(peak.Min), decimal(peak.Max)},
		{"entries", strconv.FormatInt(last.Entries, 10), "", ""},
		{"bytes", strconv.FormatInt(last.Size, 10), "", ""},
	})
}

// The stores and the CA certificate, below the directory of the measurement.
const (
	emptyStore = "empty"
	fullStore  = "full"
	benchCA    = "ca.crt"
)

// prepareCRLs makes a CA, an empty store, and a store with revoked certificates.
func (b *bench) prepareCRLs(ctx context.Context, entries int) error {
	name, err := ceremony.ParseSubject("CN=Brevet Bench CA")
	if err != nil {
		return err
	}
	der, err := ceremony.Root(b.Key, ceremony.RootSpec{Subject: name, Lifetime: 365 * 24 * time.Hour, Now: time.Now()})
	if err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	if err := file.WriteNew(filepath.Join(b.Dir, benchCA), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		return err
	}
	for name, n := range map[string]int{emptyStore: 0, fullStore: entries} {
		store := filepath.Join(b.Dir, name)
		if err := node.MakeDirectory(store); err != nil {
			return err
		}
		if err := fill.Revoked(ctx, filepath.Join(store, "store.db"), pki.IssuerOf(cert), n, b.Logf); err != nil {
			return err
		}
	}
	return nil
}

// crlRound runs a process that makes a CRL from a store, and returns the process's result.
func (b *bench) crlRound(ctx context.Context, store string) (crlRound, error) {
	cmd, err := b.Process(ctx, "crl-round", b.Dir, store, "--config", b.Config)
	if err != nil {
		return crlRound{}, err
	}
	var failed bytes.Buffer
	cmd.Stderr = &failed
	out, err := cmd.Output()
	if err != nil {
		return crlRound{}, fmt.Errorf("the measured process failed: %w: %s", err, failed.String())
	}
	var r crlRound
	err = json.Unmarshal(out, &r)
	return r, err
}

// newCRLRound returns the hidden command of the process that crlRound measures.
func newCRLRound() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use: "crl-round DIRECTORY STORE", Short: "Make one CRL, and print its time and memory", Args: cobra.ExactArgs(2), Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			pin, err := hsm.ReceivePIN(cmd.InOrStdin())
			if err != nil {
				return err
			}
			c, err := testbed.ReadConfig(config)
			if err != nil {
				return err
			}
			r, err := makeBenchCRL(cmd.Context(), c.HSM, pin, args[0], args[1])
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(r)
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration with the HSM")
	return cmd
}

func makeBenchCRL(ctx context.Context, c node.HSMConfig, pin hsm.PIN, dir, store string) (r crlRound, err error) {
	node.BoundGarbage(ctx) // as brevet serve does
	cert, err := file.ReadCertificate(filepath.Join(dir, benchCA))
	if err != nil {
		return r, err
	}
	token, err := node.OpenHSM(ctx, c, pin)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, token.Close()) }()
	key, err := token.Find(ctx, hsm.KeyRef{Label: filepath.Base(dir)})
	if err != nil {
		return r, err
	}
	db, err := sqlite.Open(ctx, filepath.Join(dir, store, "store.db"))
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	public, err := responder.New(responder.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, public.Close()) }()
	if err := public.AddIssuer(cert); err != nil {
		return r, err
	}
	updater, err := crl.New(ctx, crl.Config{
		Issuers: []crl.Issuer{{Certificate: cert, Signer: key}}, Store: db.Revocation(), Publisher: public,
		Directory: filepath.Join(dir, store, "crls"), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return r, err
	}
	begun := time.Now()
	if err := updater.PublishNow(ctx); err != nil {
		return r, err
	}
	r.Seconds = time.Since(begun).Seconds()
	crls, err := db.Revocation().CRLs(ctx)
	if err != nil {
		return r, err
	}
	for _, c := range crls {
		r.Entries, r.Size = c.Entries, c.Size
	}
	r.PeakMiB, err = testbed.PeakMiB()
	return r, err
}
