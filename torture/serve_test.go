package torture

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/acme/validation"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/server/telemetry"
	"github.com/brevet-pki/brevet/store/postgres"
	"github.com/brevet-pki/brevet/store/retention"
	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/store/tables"
	"github.com/brevet-pki/brevet/translog"
)

// The files of a server, in its directory.
const (
	storeName   = "store.db"
	archiveName = "log.archive"
	selfName    = "own" // credential of the server itself
	crlsName    = "crls"
	webName     = "web" // a second directory in which CRLs are published
)

// partitions is the number of CRL partitions. The server signs a CRL and a delta CRL of each, and one CRL of all.
const partitions = 2

// serverOptions configures a server process.
type serverOptions struct {
	Dir, HSM        string        // directories
	Database, Name  string        // connection string of PostgreSQL, and the server's name there; "" for SQLite
	Skew            time.Duration // by which its clock is ahead
	SignatureSocket string        // Unix socket of the signatureLog
	Operator        string        // identity to create an operator's token for; empty for none
	ChallengePort   uint16        // port of http-01 challenges
	IsNew           bool          // no write of its store fails, because it still enrolls its own identities
	KillAt          killPoint     // kill point during the start; disarmed once the server serves
	Bug             string        // the bug to seed; empty for none
}

// serve runs a server as cmd/brevet does, with wrappers around its parts. It prints its process ID, and its addresses
// once it serves. It arms the kill points that it reads from standard input, and exits when standard input is closed.
func serve() error {
	var o serverOptions
	if err := json.Unmarshal([]byte(os.Getenv(optionsEnv)), &o); err != nil {
		return err
	}
	fmt.Println(os.Getpid())
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	steps := &stepCounter{}
	steps.arm(o.KillAt)
	go func() {
		for decoder := json.NewDecoder(os.Stdin); ; {
			var k killPoint
			if decoder.Decode(&k) != nil {
				stop()
				return
			}
			steps.arm(k)
		}
	}()
	return o.serve(ctx, steps)
}

// unlimited is a rate that no client reaches.
var unlimited = admission.Rate{PerSecond: 1e6, Burst: 1e6}

func (o serverOptions) serve(ctx context.Context, steps *stepCounter) (err error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	opened, err := o.openHSM(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opened.Close()) }()
	db, err := o.openStore(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	archive, err := translog.OpenArchiveOf(ctx, db.Log(), filepath.Join(o.Dir, archiveName), log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, archive.Close()) }()
	issuers, all, err := o.issuers(ctx, db, opened, steps)
	if err != nil {
		return err
	}
	first, err := firstPolicy()
	if err != nil {
		return err
	}
	stores, err := seedBug(o.Bug, server.Stores{CA: db.CA(), RA: db.RA(), Policies: db.RA(), Nonces: db.RA(), ACME: db.ACME(), Audit: db.RA(), Retention: db.RA(), Revocation: db.Revocation(), Rotations: db.Rotations(), CRLs: db.Revocation(), Exchange: db.Exchange(), Feed: db.Revocation(), Log: db.Log()})
	if err != nil {
		return err
	}
	var staleness time.Duration // of a server that has the store for itself
	if o.Database != "" {
		stores.ACMENonces, staleness = db.Nonces(), maxStaleness
	}
	if !o.IsNew {
		stores = failWrites(stores)
	}
	grpc, https, public, err := listen(ctx, steps)
	if err != nil {
		return err
	}
	s, err := server.New(ctx, server.Config{
		TrustDomain: trustDomain, Server: o.Name, MaxStaleness: staleness, Names: []string{"localhost"}, Address: "localhost:7443", Directory: filepath.Join(o.Dir, selfName),
		CRLs: server.CRLs{Directory: filepath.Join(o.Dir, crlsName), Directories: []string{filepath.Join(o.Dir, webName)}, Partitions: partitions},
		GRPC: grpc, HTTP: public, HTTPS: https, HTTPSURL: httpsURL, ACME: o.acme(), Issuers: issuers, Authorities: all, PublicURL: publicURL, Policy: first,
		Stores: steps.wrap(stores), Archive: archive, HSMs: []telemetry.IssuingHSM{{HSM: hsm.Watched{HSM: opened}, Name: hsmLabel, Issuers: []pki.IssuerID{issuers[0].ID}}}, Disk: &servertest.Disk{}, Retention: retention.Default, Limits: server.Limits{Identity: unlimited, Address: unlimited}, Clock: o.now, Log: log,
	})
	if err != nil {
		return err
	}
	s.OnReady(func() {
		steps.arm(killPoint{})
		text := "-"
		if o.Operator != "" {
			if text, err = s.OperatorToken(ctx, o.Operator, pki.ActorCommand("ceremony install")); err != nil {
				text = err.Error()
			}
		}
		fmt.Println(grpc.Addr(), https.Addr(), public.Addr(), text)
	})
	return s.Run(ctx)
}

// now is the clock of the server.
func (o serverOptions) now() time.Time { return time.Now().Add(o.Skew) }

func (o serverOptions) openStore(ctx context.Context) (*tables.DB, error) {
	if o.Database != "" {
		return postgres.Open(ctx, o.Database, o.Name)
	}
	return sqlite.Open(ctx, filepath.Join(o.Dir, storeName))
}

func (o serverOptions) openHSM(ctx context.Context) (*hsm.HSM, error) {
	module, err := hsm.FindSoftHSM()
	if err != nil {
		return nil, err
	}
	conf, err := hsm.WriteSoftHSM(o.HSM)
	if err != nil {
		return nil, err
	}
	if err := os.Setenv(hsm.SoftHSMConfEnv, conf); err != nil {
		return nil, err
	}
	pin, err := hsm.NewPIN([]byte(hsmPIN))
	if err != nil {
		return nil, err
	}
	return hsm.Open(ctx, hsm.Config{Module: module, Label: hsmLabel}, pin)
}

// issuers returns the issuing CA and all CA certificates. It wraps the issuing key, so that signatures are recorded and
// counted as steps.
func (o serverOptions) issuers(ctx context.Context, db *tables.DB, opened *hsm.HSM, steps *stepCounter) ([]ca.IssuingCA, []*x509.Certificate, error) {
	installed, err := db.CA().Installed(ctx)
	if err != nil {
		return nil, nil, err
	}
	var all []*x509.Certificate
	for _, i := range installed {
		c, err := x509.ParseCertificate(i.Certificate)
		if err != nil {
			return nil, nil, err
		}
		all = append(all, c)
	}
	key, err := opened.Find(ctx, hsm.KeyRef{Label: issuingLabel})
	if err != nil {
		return nil, nil, err
	}
	conn, err := net.Dial("unix", o.SignatureSocket)
	if err != nil {
		return nil, nil, err
	}
	signer := &recordingSigner{Signer: key, conn: conn, steps: steps}
	issuer, err := ca.NewIssuingCA(all[len(all)-1], signer, all)
	return []ca.IssuingCA{issuer}, all, err
}

// revokingProfile is the device profile with renewal_revokes.
const revokingProfile = "once"

// httpsURL is the URL of every server's HTTPS listener. Servers listen on other ports, which the clients' transport knows.
const httpsURL = "https://localhost:8443"

// acme returns the configuration of the ACME door. Validations connect to loopback addresses only.
func (o serverOptions) acme() server.ACME {
	return server.ACME{
		Validation: validation.Config{Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, HTTPPort: o.ChallengePort},
		MinVersion: tls.VersionTLS13,
	}
}

// firstPolicy returns a policy with the rule of the default one, rules for ACME, and the profiles of the test.
func firstPolicy() ([]byte, error) {
	configs, err := ca.DefaultProfiles()
	if err != nil {
		return nil, err
	}
	device := configs["device"]
	device.MaxUnexpired = 1000 // devices renew continuously
	device.CRLURL, device.DeltaCRLURL = "{public_url}/crl/{issuer}/{partition}.crl", "{public_url}/crl/{issuer}/{partition}-delta.crl"
	once := device
	once.RenewalRevokes = true
	web := configs["acme"]
	web.MaxUnexpired = 1000 // ACME clients order continuously
	return yaml.Marshal(map[string]any{
		"profiles": map[string]ca.ProfileConfig{"device": device, revokingProfile: once, "acme": web},
		"acme":     map[string]any{"binding": "required", "challenges": []string{"http-01"}},
		"rules": []map[string]any{
			{"name": "tokens", "evidence": []string{pki.EvidenceToken.String()}},
			{"name": acmeRule, "evidence": []string{pki.EvidenceACME.String()}, "identity": acmeRule + "/{acme.name}", "register": true, "kind": pki.Workload.String()},
			{"name": "hosts", "evidence": []string{pki.EvidenceACME.String()}},
		},
	})
}

// listen opens the listeners. Each write to a client of gRPC and HTTPS is counted as a step.
func listen(ctx context.Context, steps *stepCounter) (grpc, https, public net.Listener, err error) {
	var lc net.ListenConfig
	for _, l := range []*net.Listener{&grpc, &https, &public} {
		if *l, err = lc.Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
			return nil, nil, nil, err
		}
	}
	return &steppingListener{grpc, steps, stepRespond}, &steppingListener{https, steps, stepRespondHTTPS}, public, nil
}
