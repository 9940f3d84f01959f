package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/internal/cli"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// estBench measures how fast a whole server renews certificates over EST, and over gRPC.
type estBench struct {
	commonFlags
	callers int
	devices int
}

func newEST() *cobra.Command {
	b := estBench{commonFlags: commonFlags{rounds: 3}}
	cmd := &cobra.Command{
		Use: "est", Short: "Measure how many certificates a second a server renews over EST", Args: cobra.NoArgs,
		Long: "est starts a server process as issue does. In each round, new devices connect, and each renews its certificate once over\n" +
			"its connection: the first half of them with simplereenroll of EST, and then the second half with the RPC Renew. A\n" +
			"device cannot renew twice over one connection, because the connection has the certificate that was renewed.\n" +
			"Certificates, connections and CSRs are made before the measurement. renew_ratio is the rate of EST divided by that of\n" +
			"gRPC.",
	}
	f := cmd.Flags()
	f.IntVar(&b.callers, "callers", 16, "devices that renew concurrently")
	f.IntVar(&b.devices, "devices", 1000, "devices that renew over each protocol in a round")
	configFlag(cmd)
	b.measures(cmd, b.check, b.run, "MEASURE", "MEDIAN", "MIN", "MAX")
	return cmd
}

// maxESTDevices is below the number of connections that a server accepts from one address.
const maxESTDevices = 2000

func (b *estBench) check() error {
	if b.callers < 1 || b.callers > maxCallers {
		return cli.WrongUse(fmt.Sprintf("--callers %d: give 1 to %d", b.callers, maxCallers))
	}
	if b.devices < b.callers || b.devices > maxESTDevices {
		return cli.WrongUse(fmt.Sprintf("--devices %d: give at least one for each caller, and %d at most", b.devices, maxESTDevices))
	}
	return nil
}

// estFields are the fields that each round measures, in the order of the output.
var estFields = []string{
	"certificates_per_second", "p50_ms", "p99_ms", "server_cpu_us", "load_cpu_us",
	"grpc_certificates_per_second", "grpc_p50_ms", "grpc_p99_ms", "grpc_server_cpu_us", "grpc_load_cpu_us", "renew_ratio",
}

func (b *estBench) run(ctx context.Context, env *bench) (err error) {
	rig := &estRig{issueRig: issueRig{bench: env}, concurrent: b.callers}
	defer func() { err = errors.Join(err, rig.close()) }()
	one := issueBench{callers: b.callers} // operators, who request the first certificates
	if rig.party, err = one.open(ctx, &rig.issueRig, "server", 0); err != nil {
		return err
	}
	if err := rig.applyPolicy(ctx, []byte(estPolicy)); err != nil {
		return err
	}
	if _, err := rig.round(ctx, b.callers); err != nil { // a warm-up
		return err
	}
	measured := rounds{}
	for n := range b.rounds {
		values, err := rig.round(ctx, b.devices)
		if err != nil {
			return err
		}
		measured.add(values)
		rig.Logf("round %d of %d: %.0f certificates a second, and %.0f over gRPC", n+1, b.rounds, values["certificates_per_second"],
			values["grpc_certificates_per_second"])
	}
	return rig.report(map[string]any{"callers": b.callers, "devices": b.devices, "rounds": b.rounds}, measured, estFields)
}

// estPolicy is the document of the measured server. It has the default rules, and a label.
const estPolicy = `rules:
- {name: tokens, evidence: [token]}
est:
  labels: {default: {}}
`

// estRig holds everything that brevet-bench est measures.
type estRig struct {
	issueRig
	concurrent int // renewals
	made       int // devices so far
}

// round lets n new devices renew over EST, and n over gRPC.
func (r *estRig) round(ctx context.Context, n int) (map[string]float64, error) {
	values := map[string]float64{}
	for prefix, open := range map[string]func(context.Context, *estDevice) (renewer, error){"": r.openEST, "grpc_": r.openGRPC} {
		if err := r.renewAll(ctx, n, prefix, open, values); err != nil {
			return nil, fmt.Errorf("%srenewals: %w", prefix, err)
		}
	}
	values["renew_ratio"] = values["certificates_per_second"] / values["grpc_certificates_per_second"]
	return values, nil
}

// renewer is a connected device that has not renewed its certificate.
type renewer interface {
	renew(ctx context.Context) error
	close() error
}

// renewAll connects n new devices, and measures their renewals. The names of the fields begin with prefix.
func (r *estRig) renewAll(
	ctx context.Context, n int, prefix string, open func(context.Context, *estDevice) (renewer, error), values map[string]float64,
) (err error) {
	devices, err := r.newDevices(ctx, n)
	if err != nil {
		return fmt.Errorf("make devices: %w", err)
	}
	connected := make(chan renewer, n)
	defer func() {
		close(connected)
		for c := range connected {
			err = errors.Join(err, c.close())
		}
	}()
	for _, d := range devices {
		c, err := open(ctx, d)
		if err != nil {
			return fmt.Errorf("connect a device: %w", err)
		}
		connected <- c
	}
	before, err := r.cpu()
	if err != nil {
		return err
	}
	var begun atomic.Int64
	l, err := putLoadWhile(ctx, make([]struct{}, r.concurrent), func(_ struct{}, ctx context.Context) (time.Duration, error) {
		c := <-connected
		begin := time.Now()
		err := c.renew(ctx)
		took := time.Since(begin)
		return took, errors.Join(err, c.close())
	}, func() bool { return begun.Add(1) <= int64(n) })
	if err != nil {
		return err
	}
	after, err := r.cpu()
	if err != nil {
		return err
	}
	values[prefix+"certificates_per_second"], values[prefix+"p50_ms"], values[prefix+"p99_ms"] = l.rate, l.quantile(0.5), l.quantile(0.99)
	values[prefix+"server_cpu_us"] = micros(after.server-before.server) / float64(n)
	values[prefix+"load_cpu_us"] = micros(after.load-before.load) / float64(n)
	return nil
}

// estDevice is a device with a certificate, and with the CSR of its renewal.
type estDevice struct {
	pair *enroll.Pair
	next []byte
}

// newDevices requests certificates for n new devices as an operator.
func (r *estRig) newDevices(ctx context.Context, n int) ([]*estDevice, error) {
	devices := make([]*estDevice, n)
	var workers errgroup.Group
	workers.SetLimit(len(r.callers))
	free := make(chan *caller, len(r.callers))
	for _, c := range r.callers {
		free <- c
	}
	first := r.made
	r.made += n
	for i := range devices {
		workers.Go(func() (err error) {
			c := <-free
			defer func() { free <- c }()
			devices[i], err = c.newDevice(ctx, fmt.Sprintf("device/est-%d", first+i))
			return err
		})
	}
	return devices, workers.Wait()
}

// newDevice requests the first certificate of a device.
func (c *caller) newDevice(ctx context.Context, path string) (*estDevice, error) {
	key, csr, err := newKeyAndCSR()
	if err != nil {
		return nil, err
	}
	id, err := newRequestID()
	if err != nil {
		return nil, err
	}
	resp, err := c.requestOne(ctx, requestFor(id, requestedDevice{path, csr}))
	if err != nil {
		return nil, enroll.CallError(c.pair.Origin.Server, err)
	}
	if f := resp.GetError(); f != nil {
		return nil, errors.New(f.GetMessage())
	}
	own := c.pair.Credential // with the certificates of the CA
	if own.Certificate, err = x509.ParseCertificate(resp.GetCertificate()); err != nil {
		return nil, err
	}
	pair, err := enroll.NewPair(own, key, c.pair.Origin, time.Now())
	if err != nil {
		return nil, err
	}
	_, next, err := newKeyAndCSR()
	return &estDevice{pair, next}, err
}

// estConnection is a device that is connected for EST.
type estConnection struct {
	conn    net.Conn
	request []byte
}

// openEST connects a device over HTTPS, and prepares its request.
func (r *estRig) openEST(ctx context.Context, d *estDevice) (renewer, error) {
	config := enroll.ClientTLS(func() *enroll.Pair { return d.pair })
	config.NextProtos = []string{"http/1.1"}
	address := r.server.Dev.HTTPS
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	body := base64.StdEncoding.EncodeToString(d.next)
	request := fmt.Appendf(nil, "POST /.well-known/est/simplereenroll HTTP/1.1\r\nHost: %s\r\nContent-Type: application/pkcs10\r\n"+
		"Content-Transfer-Encoding: base64\r\nContent-Length: %d\r\n\r\n%s", address, len(body), body)
	return &estConnection{conn, request}, nil
}

func (c *estConnection) close() error {
	_ = c.conn.Close() // the server may have closed it
	return nil
}

// renew sends the request, and reads the response.
func (c *estConnection) renew(context.Context) error {
	if _, err := c.conn.Write(c.request); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c.conn), nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the server responded with %s: %s", resp.Status, bytes.TrimSpace(text))
	}
	return nil
}

// grpcConnection is a device that is connected for RPCs.
type grpcConnection struct {
	caller
	request *brevetv1.RenewRequest
}

// openGRPC connects a device for RPCs, and prepares its request.
func (*estRig) openGRPC(ctx context.Context, d *estDevice) (renewer, error) {
	id, err := newRequestID()
	if err != nil {
		return nil, err
	}
	c := &grpcConnection{caller{pair: d.pair}, &brevetv1.RenewRequest{RequestId: id.Bytes(), Csr: d.next}}
	err = c.open(ctx)
	return c, err
}

func (c *grpcConnection) renew(ctx context.Context) error {
	resp, err := brevetv1.NewEnrollmentServiceClient(c.conn).Renew(ctx, c.request)
	if err != nil {
		return enroll.CallError(c.pair.Origin.Server, err)
	}
	if len(resp.GetCredential().GetCertificate()) == 0 {
		return errors.New("the server responded without a certificate")
	}
	return nil
}
