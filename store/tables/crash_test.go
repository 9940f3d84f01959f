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

	"go.uber.org/goleak"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/sqlite"
)

// crashEnv is an environment variable with the path of a store. If it is set, the test program issues certificates in this
// store until it is killed.
const crashEnv = "BREVET_TEST_CRASH_STORE"

// crashHow, where it is set to revoke, has it revoke them.
const crashHow = "BREVET_TEST_CRASH_HOW"

func TestMain(m *testing.M) {
	if path := os.Getenv(crashEnv); path != "" {
		until := issueUntilKilled
		if os.Getenv(crashHow) == "revoke" {
			until = revokeUntilKilled
		}
		if err := until(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	goleak.VerifyTestMain(withCluster{m})
}

// issueUntilKilled issues three certificates and prints each. Then it blocks forever in the transaction of a fourth one, after
// its writes and before the commit.
func issueUntilKilled(path string) error {
	ctx := context.Background()
	faults := &faultyDriver{}
	db, err := sqlite.OpenWith(ctx, path, faults)
	if err != nil {
		return err
	}
	epoch, _, err := db.CA().Begin(ctx)
	if err != nil {
		return err
	}
	id, err := db.RA().CreateIdentity(ctx, ra.Registration{Identity: device(0)}, pki.ActorCommand("test"))
	if err != nil {
		return err
	}
	for n := range uint64(4) {
		r := record(id.ID, n)
		intent := ca.Intent{Batch: ca.NewBatchID(), Items: []ca.IntentItem{{Ref: r.Ref, Digest: []byte("digest"), IssuedAt: r.IssuedAt, NotAfter: r.NotAfter}}}
		if _, err := db.CA().Write(ctx, epoch, nil, []ca.Intent{intent}); err != nil {
			return err
		}
		if n == 3 {
			faults.next.Store(&fault{before: func() {
				fmt.Println("committing", r.Ref.Serial)
				_, _ = io.Copy(io.Discard, os.Stdin) // until the kill
			}})
		}
		if _, err := db.CA().Write(ctx, epoch, []ca.BatchCommit{{Intent: intent, Records: []ca.Record{r}, At: at}}, nil); err != nil {
			return err
		}
		fmt.Println("issued", r.Ref.Serial)
	}
	return nil
}

func TestKilledBeforeCommit(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "brevet.db")
	child := exec.Command(os.Args[0])
	child.Env, child.Stderr = append(os.Environ(), crashEnv+"="+path), os.Stderr
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
	var issued, lost []pki.Serial
	for lines := bufio.NewScanner(stdout); len(lost) == 0 && lines.Scan(); {
		what, text, _ := strings.Cut(lines.Text(), " ")
		serial, err := pki.ParseSerial(text)
		if err != nil {
			t.Fatal(err)
		}
		if what == "issued" {
			issued = append(issued, serial)
		} else {
			lost = append(lost, serial)
		}
	}
	if _, err := sqlite.Open(ctx, path); err == nil || !strings.Contains(err.Error(), fmt.Sprint(child.Process.Pid)) {
		t.Errorf("opening the store of process %d: %v", child.Process.Pid, err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // it was killed
	if len(issued) != 3 || len(lost) != 1 {
		t.Fatalf("before the kill %d were issued and %d about to be", len(issued), len(lost))
	}

	db := mustOpen(t, path)
	for _, serial := range issued {
		if c, err := db.RA().CertificateBySerial(ctx, serial); err != nil || !c.Delivered {
			t.Errorf("certificate %s, issued before the kill: %+v, %v", serial, c, err)
		}
	}
	if c, err := db.RA().CertificateBySerial(ctx, lost[0]); err == nil {
		t.Errorf("the commit that was not durable left %+v", c)
	}
	epoch, left, err := db.CA().Begin(ctx)
	if err != nil || len(left) != 1 || left[0].Items[0].Ref.Serial != lost[0] {
		t.Fatalf("the kill left the intents %v, %v", left, err)
	}
	if _, err := db.CA().Write(ctx, epoch, []ca.BatchCommit{{Intent: left[0], At: at}}, nil); err != nil {
		t.Fatal(err)
	}
	if c, err := db.RA().CertificateBySerial(ctx, lost[0]); err != nil || c.Delivered || c.Status.State != pki.Revoked {
		t.Errorf("after its intent was committed: %+v, %v", c, err)
	}
}

func device(n uint64) ra.Identity {
	id, err := pki.SPIFFEIDIn("fleet.example", fmt.Sprintf("device/%016x", n))
	if err != nil {
		panic(err)
	}
	return ra.Identity{ID: id, Kind: pki.Device, Profile: "device", CreatedAt: at}
}
