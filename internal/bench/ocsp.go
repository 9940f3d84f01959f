package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/brevet-pki/brevet/internal/bench/fill"
	"github.com/brevet-pki/brevet/internal/bench/ocspload"
	"github.com/brevet-pki/brevet/internal/bench/testbed"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/devca"
	"github.com/brevet-pki/brevet/internal/cli/file"
	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/sqlite"
)

// One in revokedPart of the issued certificates is revoked, and one in askedPart is requested.
const (
	revokedPart = 100
	askedPart   = 10
)

// minIssued is the minimum of --issued: one certificate is revoked, and enough are requested for a mean.
const minIssued = 1000

// ocspBench measures how fast a server answers OCSP requests.
type ocspBench struct {
	commonFlags
	issued int
	wrk    string
}

func newOCSP() *cobra.Command {
	b := ocspBench{commonFlags: commonFlags{rounds: 3}}
	cmd := &cobra.Command{
		Use: "ocsp", Short: "Measure how many OCSP requests a second a server answers", Args: cobra.NoArgs,
		Long: "ocsp fills the store of a server process with certificates, revokes a hundredth of them, and requests the status of a\n" +
			"tenth once. Then wrk requests the statuses of random ones of that tenth over persistent connections: by GET, by POST,\n" +
			"and by POST with a nonce, for which each response is signed. Alternating with that, wrk sends requests to a bare\n" +
			"net/http handler that only writes responses of the same size, and a process signs as an OCSP delegate does, on all\n" +
			"cores. static_ratio_get and static_ratio_post are the server's rates divided by the bare handler's. signed_ratio is\n" +
			"the server's rate of signed responses divided by the rate that the bare handler and signing allow together. Each of\n" +
			"the six measurements takes --duration. wrk shares this machine's cores with the servers.",
	}
	cmd.Flags().IntVar(&b.issued, "issued", maxIssued, "certificates in the store")
	b.timed(cmd, "30s", "how long each kind of request is measured, in all rounds together")
	b.measures(cmd, b.check, b.run, "MEASURE", "MEDIAN", "MIN", "MAX")
	return cmd
}

func (b *ocspBench) check() error {
	if _, err := b.round(ocspload.MinRound); err != nil {
		return err
	}
	if b.issued < minIssued || b.issued > maxIssued {
		return cli.WrongUse(fmt.Sprintf("--issued %d: give %d to %d", b.issued, minIssued, maxIssued))
	}
	var err error
	b.wrk, err = ocspload.FindWrk()
	return err
}

// maxIssued is the maximum of --issued. The responder's cache must hold a response for each certificate in a tenth of
// it.
const maxIssued = 1_000_000

// ocspRig holds everything that brevet-bench ocsp measures.
type ocspRig struct {
	*bench
	wrk      string
	server   *testbed.Server
	bare     *bareServer
	kinds    []*ocspload.Requests
	bodySize float64 // bytes of a response's body, on average
}

func (r *ocspRig) close() error {
	var err error
	if r.bare != nil {
		err = r.bare.stop()
	}
	if r.server != nil {
		err = errors.Join(err, r.server.Stop())
	}
	return err
}

func (b *ocspBench) run(ctx context.Context, env *bench) (err error) {
	d, err := b.round(ocspload.MinRound)
	if err != nil {
		return err
	}
	rig := &ocspRig{bench: env, wrk: b.wrk}
	defer func() { err = errors.Join(err, rig.close()) }()
	if err := b.prepare(ctx, rig); err != nil {
		return err
	}
	measured := rounds{}
	for n := range b.rounds {
		values, err := rig.round(ctx, d.Truncate(ocspload.MinRound))
		if err != nil {
			return err
		}
		measured.add(values)
		rig.Logf("round %d of %d: %.0f GET, %.0f POST, %.0f nonces a second: %.2f, %.2f, %.2f of the bounds", n+1, b.rounds,
			values["get_per_second"], values["post_per_second"], values["nonce_per_second"],
			values["static_ratio_get"], values["static_ratio_post"], values["signed_ratio"])
	}
	return env.report(map[string]any{
		"issued": b.issued, "revoked": b.issued / revokedPart, "asked": b.issued / askedPart, "connections": ocspload.Connections, "rounds": b.rounds,
	}, measured, ocspFields)
}

// prepare fills a server's store, sends each request to the server once, and starts the bare server.
func (b *ocspBench) prepare(ctx context.Context, rig *ocspRig) error {
	rig.Logf("starting the server to measure")
	d, err := rig.NewDev(ctx, "server")
	if err != nil {
		return err
	}
	issued := make([]pki.CertRef, 0, b.issued)
	if err := rig.FillStore(ctx, d, fill.Spec{
		Certificates: b.issued, PerIdentity: fill.PerIdentity, Made: func(ref pki.CertRef) { issued = append(issued, ref) },
	}); err != nil {
		return err
	}
	rig.Logf("revoking %d of them", b.issued/revokedPart)
	shuffle(issued)
	if err := revokeAll(ctx, d, issued[:b.issued/revokedPart]); err != nil {
		return err
	}
	if rig.server, err = rig.StartServer(ctx, d); err != nil {
		return err
	}
	shuffle(issued)
	issuing, err := file.ReadCertificate(d.IssuingFile())
	if err != nil {
		return err
	}
	if rig.kinds, err = ocspload.WriteRequests(rig.Dir, issuing, issued[:b.issued/askedPart]); err != nil {
		return err
	}
	rig.Logf("requesting %d statuses once", b.issued/askedPart)
	for _, w := range rig.kinds {
		if err := w.TryOut(ctx, d.HTTP); err != nil {
			return err
		}
	}
	rig.bodySize = rig.kinds[0].BodySize
	rig.bare, err = rig.startBareServer(ctx, "bare", "--size", strconv.Itoa(int(rig.bodySize)))
	return err
}

func shuffle(refs []pki.CertRef) {
	rand.Shuffle(len(refs), func(i, j int) { refs[i], refs[j] = refs[j], refs[i] }) //nolint:gosec // the order is not secret
}

// revokers is the number of concurrent revocations, which share transactions.
const revokers = 128

// revokeAll revokes certificates in the store of a development CA that is not running.
func revokeAll(ctx context.Context, d devca.CA, refs []pki.CertRef) (err error) {
	c := node.Config{StateDir: d.Dir}
	db, err := sqlite.Open(ctx, c.StorePath())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(revokers)
	for _, ref := range refs {
		group.Go(func() error {
			_, err := db.Revocation().Apply(ctx, revocation.Change{
				Action: revocation.Revoke, Reason: pki.Superseded, Certificate: ref, Actor: fill.Actor, At: time.Now(),
			})
			return err
		})
	}
	return group.Wait()
}

// round measures everything once, each server after the one that it is compared with.
func (r *ocspRig) round(ctx context.Context, d time.Duration) (map[string]float64, error) {
	values := map[string]float64{"answer_octets": r.bodySize}
	var err error
	for _, w := range r.kinds {
		l, err := w.Send(ctx, r.wrk, r.server.Dev.HTTP, r.server.Process(), w.Size, d)
		if err != nil {
			return nil, err
		}
		values[w.Name+"_per_second"], values[w.Name+"_p50_ms"], values[w.Name+"_p99_ms"] = l.Rate, l.P50, l.P99
		values[w.Name+"_server_cpu_us"], values[w.Name+"_load_cpu_us"] = l.ServerCPU, l.LoadCPU
		if !w.Compared {
			continue
		}
		bare, err := w.Send(ctx, r.wrk, r.bare.address, r.bare.cmd.Process, 0, d)
		if err != nil {
			return nil, err
		}
		values["bare_"+w.Name+"_per_second"], values["static_ratio_"+w.Name] = bare.Rate, l.Rate/bare.Rate
		values["bare_"+w.Name+"_server_cpu_us"] = bare.ServerCPU
	}
	if values["signatures_per_second"], values["signature_cpu_us"], err = r.delegateRate(ctx, d); err != nil {
		return nil, err
	}
	// A signed response takes the time of a POST and the time of a signature.
	values["signed_bound_per_second"] = 1 / (1/values["bare_post_per_second"] + 1/values["signatures_per_second"])
	values["signed_ratio"] = values["nonce_per_second"] / values["signed_bound_per_second"]
	values["rss_mib"], err = r.server.ResidentMiB()
	return values, err
}

// ocspFields are the fields that each round measures, in the order of the output.
var ocspFields = []string{
	"static_ratio_get", "static_ratio_post", "signed_ratio", "get_per_second", "get_p50_ms", "get_p99_ms", "bare_get_per_second",
	"post_per_second", "post_p50_ms", "post_p99_ms", "bare_post_per_second", "nonce_per_second", "nonce_p50_ms", "nonce_p99_ms",
	"signatures_per_second", "signed_bound_per_second", "get_server_cpu_us", "get_load_cpu_us", "bare_get_server_cpu_us",
	"post_server_cpu_us", "post_load_cpu_us", "bare_post_server_cpu_us", "nonce_server_cpu_us", "nonce_load_cpu_us", "signature_cpu_us",
	"answer_octets", "rss_mib",
}
