package rules_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/rules"
)

func drawOrder(t *rapid.T) revocation.Change {
	o := revocation.Change{
		Action: rapid.SampledFrom([]revocation.Action{revocation.Revoke, revocation.Hold, revocation.Unhold}).Draw(t, "action"),
		Actor:  pki.ActorSystem("test"), At: now.Add(time.Duration(rapid.IntRange(0, 5000).Draw(t, "ms")) * time.Millisecond),
	}
	if o.Action == revocation.Revoke {
		reasons := []pki.Reason{pki.Unspecified, pki.KeyCompromise, pki.Superseded, pki.PrivilegeWithdrawn}
		o.Reason = rapid.SampledFrom(reasons).Draw(t, "reason")
		if rapid.Bool().Draw(t, "dated") {
			o.InvalidSince = o.At.Add(-time.Hour).Truncate(time.Second)
		}
	}
	return o
}

// TestStatuses applies random changes to one certificate. A revocation must be final, each change must increment the
// version by one, and an unchanged status must keep its version.
func TestStatuses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := rules.Certificate{Ref: certificate(t, 1), NotAfter: now.Add(time.Hour), Status: pki.Status{State: pki.Good, Version: 1}}
		for range rapid.IntRange(1, 12).Draw(t, "orders") {
			o, before, since := drawOrder(t), c.Status, c.InvalidSince
			next, invalidSince, changed, err := c.Change(o)
			after := next.Status
			if changed != (after != before) || changed && (after.Version != before.Version+1 || err != nil) {
				t.Fatalf("%+v becomes %+v (changed %v, %v)", before, after, changed, err)
			}
			if before.State == pki.Revoked {
				upgrade := o.Action == revocation.Revoke && o.Reason == pki.KeyCompromise && before.Reason != pki.KeyCompromise
				repeat := o.Action == revocation.Revoke && o.Reason == before.Reason
				if changed != upgrade || upgrade && after.RevokedAt != before.RevokedAt || (err == nil) != (upgrade || repeat) {
					t.Fatalf("the revoked status %+v becomes %+v, %v", before, after, err)
				}
			}
			if changed && o.InvalidSince.IsZero() && after.State == pki.Revoked && invalidSince != since {
				t.Fatalf("the invalidity date %v becomes %v", since, invalidSince)
			}
			if !after.RevokedAt.Equal(after.RevokedAt.Truncate(time.Second)) || (after.State == pki.Good) != after.RevokedAt.IsZero() {
				t.Fatalf("%+v has a wrong time", after)
			}
			c.Status, c.InvalidSince = after, invalidSince
		}
	})
}

func TestHoldDuringSuspension(t *testing.T) {
	for _, c := range []struct {
		action  revocation.Action
		state   pki.IdentityState
		holding bool
		want    pki.Rule
	}{
		{revocation.Revoke, pki.Suspended, true, ""},
		{revocation.Hold, pki.Enrolled, false, ""},
		{revocation.Hold, pki.Enrolled, true, pki.RuleOverloaded},
		{revocation.Hold, pki.Suspended, false, ""},
		{revocation.Unhold, pki.Enrolled, false, ""},
		{revocation.Unhold, pki.Enrolled, true, pki.RuleOverloaded},
		{revocation.Unhold, pki.Suspended, false, pki.RuleIdentityState},
	} {
		cert := rules.Certificate{IdentityState: c.state}
		err := cert.CheckHold(revocation.Change{Action: c.action}, c.holding)
		if refusal, _ := pki.AsRefusal(err); refusal == nil && c.want != "" || refusal != nil && refusal.Rule != c.want {
			t.Errorf("action %v on a certificate of an identity that is %v: %v, want %q", c.action, c.state, err, c.want)
		}
	}
}

// TestOpenBulk checks that the effective status of a member equals the status in its record after all open bulk
// revocations have been applied in order.
func TestOpenBulk(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var open rules.OpenBulk
		c := rules.Certificate{Status: pki.Status{State: pki.Good, Version: 1}}
		before := c
		members := rapid.Uint64().Draw(t, "members")
		for i := range rapid.IntRange(0, 6).Draw(t, "orders") {
			o := drawOrder(t)
			open = append(open, o)
			if members>>i&1 == 0 {
				continue
			}
			next, since, _, err := c.ChangeMember(o)
			if err != nil {
				t.Fatal(err)
			}
			c.Status, c.InvalidSince = next.Status, since
		}
		if got := open.Status(before.Status, members); got != c.Status {
			t.Fatalf("the effective status is %+v, want %+v as in the record later", got, c.Status)
		}
		if got := open.InvalidSince(before.Status, members, before.InvalidSince); c.Status.State == pki.Revoked && got != c.InvalidSince {
			t.Fatalf("the effective invalidity date is %v, want %v as in the record later", got, c.InvalidSince)
		}
	})
}

func TestBulkStatus(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := drawOrder(t)
		before := pki.Status{State: pki.State(rapid.IntRange(1, 2).Draw(t, "state")), Version: 3}
		next, changed := rules.NextMember(before, o)
		got := rules.BulkStatus(rules.BulkOf(o, pki.Selection{}))
		if next.Version = 0; changed && got != next {
			t.Fatalf("BulkStatus returned %+v, but NextMember %+v", got, next)
		}
	})
}
