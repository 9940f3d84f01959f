package server_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// diskEnv is the environment variable by which smallDisk gives its subprocess the directory for the small file system.
const diskEnv = "BREVET_TEST_DISK"

// smallDisk runs the test again in a subprocess whose temporary files are on a file system of size bytes. In the
// subprocess it returns the mount point and true. In the original process it returns false after the subprocess has
// ended, and the test must then return.
func smallDisk(t *testing.T, size int) (dir string, here bool) {
	t.Helper()
	if dir = os.Getenv(diskEnv); dir != "" {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=700", size)); err != nil {
			t.Fatalf("mount a small file system in a user namespace: %v", err)
		}
		t.Setenv("TMPDIR", dir)
		return dir, true
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), diskEnv+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("in a user namespace, where it can mount a small file system: %v\n%s", err, out)
	}
	return "", false
}

// fillDisk uses all free space, and returns a function that frees it.
func fillDisk(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f := servertest.Must(os.Create(path))(t)
	for err := error(nil); !errors.Is(err, syscall.ENOSPC); {
		if _, err = f.Write(make([]byte, 4096)); err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	servertest.Must(0, f.Close())(t)
	return func() { servertest.Must(0, os.Remove(path))(t) }
}

// load runs clients that repeat each call until it succeeds.
type load struct {
	w      *servertest.World
	stop   atomic.Bool
	failed atomic.Int64
	turns  atomic.Int64 // number of devices that were enrolled, renewed and revoked
}

// insist repeats a call until it succeeds. Each error before that must be temporary and have a retry delay.
func (l *load) insist(t *testing.T, call func(context.Context) error) {
	for err := call(t.Context()); err != nil && !t.Failed(); err = call(t.Context()) {
		checkUnavailable(t, err)
		l.failed.Add(1)
		time.Sleep(5 * time.Millisecond) // less than the retry delay
	}
}

// run enrolls, renews and revokes one device after the other.
func (l *load) run(t *testing.T, worker int) {
	nobody := l.w.Caller(t, nil)
	for n := 0; !l.stop.Load() && !t.Failed(); n++ {
		id, first, second := fmt.Sprintf("device/%d-%d", worker, n), servertest.Key(t), servertest.Key(t)
		l.insist(t, func(ctx context.Context) error {
			_, err := l.w.Operator.CreateIdentity(ctx, &brevetv1.CreateIdentityRequest{Id: id, Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE}})
			return err
		})
		var token *brevetv1.CreateTokenResponse
		l.insist(t, func(ctx context.Context) (err error) {
			token, err = l.w.Operator.CreateToken(ctx, &brevetv1.CreateTokenRequest{Identity: id})
			return err
		})
		var enrolled *brevetv1.EnrollResponse
		enrollment := servertest.Enrollment(t, l.w.Secret(t, token.GetToken()), first)
		l.insist(t, func(ctx context.Context) (err error) {
			enrolled, err = nobody.Enroll(ctx, enrollment)
			return err
		})
		holder := l.w.Holder(t, enrolled.GetCredential().GetCertificate(), first)
		var renewed *brevetv1.RenewResponse
		renewal := servertest.Renewal(t, second)
		l.insist(t, func(ctx context.Context) (err error) {
			renewed, err = holder.Renew(ctx, renewal)
			return err
		})
		l.insist(t, func(ctx context.Context) error {
			_, err := l.w.Operator.RevokeCertificate(ctx, &brevetv1.RevokeCertificateRequest{Serial: servertest.SerialBytes(holder.Certificate), Reason: servertest.Reason("superseded")})
			return err
		})
		l.w.Status(t, holder.Certificate, "superseded")
		l.w.Status(t, l.w.Holder(t, renewed.GetCredential().GetCertificate(), second).Certificate, "good")
		l.turns.Add(1)
	}
}

// The disk of the CRL directory fills up while a CRL is written. The previous CRL stays complete, and the next one is
// published once there is space.
func TestCRLDiskIsFull(t *testing.T) {
	_, here := smallDisk(t, 32<<20)
	if !here {
		return
	}
	w := servertest.New(t, ground, servertest.Options{})
	const many = 100 // certificates, so that their CRL exceeds a page
	var holders []*servertest.Holder
	for n := range many {
		holders = append(holders, w.Enrolled(t, "device", fmt.Sprintf("device/%d", n)))
	}
	path := "/crl/" + pki.IssuerOf(w.Issuing).Short() + ".crl"
	listed := func() int {
		resp := servertest.Must(http.Get("http://" + w.HTTP + path))(t)
		defer resp.Body.Close()
		der := servertest.Must(io.ReadAll(resp.Body))(t)
		return len(servertest.Must(x509.ParseRevocationList(der))(t).RevokedCertificateEntries)
	}
	before := listed()
	crls := filepath.Join(w.Dir, "crls")
	servertest.Must(0, unix.Mount("tmpfs", crls, "tmpfs", 0, "size=4096,mode=700"))(t)
	for _, h := range holders {
		w.Revoke(t, h.Certificate, "keyCompromise")
	}
	// The directory has space for one page, so that writing the longer CRL fails in the middle.
	await(t, "a CRL that finds no space", func() bool { return strings.Contains(w.Log.String(), `.crl.new: no space left on device`) })
	if n := listed(); n == many {
		t.Error("a CRL that could not be written is served")
	}
	w.Status(t, holders[0].Certificate, "keyCompromise") // OCSP uses no files
	servertest.Must(0, unix.Unmount(crls, unix.MNT_DETACH))(t)
	await(t, "the CRL with every revocation", func() bool { return listed() == before+many })
}

// await waits up to a minute for a condition, and fails the test if it does not hold.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timeout waiting for %s", what)
		}
	}
}

// While the disk is full, calls fail temporarily and nothing is lost. Once there is space, the server works without a
// restart.
func TestFullDiskRecovers(t *testing.T) {
	dir, here := smallDisk(t, 32<<20)
	if !here {
		return
	}
	w := servertest.New(t, ground, servertest.Options{})
	revoked := w.Enrolled(t, "device", "device/revoked")
	w.Revoke(t, revoked.Certificate, "keyCompromise")
	l := &load{w: w}
	var workers sync.WaitGroup
	for n := range 4 {
		workers.Go(func() { l.run(t, n) })
	}
	wait := func(what string, holds func() bool) {
		for deadline := time.Now().Add(time.Minute); !holds() && !t.Failed(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Errorf("while the disk is full, %s succeeds", what)
			}
		}
	}
	wait("devices come and go", func() bool { return l.turns.Load() >= 4 })

	free := fillDisk(t, dir)
	wait("calls fail", func() bool { return l.failed.Load() >= 40 })
	if code, reason := getOperations(t, w, "/readyz"); code != 503 {
		t.Errorf("/readyz returns %d, %s", code, reason)
	}
	w.Status(t, revoked.Certificate, "keyCompromise")
	stream := servertest.Must(w.Operator.ListEntries(t.Context(), &brevetv1.ListEntriesRequest{}))(t)
	if _, err := stream.Recv(); status.Code(err) != codes.OK { // an error only if unsequenced entries wait for disk space
		checkUnavailable(t, err)
	}
	free()

	if log := w.Log.String(); !strings.Contains(log, "there is no space for the store: free some on its disk") || strings.Contains(log, "the disk of the store fails") {
		t.Error("the log does not report the full disk, or has other errors")
	}
	done := l.turns.Load()
	wait("devices come and go again", func() bool { return l.turns.Load() >= done+8 })
	l.stop.Store(true)
	workers.Wait()
	// Each device must have exactly two certificates on record: its first one and its renewal.
	delivered := map[string]int{}
	for _, c := range w.Inventory(t) {
		if c.Delivered {
			delivered[c.Identity.Path()]++
		}
	}
	for worker := range 4 {
		for n := 0; delivered[fmt.Sprintf("device/%d-%d", worker, n)] != 0; n++ {
			if got := delivered[fmt.Sprintf("device/%d-%d", worker, n)]; got != 2 {
				t.Errorf("device/%d-%d has %d certificates, want 2", worker, n, got)
			}
		}
	}
}
