//go:build judges

package acme_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	zacme "github.com/mholt/acmez/v3/acme"
	"google.golang.org/protobuf/types/known/durationpb"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/acme/validation"
	"github.com/brevet-pki/brevet/server/acme/validation/validationtest"
	"github.com/brevet-pki/brevet/server/servertest"
)

// host is the name for which the clients get certificates.
const host = "host.fleet.example"

// TestJudges checks the rows of the tables of clients in docs/acme.md. Each client gets a server of its own.
func TestJudges(t *testing.T) {
	ground := newGround(t)
	run := func(name string, direct, watched func(j *judge)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			direct(newJudge(t, ground, false))
		})
		t.Run(name+", watched", func(t *testing.T) {
			t.Parallel()
			watched(newJudge(t, ground, true))
		})
	}
	for _, s := range webServers { // first, because they pause for longest
		run(s.name, s.direct, s.watched)
	}
	for _, c := range commandClients {
		run(c.name, c.direct, c.watched)
	}
}

// judge is a server for a client, and what the client needs: ports at which the server validates, the file with the
// root, and an external key.
type judge struct {
	*realWorld
	t             *testing.T
	watch         *watch // nil if the client connects to the server directly
	directoryURL  string
	port, tlsPort string
	roots         string
	kid, hmac     string // of the external key
	secret        []byte // which hmac encodes
	dir           string // for the files of the client
	environ       []string
}

func newJudge(t *testing.T, ground servertest.Ground, watched bool) *judge {
	t.Helper()
	zone := validationtest.NewZone(t)
	zone.Address(t, host, "127.0.0.1")
	port, tlsPort := freePort(t), freePort(t)
	o := servertest.Options{
		Policy: []byte(strings.Replace(anyName, "optional", "required", 1)),
		Challenges: validation.Config{
			Resolvers: []netip.AddrPort{zone.Addr}, HTTPPort: port, TLSPort: tlsPort,
		},
	}
	j := &judge{t: t, port: fmt.Sprint(port), tlsPort: fmt.Sprint(tlsPort), dir: t.TempDir()}
	if watched {
		j.watch = newWatch(t)
		o.HTTPSURL, o.Wrap = j.watch.url, j.watch.store.Wrap
	}
	j.realWorld = newServerOn(t, ground, o)
	if watched {
		j.url = j.watch.url
		j.watch.serve(j.World)
	}
	j.directoryURL = j.url + "/acme/directory"
	j.open(j.directoryURL)
	keys := brevetv1.NewACMEServiceClient(j.Operator.Conn)
	key := servertest.Must(keys.CreateExternalKey(t.Context(), &brevetv1.CreateExternalKeyRequest{Rule: "any"}))(t)
	j.kid, j.secret = key.GetKey().GetId(), key.GetHmacKey()
	j.hmac = base64URL(j.secret)
	j.roots = j.write("roots.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: j.Root.Raw})))
	return j
}

// nextPort is the next port that freePort tries, counted from 20000.
var nextPort atomic.Uint32

// freePort returns a port for a client that listens later. It is below those that the system takes for outgoing connections
// and for listeners without a port, so that nothing takes it meanwhile, and no other call returns it.
func freePort(t *testing.T) uint16 {
	t.Helper()
	for range 1000 {
		port := uint16(20000 + (uint32(os.Getpid())*40+nextPort.Add(1))%12000) //nolint:gosec // below 32000
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_ = l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// errMissing is the error of a client that is not installed.
var errMissing = errors.New("run deploy/setup.sh --judges")

// run runs a client. The error contains its output.
func (j *judge) run(name string, args ...string) error {
	if _, err := exec.LookPath(name); err != nil {
		j.t.Fatalf("%v: %v", err, errMissing)
	}
	cmd := exec.CommandContext(j.t.Context(), name, args...)
	cmd.Env, cmd.Stdin = append(os.Environ(), j.environ...), strings.NewReader("y\n") // some ask whether to proceed
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w\n%s", name, args, err, out)
	}
	return nil
}

// background runs a server until stop is called or the test ends, and logs its output if the test has failed.
func (j *judge) background(name string, args ...string) (stop func()) {
	j.t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		j.t.Fatalf("%v: %v", err, errMissing)
	}
	var out bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, &out, append(os.Environ(), j.environ...)
	if err := cmd.Start(); err != nil {
		j.t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
	j.t.Cleanup(func() {
		stop()
		if j.t.Failed() {
			j.t.Logf("%s: %s", name, out.String())
		}
	})
	return stop
}

func (j *judge) write(name, text string) (path string) {
	j.t.Helper()
	path = filepath.Join(j.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		j.t.Fatal(err)
	}
	return path
}

// webroot serves the files of a directory at the port for http-01.
func (j *judge) webroot() (challenges string) {
	j.t.Helper()
	dir := j.t.TempDir()
	challenges = filepath.Join(dir, ".well-known", "acme-challenge")
	if err := os.MkdirAll(challenges, 0o700); err != nil {
		j.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+j.port)
	if err != nil {
		j.t.Fatal(err)
	}
	s := &http.Server{Handler: http.FileServer(http.Dir(dir))}
	j.t.Cleanup(func() { _ = s.Close() })
	go func() { _ = s.Serve(l) }()
	return challenges
}

// issued returns the number of certificates on record for the host, and how many of them are revoked.
func (j *judge) issued() (all, revoked int) {
	j.t.Helper()
	for _, c := range j.Inventory(j.t) {
		if c.Profile != "acme" {
			continue
		}
		all++
		if c.Status.Reason != 0 || !c.Status.RevokedAt.IsZero() {
			revoked++
		}
	}
	return all, revoked
}

func (j *judge) wantIssued(all, revoked int) {
	j.t.Helper()
	if have, gone := j.issued(); have != all || gone != revoked {
		j.t.Errorf("%d certificates are on record, %d of them revoked; want %d and %d", have, gone, all, revoked)
	}
}

// wait waits until a condition holds, and fails if it does not.
func (j *judge) wait(d time.Duration, what string, holds func() bool) {
	j.t.Helper()
	for deadline := time.Now().Add(d); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			j.t.Fatalf("%s has not happened within %s", what, d)
		}
	}
}

func (j *judge) waitIssued(d time.Duration, n int) {
	j.t.Helper()
	j.wait(d, fmt.Sprintf("certificate %d", n), func() bool { all, _ := j.issued(); return all >= n })
}

// window returns the renewal window of the newest certificate. It does not ask the watch.
func (j *judge) window() string {
	j.t.Helper()
	var newest *x509.Certificate
	for _, c := range j.Inventory(j.t) {
		if c.Profile == "acme" {
			newest = &x509.Certificate{AuthorityKeyId: j.Issuing.SubjectKeyId, SerialNumber: new(big.Int).SetBytes(c.Ref.Serial.Bytes())}
		}
	}
	id := servertest.Must(zacme.ARIUniqueIdentifier(newest))(j.t)
	_, port, _ := strings.Cut(j.HTTPS, ":")
	return j.get("https://localhost:" + port + "/acme/renewal-info/" + id).body
}

// rotate starts a rotation within a second, and waits until the window of the newest certificate has passed.
func (j *judge) rotate() {
	j.t.Helper()
	before := j.window()
	req := &brevetv1.StartRotationRequest{
		Selection: &brevetv1.CertificateSelection{Profile: "acme"}, Over: durationpb.New(time.Second),
		DryRun: true, RequestId: servertest.RequestID(),
	}
	req.Confirm = servertest.Must(j.Operator.StartRotation(j.t.Context(), req))(j.t).GetRotation().GetAffected()
	req.DryRun = false
	servertest.Must(j.Operator.StartRotation(j.t.Context(), req))(j.t)
	j.wait(10*time.Second, "the rotation", func() bool { return j.window() != before })
	time.Sleep(windowOver)
}

// windowOver is the time after which the window of a rotation within a second has passed.
const windowOver = 4 * time.Second
