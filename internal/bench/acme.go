package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/internal/bench/acmeload"
	"github.com/brevet-pki/brevet/internal/bench/stepca"
	"github.com/brevet-pki/brevet/internal/bench/testbed"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/devca"
	"github.com/brevet-pki/brevet/pki"
)

// acmeBench measures how fast a whole server issues certificates over ACME.
type acmeBench struct {
	commonFlags
	callers  int
	accounts int    // in the store; 0 to not measure their memory
	program  string // step-ca; empty to measure Brevet only
}

func newACME() *cobra.Command {
	b := acmeBench{commonFlags: commonFlags{rounds: 3}}
	cmd := &cobra.Command{
		Use: "acme", Short: "Measure how many certificates a second a server issues over ACME", Args: cobra.NoArgs,
		Long: "acme starts a server process as issue does. ACME clients order certificates without pause, each over one connection and\n" +
			"for IP addresses of its own in 127.0.0.0/8: a new order, a validation with http-01 to which the client responds at\n" +
			"once, finalize, and the download. They poll without the pauses that a server asks for. Alternating with that, as many\n" +
			"operators request certificates over gRPC, as in issue. issue_ratio is the rate of ACME divided by that of gRPC.\n" +
			"Then clients request the renewal windows (ARI) of those certificates, over 64 kept connections: ari_per_second.\n\n" +
			"With --accounts it also measures the memory of so many accounts, a tenth of them with a pending order: accounts_mib is\n" +
			"the resident memory of a server with them in its store, less that of one without. Before, both get one signed request\n" +
			"for each account, from 16 connections: each account reads its order or itself.\n\n" +
			"With --step-ca it also measures a step-ca with the same clients, the same key in the same SoftHSM, and a badger v2\n" +
			"database on the same disk. step_ca_ratio is Brevet's rate divided by step-ca's. make bench-step-ca builds a step-ca.",
	}
	cmd.Flags().IntVar(&b.callers, "callers", 16, "concurrent ACME clients")
	cmd.Flags().IntVar(&b.accounts, "accounts", 0, "accounts whose memory is measured, 0 to 1000000 (default: none)")
	cmd.Flags().StringVar(&b.program, "step-ca", "", "the step-ca to measure beside Brevet (default: none)")
	b.timed(cmd, "12s", "how long certificates are issued over each protocol, in all rounds together")
	b.measures(cmd, b.check, b.run, "MEASURE", "MEDIAN", "MIN", "MAX")
	return cmd
}

// maxACMECallers is the number of addresses 127.0.1.1 to 127.0.1.250.
const maxACMECallers = 250

func (b *acmeBench) check() error {
	if _, err := b.round(minRound); err != nil {
		return err
	}
	if b.callers < 1 || b.callers > maxACMECallers {
		return cli.WrongUse(fmt.Sprintf("--callers %d: give 1 to %d", b.callers, maxACMECallers))
	}
	if b.accounts < 0 || b.accounts > maxAccounts {
		return cli.WrongUse(fmt.Sprintf("--accounts %d: give 0 to %d", b.accounts, maxAccounts))
	}
	if b.program == "" {
		return nil
	}
	if _, err := exec.LookPath(b.program); err != nil {
		return cli.WrongUse(fmt.Sprintf("--step-ca: %v; make bench-step-ca builds it", err))
	}
	return nil
}

// The fields that each round measures, in the order of the output. Those of step-ca are measured with --step-ca.
var (
	acmeFields = []string{
		"certificates_per_second", "p50_ms", "p99_ms", "server_cpu_us", "load_cpu_us", "rss_mib", "issue_per_second", "issue_p50_ms", "issue_ratio",
		"ari_per_second", "ari_p50_ms", "ari_p99_ms", "ari_server_cpu_us", "ari_load_cpu_us",
	}
	acmeStepCAFields = []string{"step_ca_per_second", "step_ca_p50_ms", "step_ca_p99_ms", "step_ca_cpu_us", "step_ca_ratio"}
)

func (b *acmeBench) run(ctx context.Context, env *bench) (err error) {
	d, err := b.round(minRound)
	if err != nil {
		return err
	}
	object := map[string]any{"callers": b.callers, "rounds": b.rounds}
	var memory [][]string
	if b.accounts > 0 {
		if memory, err = measureAccounts(ctx, env, b.accounts, object); err != nil {
			return err
		}
	}
	rig := &acmeRig{issueRig: issueRig{bench: env, mode: (&issueBench{callers: b.callers}).mode()}}
	defer func() { err = errors.Join(err, rig.close()) }()
	if err := rig.open(ctx, b); err != nil {
		return err
	}
	if _, err := rig.round(ctx, d); err != nil { // a warm-up: files and caches grow to their size
		return err
	}
	measured, fields := rounds{}, acmeFields
	if rig.other != nil {
		fields = append(fields, acmeStepCAFields...)
	}
	for n := range b.rounds {
		values, err := rig.round(ctx, d)
		if err != nil {
			return err
		}
		measured.add(values)
		rig.Logf("round %d of %d: %.0f certificates a second over ACME, %.0f over gRPC; %.0f renewal windows", n+1, b.rounds,
			values["certificates_per_second"], values["issue_per_second"], values["ari_per_second"])
	}
	rows, err := measured.describe(object, fields)
	if err != nil {
		return err
	}
	return rig.Emit(object, append(rows, memory...))
}

// acmeRig holds everything that brevet-bench acme measures.
type acmeRig struct {
	issueRig
	config       *tls.Config // of the clients
	clients      []*acmeload.Client
	pollers      []*acmeload.Poller // connected by the first round
	other        *stepca.Server     // nil without --step-ca
	otherClients []*acmeload.Client
}

// open starts the servers, and creates the accounts of the clients.
func (r *acmeRig) open(ctx context.Context, b *acmeBench) error {
	if err := r.serve(ctx, issueBench{callers: b.callers}, "server"); err != nil {
		return err
	}
	if b.program == "" {
		return nil
	}
	port, err := freePort(ctx)
	if err != nil {
		return err
	}
	if r.other, err = r.startStepCA(ctx, b.program, 0, "--insecure", "--acme-http-port", strconv.Itoa(port)); err != nil {
		return err
	}
	directory := r.other.URL + "/acme/" + stepca.ACMEProvisioner + "/directory"
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: r.other.Roots}
	r.otherClients, err = acmeload.OpenAll(ctx, b.callers, config, directory, port, stepca.Timeout)
	return r.other.Explain(err)
}

// serve starts a server, and creates an account for each caller.
func (r *acmeRig) serve(ctx context.Context, b issueBench, name string) error {
	port, err := freePort(ctx)
	if err != nil {
		return err
	}
	r.options = []string{"--acme-http-port", strconv.Itoa(port)}
	if r.party, err = b.open(ctx, &r.issueRig, name, 0); err != nil {
		return err
	}
	document, err := acmePolicy()
	if err != nil {
		return err
	}
	if err := r.applyPolicy(ctx, document); err != nil {
		return err
	}
	operator := r.callers[0].pair
	r.config = enroll.AnonymousTLS(operator.RootPool(), operator.ID().TrustDomain())
	r.config.NextProtos = []string{"http/1.1"}
	directory := "https://" + net.JoinHostPort("localhost", portText(r.server.Dev.HTTPS)) + "/acme/directory"
	r.clients, err = acmeload.OpenAll(ctx, b.callers, r.config, directory, port, stepca.Timeout)
	return err
}

// freePort returns a port on which nothing listens.
func freePort(ctx context.Context) (int, error) {
	addresses, err := devca.FreeAddresses(ctx, 1)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(portText(addresses[0]))
}

func portText(address string) string {
	_, port, _ := net.SplitHostPort(address) // FreeAddresses returns addresses with a port
	return port
}

// acmePolicy returns the document of the measured server: everybody who controls an address gets certificates for it.
func acmePolicy() ([]byte, error) {
	profiles, err := ca.DefaultProfiles()
	if err != nil {
		return nil, err
	}
	profile := profiles["acme"]
	profile.MaxUnexpired = 1000
	return yaml.Marshal(map[string]any{
		"acme":     map[string]any{"binding": "optional"},
		"profiles": map[string]any{"acme": profile},
		"rules": []map[string]any{
			{"name": "tokens", "evidence": []string{pki.EvidenceToken.String()}},
			{
				"name": "servers", "evidence": []string{pki.EvidenceACME.String()}, "identity": "web/{acme.name}", "register": true,
				"kind": pki.Workload.String(),
			},
		},
	})
}

func (r *acmeRig) close() error {
	var err error
	for _, p := range r.pollers {
		err = errors.Join(err, p.Close())
	}
	for _, c := range append(r.clients, r.otherClients...) {
		err = errors.Join(err, c.Close())
	}
	return errors.Join(err, r.other.Stop(), r.party.close())
}

// round measures ACME, gRPC and, with --step-ca, step-ca once.
func (r *acmeRig) round(ctx context.Context, d time.Duration) (map[string]float64, error) {
	values := map[string]float64{}
	issued, err := r.put(ctx, r.party, d)
	if err != nil {
		return nil, err
	}
	values["issue_per_second"], values["issue_p50_ms"] = issued.rate, issued.quantile(0.5)
	before, err := r.cpu()
	if err != nil {
		return nil, err
	}
	l, err := putLoad(ctx, r.clients, (*acmeload.Client).Certificate, d)
	if err != nil {
		return nil, err
	}
	after, err := r.cpu()
	if err != nil {
		return nil, err
	}
	n := float64(len(l.latencies))
	values["certificates_per_second"], values["p50_ms"], values["p99_ms"] = l.rate, l.quantile(0.5), l.quantile(0.99)
	values["server_cpu_us"], values["load_cpu_us"] = micros(after.server-before.server)/n, micros(after.load-before.load)/n
	values["issue_ratio"] = l.rate / issued.rate
	if values["rss_mib"], err = r.server.ResidentMiB(); err != nil {
		return nil, err
	}
	if err := r.pollWindows(ctx, d, values); err != nil || r.other == nil {
		return values, err
	}
	return values, r.loadStepCA(ctx, d, values)
}

// loadStepCA orders certificates of step-ca.
func (r *acmeRig) loadStepCA(ctx context.Context, d time.Duration, values map[string]float64) error {
	before, err := testbed.CPUOf(r.other.Process())
	if err != nil {
		return err
	}
	l, err := putLoad(ctx, r.otherClients, (*acmeload.Client).Certificate, d)
	if err != nil {
		return r.other.Explain(err)
	}
	after, err := testbed.CPUOf(r.other.Process())
	if err != nil {
		return err
	}
	values["step_ca_per_second"], values["step_ca_p50_ms"], values["step_ca_p99_ms"] = l.rate, l.quantile(0.5), l.quantile(0.99)
	values["step_ca_cpu_us"] = micros(after-before) / float64(len(l.latencies))
	values["step_ca_ratio"] = values["certificates_per_second"] / l.rate
	return rest(ctx, settling)
}
