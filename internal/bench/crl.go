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
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/file"
	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/internal/cli/output"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/revocation/responder"
	"github.com/brevet-pki/brevet/store/sqlite"
)

// maxBenchEntries bounds what a measurement fills a store with.
const maxBenchEntries = 100_000_000

// crlBench is a measurement of making a CRL.
type crlBench struct {
	commonFlags
	entries int
}

func newCRL() *cobra.Command {
	b := crlBench{commonFlags: commonFlags{rounds: 5}}
	cmd := &cobra.Command{
		Use: "crl", Short: "Measure how long a full CRL takes, from the store to the published file", Args: cobra.NoArgs,
		Long: "crl fills a store of its own with revoked certificates, and has a process of its own publish their full CRL: take\n" +
			"a number, read the store, write, sign with the HSM, flush, record and rename. In turn with it, another one\n" +
			"does the same with a store in which nothing is revoked: crl_peak_mib is by how much the peaks of their resident\n" +
			"memory (VmHWM) differ. What it made is removed again.",
	}
	cmd.Flags().IntVar(&b.entries, "entries", 1_000_000, "how many certificates are revoked")
	placeFlag(cmd)
	b.measures(cmd, b.check, b.run, "MEASURE", "MEDIAN", "MIN", "MAX")
	return cmd
}

func (b *crlBench) check() error {
	if b.entries < 1 || b.entries > maxBenchEntries {
		return cli.WrongUse(fmt.Sprintf("--entries %d: give 1 to %d", b.entries, maxBenchEntries))
	}
	return nil
}

// crlRound is what one process has measured.
type crlRound struct {
	Seconds float64 `json:"seconds"`
	PeakMiB float64 `json:"peak_mib"`
	Entries int64   `json:"entries"`
	Size    int64   `json:"size"`
}

func (b *crlBench) run(ctx context.Context, place *bench) error {
	if err := place.prepareCRLs(ctx, b.entries); err != nil {
		return err
	}
	var seconds, peaks []float64
	var last crlRound
	for round := range b.rounds {
		empty, err := place.crlRound(ctx, emptyStore)
		if err != nil {
			return err
		}
		if last, err = place.crlRound(ctx, fullStore); err != nil {
			return err
		}
		if last.Entries != int64(b.entries) || empty.Entries != 0 {
			return fmt.Errorf("the CRLs have %d and %d entries, and not %d and none", last.Entries, empty.Entries, b.entries)
		}
		place.say("round %d of %d: %.3f s, peak %.1f MiB, and %.1f MiB with nothing revoked", round+1, b.rounds, last.Seconds, last.PeakMiB, empty.PeakMiB)
		seconds, peaks = append(seconds, last.Seconds), append(peaks, last.PeakMiB-empty.PeakMiB)
	}
	return emitCRLBench(place.Printer, seconds, peaks, last)
}

func emitCRLBench(p *output.Printer, seconds, peaks []float64, last crlRound) error {
	took, err := spreadOf("crl_seconds", seconds)
	if err != nil {
		return err
	}
	peak, err := spreadOf("crl_peak_mib", peaks)
	if err != nil {
		return fmt.Errorf("crl_peak_mib was not measured, since so few entries take less than what two processes differ by: give more --entries (%w)", err)
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

// Where a measurement of CRLs has what, below its directory.
const (
	emptyStore = "empty"
	fullStore  = "full"
	benchCA    = "ca.crt"
)

// prepareCRLs makes a CA, and two stores.
func (b *bench) prepareCRLs(ctx context.Context, entries int) error {
	name, err := ceremony.ParseSubject("CN=Brevet Bench CA")
	if err != nil {
		return err
	}
	der, err := ceremony.Root(b.key, ceremony.RootSpec{Subject: name, Lifetime: 365 * 24 * time.Hour, Now: time.Now()})
	if err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	if err := file.WriteNew(filepath.Join(b.dir, benchCA), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		return err
	}
	for name, n := range map[string]int{emptyStore: 0, fullStore: entries} {
		store := filepath.Join(b.dir, name)
		if err := node.MakeDirectory(store); err != nil {
			return err
		}
		if err := fillRevoked(ctx, filepath.Join(store, "store.db"), pki.IssuerOf(cert), n, b.say); err != nil {
			return err
		}
	}
	return nil
}

// crlRound has a process make a CRL from a store, and returns what it says of that.
func (b *bench) crlRound(ctx context.Context, store string) (crlRound, error) {
	cmd, err := b.process(ctx, "crl-round", b.dir, store, "--config", b.config)
	if err != nil {
		return crlRound{}, err
	}
	var failed bytes.Buffer
	cmd.Stderr = &failed
	out, err := cmd.Output()
	if err != nil {
		return crlRound{}, fmt.Errorf("the process to measure fails: %w: %s", err, failed.String())
	}
	var r crlRound
	err = json.Unmarshal(out, &r)
	return r, err
}

// newCRLRound is the process that is measured.
func newCRLRound() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use: "crl-round DIRECTORY STORE", Short: "Make one CRL, and say what that took", Args: cobra.ExactArgs(2), Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			pin, err := hsm.ReceivePIN(cmd.InOrStdin())
			if err != nil {
				return err
			}
			c, err := placeConfig(config)
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
	node.BoundGarbage(ctx) // as the server has it
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
	r.PeakMiB, err = peakMiB()
	return r, err
}

// peakMiB is the most resident memory that this process has had (proc(5), VmHWM).
func peakMiB() (float64, error) {
	return statusMiB("/proc/self/status", "VmHWM:")
}
