package enroll

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

func TestNewPairRejectsInvalidCredentials(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	good := ca.pairFor(t, "device/1")
	now := time.Now()
	leaf := func(change func(*x509.Certificate)) *x509.Certificate {
		template := leafTemplate("spiffe://fleet.example/device/1", now.Add(-time.Minute), now.Add(time.Hour))
		change(template)
		return testSign(t, template, ca.issuer, good.Key.Public(), ca.issuerKey)
	}
	one := leaf(func(*x509.Certificate) {})
	chain, roots := good.Chain, good.Roots
	of := func(leaf *x509.Certificate, chain, roots []*x509.Certificate) Credential {
		return Credential{Certificate: leaf, Chain: chain, Roots: roots}
	}
	cases := map[string]struct {
		c   Credential
		why string // expected text of the error; empty for success
	}{
		"good":           {of(one, chain, roots), ""},
		"expired":        {of(leaf(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-2*time.Hour), now.Add(-time.Hour) }), chain, roots), ""},
		"not yet valid":  {of(leaf(func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) }), chain, roots), ""},
		"other key":      {of(ca.pairFor(t, "device/1").Certificate, chain, roots), "another key"},
		"other root":     {of(one, chain, other.pairFor(t, "device/1").Roots), "chain"},
		"no chain":       {of(one, nil, roots), "chain"},
		"no root":        {of(one, chain, nil), "chain"},
		"no certificate": {of(nil, chain, roots), "needs a certificate"},
		"a CA's":         {of(leaf(func(c *x509.Certificate) { c.IsCA = true }), chain, roots), "not an identity"},
		"no identity":    {of(leaf(func(c *x509.Certificate) { c.URIs = nil }), chain, roots), "not an identity"},
		"two identities": {of(leaf(func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }), chain, roots), "not an identity"},
		"a web address":  {of(leaf(func(c *x509.Certificate) { c.URIs[0].Scheme = "https" }), chain, roots), "not a SPIFFE ID"},
	}
	for name, c := range cases {
		_, err := NewPair(c.c, good.Key, Origin{}, now)
		if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, want %q", name, err, c.why)
		}
	}
}

func TestDirectoryStoresPairs(t *testing.T) {
	ca, path := newTestCA(t), filepath.Join(t.TempDir(), "a", "b")
	d := openTestDirectory(t, path, new(testLog).logger())
	if _, err := d.Load(); !errors.Is(err, ErrNoCredential) {
		t.Fatalf("Load of an empty directory: %v", err)
	}
	for range 4 {
		p := ca.pairFor(t, "device/1")
		p.Origin = Origin{Server: "ca.example:7443", Token: "0123456789abcdef", Obtained: time.Now().UTC().Round(0)}
		if err := errors.Join(d.install(p), d.prune()); err != nil {
			t.Fatal(err)
		}
		got, err := d.Load()
		if err != nil || !got.Certificate.Equal(p.Certificate) || got.Origin != p.Origin || len(got.Chain) != 1 || len(got.Roots) != 1 {
			t.Fatalf("Load = %+v, %v", got, err)
		}
	}
	found := map[string]fs.FileMode{}
	err := filepath.WalkDir(path, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		rel, _ := filepath.Rel(path, name)
		found[rel] = info.Mode()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{
		".": fs.ModeDir | 0o711, "gen-3": fs.ModeDir | 0o755, "gen-4": fs.ModeDir | 0o755, "lock": 0o600,
		"gen-4/key.pem": 0o600, "gen-4/cert.pem": 0o644, "gen-4/bundle.pem": 0o644, "gen-4/origin.json": 0o644,
	} {
		if found[name] != want {
			t.Errorf("%s has mode %s", name, found[name])
		}
	}
	if len(found) != 13 { // the files above, the four files in gen-3, and current
		t.Errorf("the directory contains %v", found)
	}
}

func TestDirectoryIsLocked(t *testing.T) {
	path := t.TempDir()
	d := openTestDirectory(t, path, new(testLog).logger())
	if _, err := OpenDirectory(path, d.log); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Fatalf("a second OpenDirectory succeeded: %v", err)
	}
}

func TestKeyReadableByOthersIsLogged(t *testing.T) {
	ca, path, log := newTestCA(t), t.TempDir(), new(testLog)
	d := openTestDirectory(t, path, log.logger())
	if err := d.install(ca.pairFor(t, "device/1")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Load(); err != nil || strings.Contains(log.String(), "other users") {
		t.Fatalf("%v, %s", err, log)
	}
	if err := os.Chmod(filepath.Join(path, "current", "key.pem"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Load(); err != nil || !strings.Contains(log.String(), "other users") {
		t.Fatalf("%v, %s", err, log)
	}
}

func TestDamagedPairsDoNotLoad(t *testing.T) {
	ca := newTestCA(t)
	for _, name := range []string{keyName, certName, bundleName, originName} {
		whole := false // whether a truncated file may still be complete
		for _, keep := range []int{0, 1, 40} {
			d := openTestDirectory(t, t.TempDir(), new(testLog).logger())
			if err := d.install(ca.pairFor(t, "device/1")); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(d.path, currentName, name)
			if info, err := os.Stat(file); err != nil || info.Size() <= int64(keep) {
				continue
			}
			if err := os.Truncate(file, int64(keep)); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Load(); err == nil || errors.Is(err, ErrNoCredential) {
				t.Errorf("%s cut to %d bytes: %v", name, keep, err)
			}
			whole = true
		}
		if !whole {
			t.Errorf("%s was never cut", name)
		}
	}
}

func TestPendingRequestIsRepeated(t *testing.T) {
	log := new(testLog)
	d := openTestDirectory(t, t.TempDir(), log.logger())
	first, err := d.preparePending("token a", pki.P384)
	if err != nil {
		t.Fatal(err)
	}
	again, err := d.preparePending("token a", pki.P256)
	if err != nil || again.id != first.id || !keysEqual(again, first) {
		t.Fatalf("the request changed: %v", err)
	}
	other, err := d.preparePending("token b", pki.P256)
	if err != nil || other.id == first.id || keysEqual(other, first) {
		t.Fatalf("another token got the same request: %v", err)
	}
	if err := os.WriteFile(filepath.Join(d.path, pendingName), []byte(`{"key":"c2VjcmV0"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.preparePending("token b", pki.P256); err != nil || !strings.Contains(log.String(), "damaged") {
		t.Fatalf("a damaged record: %v, %s", err, log)
	}
	if err := errors.Join(d.removePending(), d.removePending()); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(d.path, pendingName)); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the request was not removed: %v, %v", info, err)
	}
}

func keysEqual(a, b pending) bool {
	ha, errA := pki.HashKey(a.key.Public())
	hb, errB := pki.HashKey(b.key.Public())
	return errA == nil && errB == nil && ha == hb
}

// An open writable file would prevent a read-only remount of the file system.
func TestLockIsNotOpenForWriting(t *testing.T) {
	d, err := OpenDirectory(t.TempDir(), new(testLog).logger())
	if err != nil {
		t.Fatal(err)
	}
	flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, d.lock.Fd(), syscall.F_GETFL, 0)
	if errno != 0 || flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		t.Errorf("the lock is open with flags %#o, %v", flags, errno)
	}
	if running, err := Running(d.path); err != nil || !running {
		t.Errorf("Running = %v, %v while an agent runs", running, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if running, err := Running(d.path); err != nil || running {
		t.Errorf("Running = %v, %v without an agent", running, err)
	}
}

func TestRootIsRefusedInDirectoryOfAnotherUser(t *testing.T) {
	path := t.TempDir()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	owner := int(info.Sys().(*syscall.Stat_t).Uid)
	if err := checkOwner(path, owner); err != nil {
		t.Errorf("the owner is refused: %v", err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(path, 12345, 12345); err != nil {
			t.Fatal(err)
		}
		owner = 12345
	}
	if err := checkOwner(path, 0); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("'#%d'", owner)) {
		t.Errorf("root in the directory of %d: %v", owner, err)
	}
}
