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
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/file"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// How a revocation is measured.
const (
	revokeRate    = 200.0                  // certificates a second that are issued meanwhile, whether those before are answered or not
	revokeCallers = 32                     // devices that ask for them
	revokeWarmUp  = 3 * time.Second        // before the order
	revokeProbes  = 32                     // members that OCSP is asked about
	crlPoll       = 250 * time.Millisecond // between two looks at the CRL
	maxPolledCRL  = 1 << 30                // bytes
	minCRLEntry   = 35                     // bytes: a serial number of 20 and a UTCTime of 13, each with its tag
	labelName     = "batch"
	labelValue    = "stolen"
)

// maxRevoked bounds --count: a CRL takes some 40 bytes for each, and has to fit in memory.
const maxRevoked = 1_000_000

// revokeBench is a measurement of one order about many certificates.
type revokeBench struct {
	commonFlags
	count int
}

func newRevoke() *cobra.Command {
	b := revokeBench{commonFlags: commonFlags{rounds: 1}}
	cmd := &cobra.Command{
		Use: "revoke", Short: "Measure how long it takes to revoke many certificates at once", Args: cobra.NoArgs,
		Long: "revoke starts a server process with an HSM and a store of its own in a temporary directory, and fills the store\n" +
			"with --count certificates, each of a device of its own, all with one label. While requests for certificates come at\n" +
			"random times, 200 a second, it revokes by the label: revoke_seconds is until the call has returned, and OCSP is asked\n" +
			"about some of the certificates right after it, which have to be revoked. entries_seconds is from the order until all\n" +
			"are in the CRL that the server publishes, and issue_p99_ms what a certificate took in that time; before_p99_ms is that\n" +
			"of the seconds before. Each round has a server of its own. The load shares this machine's cores with the server. Set\n" +
			"TMPDIR to measure another disk.",
	}
	cmd.Flags().IntVar(&b.count, "count", 100_000, "certificates that are revoked")
	placeFlag(cmd)
	b.measures(cmd, b.check, b.run, "MEASURE", "MEDIAN", "MIN", "MAX")
	return cmd
}

func (b *revokeBench) check() error {
	if b.count < revokeProbes || b.count > maxRevoked {
		return cli.WrongUse(fmt.Sprintf("--count %d: give %d to %d", b.count, revokeProbes, maxRevoked))
	}
	return nil
}

// revokeFields are what a round measures, in the order that they are shown in.
var revokeFields = []string{
	"revoke_seconds", "entries_seconds", "issue_p99_ms", "issue_p50_ms", "issue_per_second", "before_p99_ms", "before_p50_ms", "rss_mib",
}

func (b *revokeBench) run(ctx context.Context, place *bench) error {
	measured := rounds{}
	for n := range b.rounds {
		rig := &revokeRig{bench: place, count: b.count}
		values, err := rig.round(ctx, fmt.Sprint(n))
		if err != nil {
			return err
		}
		measured.add(values)
		rig.say("round %d of %d: in effect after %.3f s, in the CRL after %.1f s", n+1, b.rounds, values["revoke_seconds"], values["entries_seconds"])
	}
	return place.report(map[string]any{"count": b.count, "rounds": b.rounds, "rate": revokeRate}, measured, revokeFields)
}

// pollInterval is how often a bulk revocation is asked how far its records are.
const pollInterval = 200 * time.Millisecond

// revokeRig is one server, and what it is asked.
type revokeRig struct {
	*bench
	count  int
	party  party
	probes []pki.Serial // members, drawn at random
	issuer *x509.Certificate
}

func (r *revokeRig) round(ctx context.Context, name string) (values map[string]float64, err error) {
	defer func() { err = errors.Join(err, r.party.close()) }()
	if err := r.open(ctx, name); err != nil {
		return nil, err
	}
	operator, err := enroll.ReadPair(r.party.server.dev.OperatorDir())
	if err != nil {
		return nil, err
	}
	conn, err := client.Connect(operator.Origin.Server, operator)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	before, err := arrive(ctx, r.party.callers, revokeRate, revokeWarmUp)
	if err != nil {
		return nil, err
	}
	if values, err = r.revoke(ctx, conn); err != nil {
		return nil, err
	}
	values["before_p50_ms"], values["before_p99_ms"] = before.quantile(0.5), before.quantile(0.99)
	return values, nil
}

// open fills a server's store, starts it, and enrolls its callers.
func (r *revokeRig) open(ctx context.Context, name string) error {
	r.say("starting a server of its own")
	d, err := r.newDev(ctx, name)
	if err != nil {
		return err
	}
	seen := 0
	err = r.fillStore(ctx, d, filling{
		certificates: r.count, perIdentity: 1, labels: map[string]string{labelName: labelValue},
		made: func(ref pki.CertRef) { // each of them is a probe with the same probability
			if seen++; len(r.probes) < revokeProbes {
				r.probes = append(r.probes, ref.Serial)
			} else if i := rand.IntN(seen); i < revokeProbes { //nolint:gosec // of no use to anybody who guesses it
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
	if r.party.server, err = r.startServer(ctx, d); err != nil {
		return err
	}
	operator, err := enroll.ReadPair(d.OperatorDir())
	if err != nil {
		return err
	}
	r.say("connecting %d callers", revokeCallers)
	r.party.callers, err = openCallers(ctx, operator, revokeCallers)
	return err
}

// revoke gives the order while certificates are issued, and waits for the CRL.
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
	err := r.order(ctx, brevetv1.NewRevocationServiceClient(conn), values)
	ended.Store(true)
	if err := errors.Join(err, <-loaded); err != nil {
		return nil, err
	}
	values["issue_p99_ms"], values["issue_p50_ms"], values["issue_per_second"] = l.quantile(0.99), l.quantile(0.5), l.rate
	values["rss_mib"], err = r.party.server.residentMiB()
	return values, err
}

func (r *revokeRig) order(ctx context.Context, c brevetv1.RevocationServiceClient, values map[string]float64) error {
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
	set := resp.GetBulkRevocation()
	if set.GetTotal() != int64(r.count) {
		return fmt.Errorf("the order is about %d certificates, and %d have the label", set.GetTotal(), r.count)
	}
	for set.GetState() != brevetv1.BulkRevocationState_BULK_REVOCATION_STATE_DONE {
		if err := rest(ctx, pollInterval); err != nil {
			return err
		}
		resp, err := c.GetBulkRevocation(ctx, &brevetv1.GetBulkRevocationRequest{Id: set.GetId()})
		if err != nil {
			return err
		}
		set = resp.GetBulkRevocation()
	}
	r.say("their records say so after %.1f s", time.Since(begin).Seconds())
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

// published counts the entries of the CRL that the server publishes.
func (r *revokeRig) published(ctx context.Context) (int, error) {
	der, err := r.fetch(ctx, http.MethodGet, "/crl/"+pki.IssuerOf(r.issuer).Short()+".crl", nil)
	if err != nil {
		return 0, err
	}
	if len(der) < r.count*minCRLEntry { // parsing it would cost those who wait for certificates more than it costs the server to make it
		return 0, nil
	}
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		return 0, err
	}
	return len(crl.RevokedCertificateEntries), crl.CheckSignatureFrom(r.issuer)
}

// probe asks OCSP about some of the certificates, which all have to have one status.
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
			return fmt.Errorf("OCSP says %d of certificate %s, and not %d (RFC 6960)", resp.Status, serial, want)
		}
	}
	return nil
}

func (r *revokeRig) fetch(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+r.party.server.dev.HTTP+path, bytes.NewReader(body))
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
		return nil, fmt.Errorf("%s answers %s", path, resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, maxPolledCRL))
}
