package rules_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/translog"
)

func TestMoveIdentity(t *testing.T) {
	suspend := revocation.Change{Action: revocation.Hold, State: pki.Suspended}
	resume := revocation.Change{Action: revocation.Unhold}
	retire := revocation.Change{Action: revocation.Revoke, State: pki.Retired}
	replace := revocation.Change{Action: revocation.Revoke, Reason: pki.Superseded}
	revoke := revocation.Change{Action: revocation.Revoke, Reason: pki.KeyCompromise}
	for _, c := range []struct {
		o             revocation.Change
		from, resumes pki.IdentityState
		want          rules.IdentityMove
		refusal       pki.Rule
	}{
		{suspend, pki.Enrolled, 0, rules.IdentityMove{pki.Suspended, pki.Enrolled, true, translog.IdentitySuspended}, ""},
		{suspend, pki.Registered, 0, rules.IdentityMove{pki.Suspended, pki.Registered, true, translog.IdentitySuspended}, ""},
		{suspend, pki.Suspended, pki.Enrolled, rules.IdentityMove{pki.Suspended, 0, false, translog.IdentitySuspended}, ""},
		{suspend, pki.Retired, 0, rules.IdentityMove{}, pki.RuleIdentityState},
		{resume, pki.Suspended, pki.Registered, rules.IdentityMove{pki.Registered, 0, true, translog.IdentityResumed}, ""},
		{resume, pki.Enrolled, 0, rules.IdentityMove{}, pki.RuleIdentityState},
		{resume, pki.Retired, 0, rules.IdentityMove{}, pki.RuleIdentityState},
		{retire, pki.Suspended, pki.Enrolled, rules.IdentityMove{pki.Retired, 0, true, translog.IdentityRetired}, ""},
		{retire, pki.Retired, 0, rules.IdentityMove{pki.Retired, 0, false, translog.IdentityRetired}, ""},
		{replace, pki.Enrolled, 0, rules.IdentityMove{pki.Enrolled, 0, false, translog.IdentityReplaced}, ""},
		{revoke, pki.Suspended, pki.Enrolled, rules.IdentityMove{pki.Suspended, 0, false, translog.CertificateRevoked}, ""},
	} {
		got, err := rules.MoveIdentity(c.o, c.from, c.resumes)
		refusal, _ := pki.AsRefusal(err)
		if c.refusal == "" && (err != nil || got != c.want) || c.refusal != "" && (refusal == nil || refusal.Rule != c.refusal) {
			t.Errorf("action %v on an identity that is %v: %+v, %v", c.o.Action, c.from, got, err)
		}
	}
}

func TestUpdates(t *testing.T) {
	have := rules.NewIdentity(ra.Identity{ID: identity(t), Kind: pki.Device, Profile: "device", CreatedAt: now.Add(1)})
	if have.State != pki.Registered || have.Revision != 1 || have.CreatedAt != now {
		t.Errorf("NewIdentity returned %+v", have)
	}
	want := have
	want.DNSNames = []string{"pump.example"}
	if err := rules.CheckSameIdentity(have, have); err != nil {
		t.Error(err)
	}
	if refusal, _ := pki.AsRefusal(rules.CheckSameIdentity(have, want)); refusal == nil || refusal.Rule != pki.RuleIdentityExists {
		t.Errorf("CheckSameIdentity with other names returned %v", refusal)
	}
	next, changed, err := rules.UpdateIdentity(have, want)
	if err != nil || !changed || next.Revision != 2 || next.State != have.State || len(next.DNSNames) != 1 {
		t.Errorf("UpdateIdentity returned %+v, %v, %v", next, changed, err)
	}
	tied := have
	tied.Subject = subject(1)
	for _, c := range []struct {
		have, want ra.Identity
		rule       pki.Rule
	}{
		{have, tied, pki.RuleIdentityExists}, {tied, tied, ""}, {tied, have, ""},
		{tied, ra.Identity{ID: tied.ID, Kind: tied.Kind, Profile: tied.Profile, Subject: subject(2)}, pki.RuleEvidenceConflict},
	} {
		refusal, _ := pki.AsRefusal(rules.CheckSameIdentity(c.have, c.want))
		if c.rule == "" && refusal != nil || c.rule != "" && (refusal == nil || refusal.Rule != c.rule) {
			t.Errorf("registering an identity with the subject %q as %q again: %v, want %q", c.have.Subject, c.want.Subject, refusal, c.rule)
		}
	}
	if next, changed, err = rules.UpdateIdentity(have, have); err != nil || changed || next.Revision != 1 {
		t.Errorf("UpdateIdentity with equal attributes returned %+v, %v, %v", next, changed, err)
	}
	have.State = pki.Retired
	if refusal, _ := pki.AsRefusal(rules.CheckSameIdentity(have, have)); refusal == nil || refusal.Rule != pki.RuleIdentityState {
		t.Errorf("registering a retired identity again: %v, want %s", refusal, pki.RuleIdentityState)
	}
	if _, _, err = rules.UpdateIdentity(have, want); err == nil {
		t.Error("a retired identity was updated")
	}
	tied.State = pki.Retired
	if next, changed, err = rules.UpdateIdentity(tied, have); err != nil || !changed || !next.Subject.IsZero() || next.State != pki.Retired {
		t.Errorf("freeing the evidence of a retired identity returned %+v, %v, %v", next, changed, err)
	}
}

func TestTotals(t *testing.T) {
	for _, c := range []struct {
		total, registered int
		refused           bool
	}{{0, 0, false}, {0, 1 << 30, false}, {1, 0, false}, {1, 1, true}, {3, 2, false}, {3, 3, true}, {3, 4, true}} {
		n := ra.Registration{Identity: ra.Identity{ID: identity(t), Rule: "cameras"}, Total: c.total}
		if refusal := rules.CheckTotal(n, c.registered); (refusal != nil) != c.refused || refusal != nil && refusal.Rule != pki.RulePolicyLimit {
			t.Errorf("a rule with the total %d that has registered %d identities: %v, want a refusal: %t", c.total, c.registered, refusal, c.refused)
		}
	}
}

func TestTokens(t *testing.T) {
	request, _ := pki.RequestIDFromBytes([]byte("0123456789abcdef"))
	key := pki.HashSPKI([]byte("key"))
	token := ra.Token{Identity: identity(t), IdentityRevision: 1, ExpiresAt: now.Add(time.Minute)}
	bound, changed, err := rules.BindToken(token, ra.Binding{Request: request, Key: key}, nil)
	if err != nil || !changed || bound.CheckBound(request, key) != nil {
		t.Fatalf("BindToken returned %+v, %v, %v", bound, changed, err)
	}
	if again, changed, err := rules.BindToken(bound, ra.Binding{}, nil); err != nil || changed || again.Request != request {
		t.Errorf("the second BindToken returned %+v, %v, %v", again, changed, err)
	}
	token.RevokedBecause = "why"
	if _, _, err := rules.BindToken(token, ra.Binding{Request: request, Key: key}, nil); err == nil {
		t.Error("a revoked token was bound")
	}
}

// TestTokenStates checks that a token is open exactly if it can enroll an identity with the same revision.
func TestTokenStates(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		token := ra.Token{Spent: rapid.Bool().Draw(t, "spent"), IdentityRevision: 1, ExpiresAt: now.Add(time.Duration(rapid.IntRange(-1, 1).Draw(t, "s")) * time.Second)}
		if rapid.Bool().Draw(t, "revoked") {
			token.RevokedBecause = "why"
		}
		revision := rapid.Uint64Range(1, 2).Draw(t, "revision")
		open := !token.Spent && token.RevokedBecause == "" && now.Before(token.ExpiresAt) && revision == 1
		if state := rules.TokenState(&token, revision, now); (state == ra.TokenOpen) != open {
			t.Fatalf("the state of %+v is %s", token, state)
		}
		if revokes, usable := rules.RevokesToken(&token, now); revokes != (!token.Spent && token.RevokedBecause == "") || usable && !revokes {
			t.Fatalf("RevokesToken of %+v returned %v, %v", token, revokes, usable)
		}
	})
}

func TestDistrust(t *testing.T) {
	for _, c := range []struct {
		o    revocation.Change
		want bool
	}{
		{revocation.Change{Action: revocation.Hold, State: pki.Suspended}, true},
		{revocation.Change{Action: revocation.Hold}, false},
		{revocation.Change{Action: revocation.Unhold}, false},
		{revocation.Change{Action: revocation.Revoke, State: pki.Retired, Reason: pki.CessationOfOperation}, true},
		{revocation.Change{Action: revocation.Revoke, Reason: pki.KeyCompromise}, true},
		{revocation.Change{Action: revocation.Revoke, Reason: pki.PrivilegeWithdrawn}, true},
		{revocation.Change{Action: revocation.Revoke, Reason: pki.Superseded}, false},
	} {
		if why := rules.Distrust(c.o); (why != "") != c.want {
			t.Errorf("Distrust of %+v returned %q", c.o, why)
		}
	}
}
