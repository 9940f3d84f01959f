package torture

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/policy"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/server/telemetry"
	"github.com/brevet-pki/brevet/store/retention"
	"github.com/brevet-pki/brevet/store/sqlite"
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
	Dir, HSM        string    // directories
	SignatureSocket string    // Unix socket of the signatureLog
	Operator        string    // identity to create an operator's token for; empty for none
	KillAt          killPoint // kill point during the start; disarmed once the server serves
	Bug             string    // the bug to seed; empty for none
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
	db, err := sqlite.Open(ctx, filepath.Join(o.Dir, storeName))
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
	stores, err := seedBug(o.Bug, server.Stores{CA: db.CA(), RA: db.RA(), Policies: db.RA(), Nonces: db.RA(), ACME: db.ACME(), Audit: db.RA(), Retention: db.RA(), Revocation: db.Revocation(), Rotations: db.Rotations(), CRLs: db.Revocation(), Feed: db.Revocation(), Log: db.Log()})
	if err != nil {
		return err
	}
	grpc, public, err := listen(ctx, steps)
	if err != nil {
		return err
	}
	s, err := server.New(ctx, server.Config{
		TrustDomain: trustDomain, Names: []string{"localhost"}, Address: "localhost:7443", Directory: filepath.Join(o.Dir, selfName),
		CRLs: server.CRLs{Directory: filepath.Join(o.Dir, crlsName), Directories: []string{filepath.Join(o.Dir, webName)}, Partitions: partitions},
		GRPC: grpc, HTTP: public, Issuers: issuers, Authorities: all, PublicURL: publicURL, Policy: first,
		Stores: steps.wrap(stores), Archive: archive, HSMs: []telemetry.IssuingHSM{{HSM: hsm.Watched{HSM: opened}, Name: hsmLabel, Issuers: []pki.IssuerID{issuers[0].ID}}}, Disk: &servertest.Disk{}, Retention: retention.Default, Limits: server.Limits{Identity: unlimited, Address: unlimited}, Clock: time.Now, Log: log,
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
		fmt.Println(grpc.Addr(), public.Addr(), text)
	})
	return s.Run(ctx)
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
func (o serverOptions) issuers(ctx context.Context, db *sqlite.DB, opened *hsm.HSM, steps *stepCounter) ([]ca.IssuingCA, []*x509.Certificate, error) {
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

// firstPolicy returns the default policy, with the profiles of the test.
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
	profiles, err := yaml.Marshal(map[string]any{"profiles": map[string]ca.ProfileConfig{"device": device, revokingProfile: once}})
	return append(profiles, policy.Default()...), err
}

// listen opens the listeners. Each write to a gRPC client is counted as a step.
func listen(ctx context.Context, steps *stepCounter) (grpc, public net.Listener, err error) {
	var lc net.ListenConfig
	if grpc, err = lc.Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
		return nil, nil, err
	}
	public, err = lc.Listen(ctx, "tcp", "127.0.0.1:0")
	return &steppingListener{grpc, steps}, public, err
}
