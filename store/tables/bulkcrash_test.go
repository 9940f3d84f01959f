package tables_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/store/sqlite"
)

// The number of certificates that the killed process revokes, and the number of records in a step.
const (
	crashMembers = 100
	crashStep    = 30
)

var stolen = revocation.BulkRequest{
	Action:    revocation.Revoke,
	Selection: pki.Selection{Label: pki.Label{Name: "batch", Value: "7"}}, Reason: pki.Superseded, Actor: pki.ActorCommand("test"), At: at,
}

// revokeUntilKilled issues certificates with one label and revokes them with a bulk revocation. It blocks forever before the
// commit of the third step.
func revokeUntilKilled(path string) error {
	ctx := context.Background()
	faults := &faultyDriver{}
	db, err := sqlite.OpenWith(ctx, path, faults)
	if err != nil {
		return err
	}
	m := &mill{db: db, at: at}
	if m.epoch, _, err = db.CA().Begin(ctx); err != nil {
		return err
	}
	var ids []pki.SPIFFEID
	for n := range uint64(crashMembers / 2) {
		id := device(n)
		id.Labels = map[string]string{"batch": "7"}
		if id, err = db.RA().CreateIdentity(ctx, ra.Registration{Identity: id}, pki.ActorCommand("test")); err != nil {
			return err
		}
		ids = append(ids, id.ID)
	}
	for range 2 {
		if _, err := m.write(ids, nil); err != nil {
			return err
		}
	}
	created, _, err := db.Revocation().CreateBulk(ctx, stolen)
	if err != nil {
		return err
	}
	for n := range 3 {
		if n == 2 {
			faults.next.Store(&fault{before: func() {
				fmt.Println("committing")
				_, _ = io.Copy(io.Discard, os.Stdin) // until the kill
			}})
		}
		if _, _, err := db.Revocation().ApplyBulk(ctx, created.ID, crashStep, at); err != nil {
			return err
		}
	}
	return nil
}

// A process is killed while a bulk revocation is applied in steps. The bulk revocation stays in effect for all members, and
// the next process applies the remaining steps.
func TestKilledDuringBulkRevocation(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "brevet.db")
	child := exec.Command(os.Args[0])
	child.Env, child.Stderr = append(os.Environ(), crashEnv+"="+path, crashHow+"=revoke"), os.Stderr
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if strings.TrimSpace(line) != "committing" {
		t.Errorf("the process says %q, %v", line, err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // it was killed

	db := mustOpen(t, path)
	revoked := func() (n int) {
		t.Helper()
		_, err := db.Revocation().Snapshot(ctx, at.Add(-time.Hour), func(c pki.StatusChange) error {
			if c.Status == (pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: at.Truncate(time.Second), Version: 2}) {
				n++
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := revoked(); n != crashMembers {
		t.Errorf("after the kill, %d of %d certificates are revoked", n, crashMembers)
	}
	open, err := db.Revocation().OpenBulk(ctx)
	if err != nil || len(open) != 1 || open[0].Applied != 2*crashStep {
		t.Fatalf("the kill left the bulk revocations %+v, %v", open, err)
	}
	for left := open[0]; !left.Done; {
		if _, left, err = db.Revocation().ApplyBulk(ctx, left.ID, crashStep, at); err != nil {
			t.Fatal(err)
		}
		if left.Done && left.Applied != crashMembers {
			t.Errorf("the bulk revocation ends as %+v", left)
		}
	}
	if n := revoked(); n != crashMembers {
		t.Errorf("at the end, %d of %d certificates are revoked", n, crashMembers)
	}
	if n := len(listed(t, db, crl.Listing{NotExpiredAt: at})); n != crashMembers {
		t.Errorf("a CRL would list %d of %d certificates", n, crashMembers)
	}
}
