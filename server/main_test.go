package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/acme"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/store/tables"
)

// ground is what all worlds of this package use: one SoftHSM token, and SQLite stores. clone has another token with a clone
// of the issuing key, and other one with another issuing key.
var ground, clone, other servertest.Ground

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// run creates the token, runs the tests, and checks for leaked goroutines.
func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "server-test")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	tokens, err := newTokens(dir)
	defer func() {
		for _, token := range tokens {
			err = errors.Join(err, token.Close())
		}
	}()
	if err != nil {
		return 0, err
	}
	root, err := tokens["test"].Find(context.Background(), hsm.KeyRef{Label: "root"})
	if err != nil {
		return 0, err
	}
	for label, g := range map[string]*servertest.Ground{"test": &ground, "clone": &clone, "other": &other} {
		issuing, err := tokens[label].Find(context.Background(), hsm.KeyRef{Label: "issuing"})
		if err != nil {
			return 0, err
		}
		*g = servertest.Ground{Root: root, Issuing: issuing, Token: hsm.Watched{HSM: tokens[label], Keys: []*hsm.Key{issuing}}, Open: openStore}
	}
	code = m.Run()
	if err := cluster.stop(); err != nil || code != 0 {
		return code, err // no search for leaked goroutines, because failed tests may leave some
	}
	for _, token := range tokens {
		err = errors.Join(err, token.Close())
	}
	clear(tokens)
	return code, errors.Join(err, goleak.Find())
}

// newTokens returns open SoftHSM tokens by their labels. "test" has a root key and an issuing key, "clone" has clones of
// these keys, and "other" has another issuing key.
func newTokens(dir string) (tokens map[string]*hsm.HSM, err error) {
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
	if err := makeToken(ctx, module, "test", pin, "root", "issuing"); err != nil {
		return nil, err
	}
	if err := cloneToken(filepath.Join(filepath.Dir(conf), "tokens"), "test", "clone"); err != nil {
		return nil, err
	}
	if err := makeToken(ctx, module, "other", pin, "issuing"); err != nil {
		return nil, err
	}
	tokens = map[string]*hsm.HSM{}
	for _, label := range []string{"test", "clone", "other"} {
		if tokens[label], err = hsm.Open(ctx, hsm.Config{Module: module, Label: label}, pin); err != nil {
			delete(tokens, label)
			return tokens, err
		}
	}
	return tokens, nil
}

// makeToken creates a SoftHSM token with keys, and closes it.
func makeToken(ctx context.Context, module, label string, pin hsm.PIN, keys ...string) (err error) {
	if _, err := hsm.Init(ctx, module, label, pin, pin); err != nil {
		return err
	}
	token, err := hsm.Open(ctx, hsm.Config{Module: module, Label: label}, pin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, token.Close()) }()
	for _, key := range keys {
		if _, err := token.Generate(ctx, key, hsm.P256); err != nil {
			return err
		}
	}
	return nil
}

// cloneToken copies the files of a SoftHSM token that is not open, as the vendor's tool of an HSM clones its keys. The copy
// gets another label, and another serial number, from which SoftHSM computes the number of the slot.
func cloneToken(tokens, from, to string) error {
	all, err := os.ReadDir(tokens)
	if err != nil || len(all) != 1 {
		return fmt.Errorf("%d tokens instead of one: %w", len(all), err)
	}
	source, target := filepath.Join(tokens, all[0].Name()), filepath.Join(tokens, "11111111-2222-3333-4444-555555555555")
	if err := os.CopyFS(target, os.DirFS(source)); err != nil {
		return err
	}
	file := filepath.Join(target, "token.object")
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	serial := []byte(strings.ReplaceAll(all[0].Name(), "-", "")[16:]) // SoftHSM names a token after its serial number
	label := func(text string) []byte { return fmt.Appendf(nil, "%-32s", text) }
	if !bytes.Contains(content, serial) || !bytes.Contains(content, label(from)) {
		return fmt.Errorf("%s has neither the label %s nor the serial number %s", file, from, serial)
	}
	content = bytes.ReplaceAll(content, serial, []byte("0123456789abcdef"))
	return os.WriteFile(file, bytes.ReplaceAll(content, label(from), label(to)), 0o600)
}

// store is a [servertest.Store].
type store struct {
	*tables.DB

	nonces    acme.UsedNonces // nil for a server that has the store for itself
	delegates server.DelegateRequests
}

func openStore(ctx context.Context, path string) (servertest.Store, error) {
	db, err := sqlite.Open(ctx, path)
	return store{db, nil, nil}, err
}

func (s store) Stores() server.Stores {
	return server.Stores{ACMENonces: s.nonces, CA: s.CA(), RA: s.RA(), Policies: s.RA(), Nonces: s.RA(), ACME: s.ACME(), Audit: s.RA(), Retention: s.RA(), Revocation: s.Revocation(), Rotations: s.Rotations(), CRLs: s.Revocation(), Exchange: s.Exchange(), Delegates: s.delegates, Feed: s.Revocation(), Log: s.Log()}
}

func (s store) Installations() ca.Installations { return s.CA() }
