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

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/pki"
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
	ownName     = "own"
	crlsName    = "crls"
	webName     = "web" // where CRLs are published for another web server
)

// partitions is how many parts the CRL has; with a delta of each, and the full one, a round signs twice as many and one.
const partitions = 2

// orders is what a server process is told.
type orders struct {
	Dir, Token string // directories
	Witness    string // a Unix socket
	Operator   string // who gets an operator's token; empty for nobody
	Kill       kill   // for the steps of its start; disarmed when it serves
	Plant      string // the fault to plant; empty for none
}

// serve runs a server as cmd/brevet does, with wrappers around its parts. It says its process ID, then where it listens
// once it serves. A kill that comes on standard input is armed, and the end of standard input is the end of the server.
func serve() error {
	var o orders
	if err := json.Unmarshal([]byte(os.Getenv(ordersEnv)), &o); err != nil {
		return err
	}
	fmt.Println(os.Getpid())
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	steps := &steps{}
	steps.arm(o.Kill)
	go func() {
		for decoder := json.NewDecoder(os.Stdin); ; {
			var k kill
			if decoder.Decode(&k) != nil {
				stop()
				return
			}
			steps.arm(k)
		}
	}()
	return o.serve(ctx, steps)
}

// unlimited is a rate that nobody reaches.
var unlimited = admission.Rate{PerSecond: 1e6, Burst: 1e6}

func (o orders) serve(ctx context.Context, steps *steps) (err error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	token, err := o.openToken(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, token.Close()) }()
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
	issuers, all, err := o.issuers(ctx, db, token, steps)
	if err != nil {
		return err
	}
	profiles, err := profiles()
	if err != nil {
		return err
	}
	stores, err := plant(o.Plant, server.Stores{CA: db.CA(), RA: db.RA(), Audit: db.RA(), Retention: db.RA(), Revocation: db.Revocation(), CRLs: db.Revocation(), Feed: db.Revocation(), Log: db.Log()})
	if err != nil {
		return err
	}
	grpc, public, err := listen(ctx, steps)
	if err != nil {
		return err
	}
	s, err := server.New(ctx, server.Config{
		TrustDomain: trustDomain, Names: []string{"localhost"}, Address: "localhost:7443", Directory: filepath.Join(o.Dir, ownName),
		CRLs: server.CRLs{Directory: filepath.Join(o.Dir, crlsName), Directories: []string{filepath.Join(o.Dir, webName)}, Partitions: partitions},
		GRPC: grpc, HTTP: public, Issuers: issuers, Authorities: all, Profiles: profiles,
		Stores: steps.wrap(stores), Archive: archive, Tokens: []telemetry.IssuingToken{{Token: hsm.Watched{Token: token}, Name: tokenLabel, Issuers: []pki.IssuerID{issuers[0].ID}}}, Disk: &servertest.Disk{}, Retention: retention.Default, Limits: server.Limits{Identity: unlimited, Address: unlimited}, Clock: time.Now, Log: log,
	})
	if err != nil {
		return err
	}
	s.OnReady(func() {
		steps.arm(kill{})
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

func (o orders) openToken(ctx context.Context) (*hsm.Token, error) {
	module, err := hsm.FindSoftHSM()
	if err != nil {
		return nil, err
	}
	conf, err := hsm.WriteSoftHSM(o.Token)
	if err != nil {
		return nil, err
	}
	if err := os.Setenv(hsm.SoftHSMConfEnv, conf); err != nil {
		return nil, err
	}
	pin, err := hsm.NewPIN([]byte(tokenPIN))
	if err != nil {
		return nil, err
	}
	return hsm.Open(ctx, hsm.Config{Module: module, TokenLabel: tokenLabel}, pin)
}

// issuers puts the witness before the issuing key, and the steps around both.
func (o orders) issuers(ctx context.Context, db *sqlite.DB, token *hsm.Token, steps *steps) ([]ca.IssuingCA, []*x509.Certificate, error) {
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
	key, err := token.Find(ctx, hsm.KeyRef{Label: issuingLabel})
	if err != nil {
		return nil, nil, err
	}
	conn, err := net.Dial("unix", o.Witness)
	if err != nil {
		return nil, nil, err
	}
	signer := &witnessedSigner{Signer: key, conn: conn, steps: steps}
	issuer, err := ca.NewIssuingCA(all[len(all)-1], signer, all)
	return []ca.IssuingCA{issuer}, all, err
}

// onceProfile is that of devices but for renewal_revokes.
const onceProfile = "once"

func profiles() (map[string]*ca.Profile, error) {
	configs, err := ca.DefaultProfiles()
	if err != nil {
		return nil, err
	}
	device := configs["device"]
	device.MaxUnexpired = 1000 // devices here renew without pause
	device.CRLURL, device.DeltaCRLURL = "{public_url}/crl/{issuer}/{partition}.crl", "{public_url}/crl/{issuer}/{partition}-delta.crl"
	configs["device"] = device
	device.RenewalRevokes = true
	configs[onceProfile] = device
	made := map[string]*ca.Profile{}
	for name, c := range configs {
		if made[name], err = ca.NewProfile(name, c, publicURL); err != nil {
			return nil, err
		}
	}
	return made, nil
}

// listen opens the listeners. What the gRPC one's connections write are the answers.
func listen(ctx context.Context, steps *steps) (grpc, public net.Listener, err error) {
	var lc net.ListenConfig
	if grpc, err = lc.Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
		return nil, nil, err
	}
	public, err = lc.Listen(ctx, "tcp", "127.0.0.1:0")
	return &steppingListener{grpc, steps}, public, err
}
