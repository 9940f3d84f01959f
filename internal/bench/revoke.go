package bench

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ocsp"
	"google.golang.org/grpc"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/internal/bench/fill"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/file"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// The parameters of the measurement.
const (
	revokeRate    = 200.0                  // requests per second meanwhile, sent without waiting for earlier responses
	revokeCallers = 32                     // connections that send them
	revokeWarmUp  = time.Second            // of such requests, not counted
	revokeBefore  = 5 * time.Second        // of such requests before the revocation: 10 of them are above before_p99_ms
	revokeProbes  = 32                     // certificates whose OCSP status is checked
	crlPoll       = 250 * time.Millisecond // pause between two downloads of the CRL
	maxPolledCRL  = 1 << 30                // bytes
	minCRLEntry   = 35                     // bytes: a serial number of 20 and a UTCTime of 13, each with its tag
	labelName     = "batch"
	labelValue    = "stolen"
)

// maxRevoked limits --count. A CRL takes about 40 bytes for each certificate, and must fit in memory.
const maxRevoked = 1_000_000

// revokeBench measures a bulk revocation.
type revokeBench struct {
	commonFlags
	count int
}

func newRevoke() *cobra.Command {
	b := revokeBench{commonFlags: commonFlags{rounds: 1}}
	cmd := &cobra.Command{
		Use: "revoke", Short: "Measure how long it takes to revoke many certificates at once", Args: cobra.NoArgs,
		Long: "revoke starts a server process with a new HSM and a new store in a temporary directory. It fills the store with --count\n" +
			"certificates of as many devices, all with one label. While requests for certificates come at random times, 200 per\n" +
			"second, it revokes all certificates of devices with the label. revoke_seconds is how long the RPC takes; after it, the\n" +
			"OCSP status of a sample must be revoked. entries_seconds is the time until the published CRL lists all of them.\n" +
			"issue_p99_ms is the latency of issuing in that time, before_p99_ms that in the 5 seconds before, and issue_p99_ratio the\n" +
			"first divided by the second. Each round starts a new server. The load shares this machine's cores with the server. Set\n" +
			"TMPDIR to measure another disk.",
	}
	cmd.Flags().IntVar(&b.count, "count", 100_000, "certificates to revoke")
	configFlag(cmd)
	b.measures(cmd, b.check, b.run, "MEASURE", "MEDIAN", "MIN", "MAX")
	return cmd
}

func (b *revokeBench) check() error {
	if b.count < revokeProbes || b.count > maxRevoked {
		return cli.WrongUse(fmt.Sprintf("--count %d: give %d to %d", b.count, revokeProbes, maxRevoked))
	}
	return nil
}

// revokeFields are the fields that each round measures, in the order of the output.
var revokeFields = []string{
	"revoke_seconds", "entries_seconds", "issue_p99_ms", "issue_p50_ms", "issue_per_second", "before_p99_ms", "before_p50_ms",
	"issue_p99_ratio", "rss_mib",
}

func (b *revokeBench) run(ctx context.Context, env *bench) error {
	measured := rounds{}
	for n := range b.rounds {
		rig := &revokeRig{bench: env, count: b.count}
		values, err := rig.round(ctx, fmt.Sprint(n))
		if err != nil {
			return err
		}
		measured.add(values)
		rig.Logf("round %d of %d: in effect after %.3f s, in the CRL after %.1f s", n+1, b.rounds, values["revoke_seconds"], values["entries_seconds"])
	}
	return env.report(map[string]any{"count": b.count, "rounds": b.rounds, "rate": revokeRate}, measured, revokeFields)
}

// pollInterval is the pause between two requests for the state of the bulk revocation.
const pollInterval = 200 * time.Millisecond

// revokeRig is a server, with the certificates to revoke.
type revokeRig struct {
	*bench
	count  int
	party  party
	probes []pki.Serial // of random certificates, for OCSP
	issuer *x509.Certificate
}

func (r *revokeRig) round(ctx context.Context, name string) (values map[string]float64, err error) {
	defer func() { err = errors.Join(err, r.party.close()) }()
	if err := r.open(ctx, name); err != nil {
		return nil, err
	}
	operator, err := enroll.ReadPair(r.party.server.Dev.OperatorDir())
	if err != nil {
		return nil, err
	}
	conn, err := client.Connect(operator.Origin.Server, operator)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if _, err := arrive(ctx, r.party.callers, revokeRate, revokeWarmUp); err != nil {
		return nil, err
	}
	before, err := arrive(ctx, r.party.callers, revokeRate, revokeBefore)
	if err != nil {
		return nil, err
	}
	if values, err = r.revoke(ctx, conn); err != nil {
		return nil, err
	}
	values["before_p50_ms"], values["before_p99_ms"] = before.quantile(0.5), before.quantile(0.99)
	values["issue_p99_ratio"] = values["issue_p99_ms"] / values["before_p99_ms"]
	return values, nil
}

// open fills a server's store, starts the server, and connects the callers.
func (r *revokeRig) open(ctx context.Context, name string) error {
	r.Logf("starting the server to measure")
	d, err := r.NewDev(ctx, name)
	if err != nil {
		return err
	}
	seen := 0
	err = r.FillStore(ctx, d, fill.Spec{
		Certificates: r.count, PerIdentity: 1, Labels: map[string]string{labelName: labelValue},
		Made: func(ref pki.CertRef) { // reservoir sampling: each is a probe with the same probability
			if seen++; len(r.probes) < revokeProbes {
				r.probes = append(r.probes, ref.Serial)
			} else if i := rand.IntN(seen); i < revokeProbes { //nolint:gosec // the sample is not secret
				r.probes[i] = ref.Serial
			}
		},
	})
	if err != nil {
		return err
	}
	if r.issuer, err = file.ReadCertificate(d.IssuingFile()); err != nil {
		return err
	}
	if r.party.server, err = r.StartServer(ctx, d); err != nil {
		return err
	}
	operator, err := enroll.ReadPair(d.OperatorDir())
	if err != nil {
		return err
	}
	r.Logf("connecting %d callers", revokeCallers)
	r.party.callers, err = openCallers(ctx, operator, revokeCallers)
	return err
}

// revoke revokes the certificates while others are issued, and waits for the CRL.
func (r *revokeRig) revoke(ctx context.Context, conn *grpc.ClientConn) (map[string]float64, error) {
	if err := r.probe(ctx, ocsp.Good); err != nil {
		return nil, err
	}
	var ended atomic.Bool
	loaded := make(chan error, 1)
	var l load
	go func() {
		var err error
		l, err = arriveWhile(ctx, r.party.callers, revokeRate, func(time.Duration) bool { return !ended.Load() })
		loaded <- err
	}()
	values := map[string]float64{}
	err := r.bulkRevoke(ctx, brevetv1.NewRevocationServiceClient(conn), values)
	ended.Store(true)
	if err := errors.Join(err, <-loaded); err != nil {
		return nil, err
	}
	values["issue_p99_ms"], values["issue_p50_ms"], values["issue_per_second"] = l.quantile(0.99), l.quantile(0.5), l.rate
	values["rss_mib"], err = r.party.server.ResidentMiB()
	return values, err
}

// bulkRevoke creates the bulk revocation, checks its effect by OCSP, and waits until the published CRL lists all
// certificates.
func (r *revokeRig) bulkRevoke(ctx context.Context, c brevetv1.RevocationServiceClient, values map[string]float64) error {
	begin := time.Now()
	resp, err := c.CreateBulkRevocation(ctx, &brevetv1.CreateBulkRevocationRequest{
		Selection: &brevetv1.CertificateSelection{Label: &brevetv1.Label{Name: labelName, Value: labelValue}},
		Reason:    brevetv1.RevocationReason_REVOCATION_REASON_PRIVILEGE_WITHDRAWN,
	})
	if err != nil {
		return err
	}
	values["revoke_seconds"] = time.Since(begin).Seconds()
	if err := r.probe(ctx, ocsp.Revoked); err != nil {
		return err
	}
	bulk := resp.GetBulkRevocation()
	if bulk.GetTotal() != int64(r.count) {
		return fmt.Errorf("the bulk revocation matches %d certificates, and %d have the label", bulk.GetTotal(), r.count)
	}
	for bulk.GetState() != brevetv1.BulkRevocationState_BULK_REVOCATION_STATE_DONE {
		if err := rest(ctx, pollInterval); err != nil {
			return err
		}
		resp, err := c.GetBulkRevocation(ctx, &brevetv1.GetBulkRevocationRequest{Id: bulk.GetId()})
		if err != nil {
			return err
		}
		bulk = resp.GetBulkRevocation()
	}
	r.Logf("applied to all records after %.1f s", time.Since(begin).Seconds())
	for {
		n, err := r.published(ctx)
		if err != nil {
			return err
		}
		if n >= r.count {
			values["entries_seconds"] = time.Since(begin).Seconds()
			return nil
		}
		if err := rest(ctx, crlPoll); err != nil {
			return err
		}
	}
}

func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// published returns the number of entries in the published CRL, or 0 if the CRL is too small for all of them.
func (r *revokeRig) published(ctx context.Context) (int, error) {
	der, err := r.fetch(ctx, http.MethodGet, "/crl/"+pki.IssuerOf(r.issuer).Short()+".crl", nil)
	if err != nil {
		return 0, err
	}
	if len(der) < r.count*minCRLEntry { // do not parse it: that would slow down issuing on this machine more than signing the CRL does
		return 0, nil
	}
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		return 0, err
	}
	return len(crl.RevokedCertificateEntries), crl.CheckSignatureFrom(r.issuer)
}

// probe returns an error unless OCSP reports the status want for all probes.
func (r *revokeRig) probe(ctx context.Context, want int) error {
	for _, serial := range r.probes {
		req, err := ocsp.CreateRequest(&x509.Certificate{SerialNumber: new(big.Int).SetBytes(serial.Bytes())}, r.issuer, nil)
		if err != nil {
			return err
		}
		der, err := r.fetch(ctx, http.MethodPost, "/ocsp", req)
		if err != nil {
			return err
		}
		resp, err := ocsp.ParseResponse(der, r.issuer)
		if err != nil {
			return err
		}
		if resp.Status != want {
			return fmt.Errorf("the OCSP status of certificate %s is %d, want %d (0 good, 1 revoked, 2 unknown)", serial, resp.Status, want)
		}
	}
	return nil
}

func (r *revokeRig) fetch(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+r.party.server.Dev.HTTP+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/ocsp-request")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s responded with HTTP %s", path, resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, maxPolledCRL))
}
