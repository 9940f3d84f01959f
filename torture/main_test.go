// Package torture kills real servers, cuts their power, restarts them, and checks from outside that nothing was lost.
//
// The test program runs itself as the server (serve_test.go) or as an agent (agent_test.go). The server consists of the
// real parts, with wrappers around the interfaces between them. The wrappers count the steps of the pipeline and kill
// the process with SIGKILL at one of them (steps_test.go). They also report every signature to the test process before
// the HSM makes it (signatures_test.go).
//
// Clients record the certificates and responses that they received (clients_test.go, observations_test.go). After each
// restart the test reads the files with plain SQL, without code of the product, and compares them with these records
// (audit_test.go).
//
// Among the clients are ACME clients (acme_test.go) and an operator who starts and stops rotations (rotation_test.go). Some
// writes of the store fail (storefaults_test.go).
//
// A process that is killed leaves the page cache intact. For a power cut the server runs under strace, which records
// every change that the server requests from the kernel. From these records the test rebuilds the directory: changes
// that were not flushed are lost, torn or kept at random (trace_test.go, disk_test.go).
//
// Several servers share one PostgreSQL (replicas_test.go). The servers, PostgreSQL, and the network between them fail
// (replicafaults_test.go, proxy_test.go, cables_test.go). A device measures when each server knows that its certificate is revoked
// (watcher_test.go).
//
// Concurrent calls are checked for linearizability (linearizability_test.go, model_test.go).
//
// Each check must find the bugs that are seeded for it (seeded_test.go, altered_test.go). In this package a "fault" is
// a text that says what is wrong in the files or responses of a server.
package torture

import (
	"crypto"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/store/tables"
)

var (
	long = flag.Duration("torture.duration", 0, "how long each test continues; zero for the short form")
	seed = flag.Uint64("torture.seed", 0, "seed of all random choices; zero for a new one")
)

// roleEnv is the environment variable that makes the test program run as "server" or "agent". Its options, in JSON, are
// in optionsEnv.
const (
	roleEnv    = "BREVET_TORTURE_ROLE"
	optionsEnv = "BREVET_TORTURE_OPTIONS"
)

const (
	trustDomain  = "fleet.example"
	publicURL    = "http://pki.fleet.example"
	hsmLabel     = "torture"
	hsmPIN       = "user-246810"
	issuingLabel = "issuing"
)

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(roleEnv) {
	case "server":
		err = serve()
	case "agent":
		err = runAgent()
	default:
		flag.Parse()
		if *seed == 0 {
			*seed = rand.Uint64()
		}
		fmt.Printf("torture.seed=%d\n", *seed)
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// A testCA is the directories of a CA whose server has run once. Every instance starts with a copy of them.
type testCA struct {
	hsm, files    string
	root, issuing *x509.Certificate
	rootCRL       []byte
	operator      *credential
}

// newTestCA runs the ceremony, starts a server, which issues its own certificates, and enrolls an operator.
func newTestCA(t *testing.T) *testCA {
	t.Helper()
	dir := t.TempDir()
	g := &testCA{hsm: filepath.Join(dir, "hsm"), files: filepath.Join(dir, "files")}
	must(t, os.MkdirAll(filepath.Join(g.files, webName), 0o700))
	g.ceremony(t)
	w := &instance{testCA: g, dir: g.files, hsm: g.hsm, observed: newObservations(), signatures: newSignatureLog(t), clients: newClients(g)}
	p := w.start(t, serverOptions{Operator: "torturer", IsNew: true})
	w.enrollOperator(t, p)
	p.stop(t)
	return g
}

// enrollOperator enrolls the operator for whom a server was started.
func (w *instance) enrollOperator(t *testing.T, p *process) {
	t.Helper()
	w.clients.connect(p)
	key := newKey()
	der, err := w.clients.obtain(t.Context(), newRequest(p.operator, key))
	must(t, err)
	w.operator = newCredential(t, der, key)
}

// ceremony initializes an HSM with the keys, and a store with the certificates.
func (g *testCA) ceremony(t *testing.T) {
	t.Helper()
	module, err := hsm.FindSoftHSM()
	if err != nil {
		t.Fatalf("%v: run deploy/setup.sh --test", err)
	}
	conf, err := hsm.WriteSoftHSM(g.hsm)
	must(t, err)
	t.Setenv(hsm.SoftHSMConfEnv, conf)
	pin, err := hsm.NewPIN([]byte(hsmPIN))
	must(t, err)
	_, err = hsm.Init(t.Context(), module, hsmLabel, pin, pin)
	must(t, err)
	opened, err := hsm.Open(t.Context(), hsm.Config{Module: module, Label: hsmLabel}, pin)
	must(t, err)
	defer func() { must(t, opened.Close()) }()
	root, err := opened.Generate(t.Context(), "root", hsm.P256)
	must(t, err)
	issuing, err := opened.Generate(t.Context(), issuingLabel, hsm.P256)
	must(t, err)
	g.rootCRL = g.certify(t, root, issuing)
	db, err := sqlite.Open(t.Context(), filepath.Join(g.files, storeName))
	must(t, err)
	g.install(t, db)
	must(t, db.Close())
}

// certify signs the certificates of root and issuing CA, and returns the root's CRL.
func (g *testCA) certify(t *testing.T, root, issuing crypto.Signer) (crl []byte) {
	t.Helper()
	now := time.Now().Add(-time.Hour)
	const life = 365 * 24 * time.Hour
	subject := func(text string) ceremony.Subject {
		s, err := ceremony.ParseSubject(text)
		must(t, err)
		return s
	}
	der, err := ceremony.Root(root, ceremony.RootSpec{Subject: subject("CN=Fleet Root G1"), Lifetime: 2 * life, PathLength: 1, Now: now})
	must(t, err)
	g.root = parse(t, der)
	csr, err := ceremony.Request(issuing, ceremony.RequestSpec{Subject: subject("CN=Fleet Issuing G1")})
	must(t, err)
	id := pki.IssuerOf(g.root).Short()
	der, err = ceremony.Sign(g.root, root, csr, ceremony.SignSpec{
		Lifetime: life, TrustDomain: trustDomain, Now: now, CRLURL: publicURL + "/crl/" + id + ".crl", IssuerURL: publicURL + "/ca/" + id + ".cer",
	})
	must(t, err)
	g.issuing = parse(t, der)
	crl, err = ceremony.RootCRL(g.root, root, ceremony.CRLSpec{Number: big.NewInt(1), NextUpdate: now.Add(life), Now: now})
	must(t, err)
	return crl
}

// install records the certificates and the root's CRL in a new store.
func (g *testCA) install(t *testing.T, db *tables.DB) {
	t.Helper()
	ctx := t.Context()
	by, now := pki.ActorCommand("ceremony install"), time.Now()
	for _, in := range []ca.InstalledCA{{Certificate: g.root.Raw, At: now}, {Certificate: g.issuing.Raw, Key: issuingLabel, At: now}} {
		must(t, db.CA().Install(ctx, in, by))
	}
	list, err := x509.ParseRevocationList(g.rootCRL)
	must(t, err)
	must(t, db.Revocation().PutCRLs(ctx, []crl.CRL{crl.Imported(pki.IssuerOf(g.root), list)}, by, now))
}

// copyTree copies directories, files and symbolic links. It removes the destination first.
func copyTree(from, to string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(to, path[len(from):])
		switch {
		case e.IsDir():
			return os.Mkdir(target, 0o700)
		case e.Type() == fs.ModeSymlink:
			link, err := os.Readlink(path)
			return errors.Join(err, os.Symlink(link, target))
		default:
			content, err := os.ReadFile(path)
			return errors.Join(err, os.WriteFile(target, content, 0o600))
		}
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	must(t, err)
	return c
}
