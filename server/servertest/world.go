// Package servertest builds complete CAs for tests: a server with a real store and keys in a real HSM token, which
// serves gRPC over TLS and plain HTTP on loopback. At the end of a test, zlint, OpenSSL and GnuTLS check all
// certificates, CRLs and OCSP responses of its [World]. The package also verifies the world's log, and searches its
// files for secrets.
//
// Only test files may import the package. They provide the HSM token and the store, because package server depends on
// neither.
package servertest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/policy"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/revocation/responder"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/acme/validation"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/telemetry"
	"github.com/brevet-pki/brevet/store/retention"
	"github.com/brevet-pki/brevet/translog"
)

// TrustDomain is the trust domain of every World.
const TrustDomain = "fleet.example"

// publicURL is the start of the URLs in certificates. The tools never resolve it: they get the server's address as an
// option.
const publicURL = "http://pki.fleet.example"

// issuingLabel is the key label in the record of the installed issuing CA.
const issuingLabel = "issuing"

// Ground holds what a test provides for its Worlds.
type Ground struct {
	// Root and Issuing are keys in an HSM token. All worlds use the same keys.
	Root, Issuing crypto.Signer
	// Token is the HSM token with the issuing key. The server monitors it.
	Token telemetry.HSM
	// Open opens or creates the store at a path.
	Open func(ctx context.Context, path string) (Store, error)
}

// Store is an open store.
type Store interface {
	Stores() server.Stores
	Installations() ca.Installations
	Close() error
}

// Options change how a World is built.
type Options struct {
	// Names are additional names in the server's certificate, beside localhost.
	Names []string
	// Ahead is how far the world's clock is ahead of the machine's time at the start.
	Ahead time.Duration
	// Wrap wraps the store, for example to make it fail.
	Wrap func(server.Stores) server.Stores
	// Token replaces Ground.Token as the HSM that the server monitors. The server still signs with Ground.Issuing.
	Token telemetry.HSM
	// FurtherHSMs are additional HSMs.
	FurtherHSMs []telemetry.IssuingHSM
	// Traces configures the export of traces.
	Traces telemetry.Traces
	// OCSP configures OCSP responses.
	OCSP server.OCSP
	// Partitions is the number of CRL partitions of the issuing CA; zero means the default.
	Partitions int
	// Profile changes each default profile in the policy. It is called with the profile's name.
	Profile func(name string, c *ca.ProfileConfig)
	// DelegateKeys are the key types of the profile ocsp; nil means the default.
	DelegateKeys []string
	// Limits are the rate limits; nil means no limit.
	Limits *server.Limits
	// EST configures the door for EST.
	EST server.EST
	// Challenges says how the server validates ACME challenges; the zero value reaches no port.
	Challenges validation.Config
	// HTTPSURL is the external URL of the HTTPS port, such as that of a proxy; empty means the port itself.
	HTTPSURL string
	// Policy is the document of the first policy; nil for the default.
	Policy []byte
	// ArchiveCopy is the path of the second copy of the archive; empty for none.
	ArchiveCopy string
	// Shared opens a store that several servers share, for a server with a name. Nil means that of Ground.
	Shared func(ctx context.Context, server string) (Store, error)
	// MaxStaleness is that of a server whose store is shared; zero for the default.
	MaxStaleness time.Duration
}

// World is a complete CA with a running server. Its methods are safe for concurrent use, except Stop and Restart.
type World struct {
	Ground        Ground
	Dir           string // contains the store, the archive, CRLs and the server's own credentials
	Clock         *Clock
	Disk          *Disk
	Root, Issuing *x509.Certificate
	RootCRL       []byte
	Stores        server.Stores // the stores before Options.Wrap
	Server        *server.Server
	GRPC, HTTP    string // addresses of these ports: host:port
	HTTPS         string // address of the port for EST and ACME
	Operations    string // address of the operations port
	Log           *Log
	Operator      *Holder

	http    *http.Client
	issuer  ca.IssuingCA
	store   Store
	archive *translog.Archive
	name    string // of the server; empty if its store is not shared
	shared  func(ctx context.Context, server string) (Store, error)
	stop    context.CancelFunc
	stopped chan error // gets the result of Server.Run; nil while no server runs

	mu      sync.Mutex
	secrets [][]byte
}

// Clock is the clock of a World: the machine's time, plus an offset.
type Clock struct{ ahead atomic.Int64 }

// Now returns the current time.
func (c *Clock) Now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

// Advance moves the clock forward.
func (c *Clock) Advance(d time.Duration) { c.ahead.Add(int64(d)) }

// Log holds the log of a World's server as JSON. It is safe for concurrent use.
type Log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// String returns the whole log.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// New builds a World and starts its server. At the end of the test, the tools check what the world has issued, the
// server stops, and the world's files are checked.
func New(t testing.TB, g Ground, o Options) *World {
	t.Helper()
	w := &World{Ground: g, Dir: t.TempDir(), Clock: &Clock{}, Disk: &Disk{}, Log: &Log{}, shared: o.Shared}
	if o.Shared != nil {
		w.name = "first"
	}
	w.Clock.Advance(o.Ahead)
	w.http = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // each request opens a new connection
	w.ceremony(t)
	w.open(t)
	w.install(t)
	t.Cleanup(func() { w.auditFiles(t) }) // runs last, because cleanups run in reverse order
	t.Cleanup(func() { w.Stop(t) })
	w.Serve(t, o)
	t.Cleanup(func() {
		if !t.Failed() {
			w.judge(t)
		}
	})
	w.Operator = w.NewOperator(t, "alice")
	return w
}

// ceremony creates the root, the issuing CA and the root's CRL.
func (w *World) ceremony(t testing.TB) {
	t.Helper()
	now := w.Clock.Now().Add(-time.Hour)
	rootName := Must(ceremony.ParseSubject("CN=Fleet Root G1"))(t)
	w.Root = parse(t, Must(ceremony.Root(w.Ground.Root, ceremony.RootSpec{
		Subject: rootName, Lifetime: 10 * 365 * 24 * time.Hour, PathLength: 1, Now: now,
	}))(t))
	w.RootCRL = Must(ceremony.RootCRL(w.Root, w.Ground.Root, ceremony.CRLSpec{
		Number: big.NewInt(1), NextUpdate: now.Add(365 * 24 * time.Hour), Now: now,
	}))(t)
	w.signIssuing(t, "CN=Fleet Issuing G1")
}

// signIssuing creates the issuing CA, which the root signs.
func (w *World) signIssuing(t testing.TB, subject string) {
	t.Helper()
	name := Must(ceremony.ParseSubject(subject))(t)
	csr := Must(ceremony.Request(w.Ground.Issuing, ceremony.RequestSpec{Subject: name}))(t)
	id := pki.IssuerOf(w.Root).Short()
	w.Issuing = parse(t, Must(ceremony.Sign(w.Root, w.Ground.Root, csr, ceremony.SignSpec{
		Lifetime: 5 * 365 * 24 * time.Hour, TrustDomain: TrustDomain, Now: w.Clock.Now().Add(-time.Hour),
		CRLURL: publicURL + "/crl/" + id + ".crl", IssuerURL: publicURL + "/ca/" + id + ".cer",
	}))(t))
	w.issuer = Must(ca.NewIssuingCA(w.Issuing, w.Ground.Issuing, []*x509.Certificate{w.Root}))(t)
}

// authorities returns the installed CA certificates.
func (w *World) authorities(t testing.TB) []*x509.Certificate {
	t.Helper()
	var all []*x509.Certificate
	for _, c := range Must(w.store.Installations().Installed(t.Context()))(t) {
		all = append(all, parse(t, c.Certificate))
	}
	return all
}

func (w *World) storePath() string   { return filepath.Join(w.Dir, "store.db") }
func (w *World) archivePath() string { return filepath.Join(w.Dir, "log.archive") }

func (w *World) logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(w.Log, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (w *World) open(t testing.TB) {
	t.Helper()
	if w.shared == nil {
		w.store = Must(w.Ground.Open(context.Background(), w.storePath()))(t)
	} else {
		w.store = Must(w.shared(context.Background(), w.name))(t)
	}
	w.Stores = w.store.Stores()
	w.archive = Must(translog.OpenArchive(w.archivePath(), Must(w.Stores.Log.Epoch(t.Context()))(t), w.logger()))(t)
}

// install records root, issuing CA and the root's CRL in the store, as brevet ceremony install does.
func (w *World) install(t testing.TB) {
	t.Helper()
	by, now := pki.ActorCommand("ceremony install"), w.Clock.Now()
	for _, in := range []ca.InstalledCA{{Certificate: w.Root.Raw, At: now}, {Certificate: w.Issuing.Raw, Key: issuingLabel, At: now}} {
		check(t, w.store.Installations().Install(t.Context(), in, by))
	}
	list := Must(x509.ParseRevocationList(w.RootCRL))(t)
	check(t, w.Stores.CRLs.PutCRLs(t.Context(), []crl.CRL{crl.Imported(pki.IssuerOf(w.Root), list)}, by, now))
}

// Config returns the configuration of the world's server, with new listeners.
func (w *World) Config(t testing.TB, o Options) server.Config {
	t.Helper()
	stores := w.Stores
	if o.Wrap != nil {
		stores = o.Wrap(stores)
	}
	token := w.Ground.Token
	if o.Token != nil {
		token = o.Token
	}
	endless := admission.Rate{PerSecond: 1e6, Burst: 1e6}
	limits := server.Limits{Identity: endless, Address: endless}
	if o.Limits != nil {
		limits = *o.Limits
	}
	staleness := o.MaxStaleness
	if w.shared != nil && staleness == 0 {
		staleness = responder.DefaultMaxStaleness
	}
	published := filepath.Join(w.Dir, "published")
	check(t, os.MkdirAll(published, 0o700))
	grpc, public, secure, operations := listen(t), listen(t), listen(t), listen(t)
	external := o.HTTPSURL
	if external == "" {
		external = httpsURL(secure)
	}
	var second *translog.Copy
	if o.ArchiveCopy != "" {
		second = translog.NewCopy(w.archive, o.ArchiveCopy, w.logger())
	}
	return server.Config{
		Copy: second, TrustDomain: TrustDomain, Server: w.name, MaxStaleness: staleness, Names: append([]string{"localhost"}, o.Names...), Address: grpc.Addr().String(),
		Directory: filepath.Join(w.Dir, "own"), CRLs: server.CRLs{Directory: filepath.Join(w.Dir, "crls"), Directories: []string{published}, Partitions: o.Partitions}, GRPC: grpc, HTTP: public, HTTPS: secure, Operations: operations,
		HTTPSURL: external, EST: o.EST, ACME: server.ACME{Validation: o.Challenges, MinVersion: tls.VersionTLS13},
		Issuers: []ca.IssuingCA{w.issuer}, Authorities: w.authorities(t), PublicURL: publicURL,
		Stores: stores, Archive: w.archive, HSMs: append([]telemetry.IssuingHSM{{HSM: token, Name: "test", Issuers: []pki.IssuerID{w.issuer.ID}}}, o.FurtherHSMs...), Disk: w.Disk, Retention: retention.Default, Limits: limits, OCSP: o.OCSP, Traces: o.Traces, Policy: o.policy(t), EvidenceDirectory: filepath.Join(w.Dir, "evidence"),
		Clock: w.Clock.Now, Log: w.logger(),
	}
}

// httpsURL returns the external URL of the port for EST and ACME.
func httpsURL(l net.Listener) string {
	_, port, _ := net.SplitHostPort(l.Addr().String()) // never fails for an address of a listener
	return "https://" + net.JoinHostPort("localhost", port)
}

// policy returns the document of the policy with the changed profiles, or nil if no option sets one.
func (o Options) policy(t testing.TB) []byte {
	t.Helper()
	if o.Profile == nil && o.DelegateKeys == nil {
		return o.Policy
	}
	rules := o.Policy
	if rules == nil {
		rules = policy.Default()
	}
	return Policy(t, rules, func(name string, c *ca.ProfileConfig) {
		if name == "ocsp" && o.DelegateKeys != nil {
			c.Keys = o.DelegateKeys
		}
		if o.Profile != nil {
			o.Profile(name, c)
		}
	})
}

// Policy returns a policy with the given rules, which changes each default profile.
func Policy(t testing.TB, rules []byte, change func(name string, c *ca.ProfileConfig)) []byte {
	t.Helper()
	profiles := Must(ca.DefaultProfiles())(t)
	for name, c := range profiles {
		change(name, &c)
		profiles[name] = c
	}
	return append(Must(yaml.Marshal(map[string]any{"profiles": profiles}))(t), rules...)
}

// apply records the policy of the options as the newest revision, if the store has another one.
func (w *World) apply(t testing.TB, o Options) {
	t.Helper()
	newest, err := w.Stores.Policies.Policy(t.Context(), 0)
	if document := o.policy(t); err == nil && document != nil {
		Must(w.Stores.Policies.ApplyPolicy(t.Context(), ra.PolicyChange{
			Document: document, Based: newest.Revision, By: pki.ActorCommand("test"), At: w.Clock.Now(),
		}))(t)
	}
}

// Serve starts a server, and returns when it serves. No other server of the world may be running.
func (w *World) Serve(t testing.TB, o Options) {
	t.Helper()
	w.apply(t, o)
	c := w.Config(t, o)
	w.GRPC, w.HTTP, w.Operations = c.GRPC.Addr().String(), c.HTTP.Addr().String(), c.Operations.Addr().String()
	w.HTTPS = c.HTTPS.Addr().String()
	s := Must(server.New(t.Context(), c))(t)
	ready := make(chan struct{})
	s.OnReady(func() { close(ready) })
	ctx, stop := context.WithCancel(context.Background())
	w.Server, w.stop, w.stopped = s, stop, make(chan error, 1)
	go func() { w.stopped <- s.Run(ctx) }()
	select {
	case <-ready:
	case err := <-w.stopped:
		t.Fatalf("the server did not start: %v", err)
	}
	if w.Operator != nil {
		w.Operator.Caller = w.Caller(t, w.Operator.TLS(w))
	}
}

// StopServer stops the server and waits until it has ended.
func (w *World) StopServer(t testing.TB) {
	t.Helper()
	if w.stopped == nil {
		return
	}
	w.stop()
	check(t, <-w.stopped)
	w.stopped = nil
	if w.Operator != nil {
		_ = w.Operator.Conn.Close() // an error does not matter, because the server has stopped
	}
}

// Stop stops the server and closes its archive and store.
func (w *World) Stop(t testing.TB) {
	t.Helper()
	w.StopServer(t)
	check(t, w.archive.Close())
	check(t, w.store.Close())
}

// Restart stops the server, and starts a new one with the same files.
func (w *World) Restart(t testing.TB, o Options) {
	t.Helper()
	w.Stop(t)
	w.open(t)
	w.Serve(t, o)
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	return Must(lc.Listen(t.Context(), "tcp", "127.0.0.1:0"))(t)
}

// OwnPair reads the credential of one of the server's own identities, such as "server".
func (w *World) OwnPair(t testing.TB, role string) *enroll.Pair {
	t.Helper()
	return Must(enroll.ReadPair(filepath.Join(w.Dir, "own", role)))(t)
}

// DelegateDir returns the name of the directory with the issuing CA's OCSP delegate, which is an argument for OwnPair.
func (w *World) DelegateDir() string { return "va-" + pki.IssuerOf(w.Issuing).Short() }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Must returns the value of a call that must succeed. It is used like this: Must(f())(t).
func Must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	return Must(x509.ParseCertificate(der))(t)
}
