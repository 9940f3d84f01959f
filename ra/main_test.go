package ra_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/store/tables"
)

// ground holds the SoftHSM token and opens the SQLite stores that the tests of this package use.
var ground servertest.Ground

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// run creates the SoftHSM token, runs the tests, and checks that they left no goroutines.
func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "ra-test")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	token, err := newToken(dir)
	if err != nil {
		return 0, err
	}
	ctx := context.Background()
	root, err := token.Generate(ctx, "root", hsm.P256)
	if err != nil {
		return 0, errors.Join(err, token.Close())
	}
	issuing, err := token.Generate(ctx, "issuing", hsm.P256)
	if err != nil {
		return 0, errors.Join(err, token.Close())
	}
	ground = servertest.Ground{Root: root, Issuing: issuing, Token: hsm.Watched{HSM: token, Keys: []*hsm.Key{issuing}}, Open: openStore}
	if code = m.Run(); code != 0 {
		return code, token.Close() // a failed test may leave goroutines
	}
	return code, errors.Join(token.Close(), goleak.Find())
}

func newToken(dir string) (*hsm.HSM, error) {
	module, err := hsm.FindSoftHSM()
	if err != nil {
		return nil, fmt.Errorf("%w: run deploy/setup.sh --test", err)
	}
	conf, err := hsm.WriteSoftHSM(filepath.Join(dir, "softhsm"))
	if err != nil {
		return nil, err
	}
	if err := os.Setenv(hsm.SoftHSMConfEnv, conf); err != nil {
		return nil, err
	}
	pin, err := hsm.NewPIN([]byte("user-246810"))
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	if _, err := hsm.Init(ctx, module, "test", pin, pin); err != nil {
		return nil, err
	}
	return hsm.Open(ctx, hsm.Config{Module: module, Label: "test"}, pin)
}

// store implements servertest.Store with SQLite.
type store struct{ *tables.DB }

func openStore(ctx context.Context, path string) (servertest.Store, error) {
	db, err := sqlite.Open(ctx, path)
	return store{db}, err
}

func (s store) Stores() server.Stores {
	return server.Stores{CA: s.CA(), RA: s.RA(), Policies: s.RA(), Nonces: s.RA(), ACME: s.ACME(), Audit: s.RA(), Retention: s.RA(), Revocation: s.Revocation(), Rotations: s.Rotations(), CRLs: s.Revocation(), Feed: s.Revocation(), Log: s.Log()}
}

func (s store) Installations() ca.Installations { return s.CA() }
