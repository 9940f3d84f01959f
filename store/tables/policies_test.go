package tables_test

import (
	"context"
	"path/filepath"
	"slices"
	"testing"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/tables"
	"github.com/brevet-pki/brevet/translog"
)

// TestPolicyIsAppliedAgainAfterReplay checks that a store that was restored from the log has the revisions of the
// policy without their documents, and gets the newest document when the same policy is applied again.
func TestPolicyIsAppliedAgainAfterReplay(t *testing.T) {
	ctx := context.Background()
	db := mustOpen(t, filepath.Join(t.TempDir(), "brevet.db"))
	apply := func(db *tables.DB, document string, based uint64) (ra.PolicyRevision, error) {
		return db.RA().ApplyPolicy(ctx, ra.PolicyChange{Document: []byte(document), Based: based, By: pki.ActorCommand("test"), At: at})
	}
	for i, document := range []string{"one", "two"} {
		if _, err := apply(db, document, uint64(i)); err != nil {
			t.Fatal(err)
		}
	}
	log, err := db.Log().Sequence(ctx, 100)
	if err != nil {
		t.Fatal(err)
	}
	restored := mustOpen(t, replayed(t, log))
	for _, revision := range []uint64{0, 1, 2} {
		if _, err := restored.RA().Policy(ctx, revision); !isRefusal(err, pki.RuleNotFound) {
			t.Errorf("the document of revision %d, which is not in the log, was read with the error %v", revision, err)
		}
	}
	list, _, err := restored.RA().Policies(ctx, 0, 10)
	if err != nil || len(list) != 2 || list[0].Revision != 2 {
		t.Fatalf("the restored store lists %+v, %v", list, err)
	}
	if _, err := apply(restored, "two", 0); err != nil {
		t.Fatal(err)
	}
	have, err := restored.RA().Policy(ctx, 0)
	if err != nil || have.Revision != 2 || string(have.Document) != "two" {
		t.Errorf("the policy is %+v, %v; want revision 2 with its document", have, err)
	}
	if next, err := apply(restored, "three", 2); err != nil || next.Revision != 3 {
		t.Errorf("the next policy is %+v, %v; want revision 3", next, err)
	}
	written, err := restored.Log().Written(ctx)
	if err != nil || written != 3 {
		t.Errorf("the restored log has %d entries, %v; want 3", written, err)
	}
}

// TestSealingKeyIsInTheStoreAlone checks that the key of a store is random, and is not in a store that is restored from
// its log.
func TestSealingKeyIsInTheStoreAlone(t *testing.T) {
	ctx := context.Background()
	var keys [][32]byte
	for range 2 {
		db := mustOpen(t, filepath.Join(t.TempDir(), "brevet.db"))
		if _, err := db.RA().CreateIdentity(ctx, ra.Registration{Identity: device(1)}, pki.ActorCommand("test")); err != nil {
			t.Fatal(err)
		}
		log, err := db.Log().Sequence(ctx, 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, db := range []*tables.DB{db, mustOpen(t, replayed(t, slices.Clone[[]translog.Sequenced](log)))} {
			key, err := db.RA().SealingKey(ctx)
			if err != nil || slices.Contains(keys, key) || key == [32]byte{} {
				t.Errorf("the sealing key of store %d is zero or that of another store, %v", len(keys), err)
			}
			keys = append(keys, key)
		}
	}
}
