package tables_test

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
)

// TestSharedTransactionRefusesRevokedCaller puts a revocation and later changes by its actor and by the revoked caller into one
// transaction. Only the changes of the revoked caller are refused.
func TestSharedTransactionRefusesRevokedCaller(t *testing.T) {
	ctx := context.Background()
	m := newMill(t, filepath.Join(t.TempDir(), "brevet.db"))
	records := m.issue([]pki.SPIFFEID{m.identity(1), m.identity(2)}, nil)
	if err := m.db.OnWriter(ctx, `UPDATE identities SET state = 2, kind = 3, roles = 1`); err != nil {
		t.Fatal(err)
	}
	good, robbed := pki.ActorCaller(records[0].Identity, records[0].Ref), pki.ActorCaller(records[1].Identity, records[1].Ref)
	registerBy := func(by pki.Actor, n uint64) func() error {
		return func() error {
			_, err := m.db.RA().CreateIdentity(ctx, ra.Registration{Identity: device(n)}, by)
			return err
		}
	}
	errs := together(t, m.db, registerBy(robbed, 3),
		func() error {
			_, err := m.db.Revocation().Apply(ctx, revocation.Change{
				Action: revocation.Revoke, Reason: pki.KeyCompromise, Certificate: records[1].Ref, Actor: good, At: at,
			})
			return err
		},
		registerBy(robbed, 4), registerBy(good, 5))
	if errs[0] != nil || errs[1] != nil || errs[3] != nil {
		t.Errorf("the errors of the jobs are %v, want only the third refused", errs)
	}
	if refusal, ok := pki.AsRefusal(errs[2]); !ok || refusal.Rule != pki.RuleRevoked {
		t.Errorf("the revoked caller got %v, want a refusal with the rule %s", errs[2], pki.RuleRevoked)
	}
	if registered(t, m.db, 4) || !registered(t, m.db, 3) {
		t.Error("the records differ from those written by callers that were not revoked")
	}
}
