package storetest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/translog"
)

func testTokenRevocations(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"with their creator": revokedWithTheirCreator, "by an operator": revokedByAnOperator,
		"after signing": revokedAfterSigning, "spent tokens": spentAreNotRevoked, "list": listTokens,
	})
}

// createTokenBy creates a token for a new identity. Its creator is the caller with a certificate.
func (w *world) createTokenBy(t *testing.T, creator ca.Record) ra.Token {
	t.Helper()
	b := w.unique()
	id, err := pki.TokenIDFromBytes(b[:])
	must(t, err)
	device := w.register(t)
	token := ra.Token{
		ID: id, Identity: device.ID, IdentityRevision: device.Revision, Profile: "device", ExpiresAt: w.now.Add(time.Hour), CreatedBy: callerOf(creator), CreatedAt: w.now,
	}
	w.storeToken(t, token)
	return token
}

func (w *world) readToken(t *testing.T, id pki.TokenID) ra.Token {
	t.Helper()
	have, err := w.RA.Token(context.Background(), id)
	must(t, err)
	return have
}

// mustBeRevoked checks that a token is marked as revoked and that binding it is refused.
func (w *world) mustBeRevoked(t *testing.T, token ra.Token) {
	t.Helper()
	mustRefuse(t, w.readToken(t, token.ID).CheckRevoked(), pki.RuleTokenRevoked)
	_, err := w.RA.BindToken(context.Background(), token.ID, ra.Binding{Request: w.requestID(t), Key: w.key(), At: w.now})
	mustRefuse(t, err, pki.RuleTokenRevoked)
}

func (w *world) mustBeUsable(t *testing.T, token ra.Token) {
	t.Helper()
	must(t, w.readToken(t, token.ID).CheckRevoked())
	_, err := w.RA.BindToken(context.Background(), token.ID, ra.Binding{Request: w.requestID(t), Key: w.key(), At: w.now})
	must(t, err)
}

// change returns a function that makes a change of a creator.
func (w *world) change(of func(ca.Record) revocation.Change) func(t *testing.T, creator ca.Record) {
	return func(t *testing.T, creator ca.Record) { t.Helper(); w.apply(t, of(creator)) }
}

// bulkChange returns a function that creates a bulk revocation of what sel selects.
func (w *world) bulkChange(sel func(ca.Record) pki.Selection, reason pki.Reason) func(t *testing.T, creator ca.Record) {
	return func(t *testing.T, creator ca.Record) {
		t.Helper()
		need(t, w.Revocation != nil, "bulk revocations")
		_, _, err := w.Revocation.CreateBulk(context.Background(), revocation.BulkRequest{
			Action: revocation.Revoke, Selection: sel(creator), Reason: reason, Actor: operator, At: w.now,
		})
		must(t, err)
	}
}

func revokeCertificate(reason pki.Reason) func(ca.Record) revocation.Change {
	return func(r ca.Record) revocation.Change {
		return revocation.Change{Action: revocation.Revoke, Reason: reason, Certificate: r.Ref}
	}
}

// selectProfile selects the certificates of all devices.
func selectProfile(ca.Record) pki.Selection { return pki.Selection{Profile: "device"} }

// creatorChange is a change of the creator of a token.
type creatorChange struct {
	name    string
	change  func(t *testing.T, creator ca.Record)
	revokes bool // whether the change must revoke the creator's tokens
}

// creatorChanges returns the changes that must and those that must not revoke the tokens of a creator.
func (w *world) creatorChanges() []creatorChange {
	change, bulk, certificate, profile := w.change, w.bulkChange, revokeCertificate, selectProfile
	return []creatorChange{
		{"suspended", change(func(r ca.Record) revocation.Change {
			return revocation.Change{Action: revocation.Hold, Identity: r.Identity, State: pki.Suspended}
		}), true},
		{"suspended and resumed", func(t *testing.T, r ca.Record) {
			w.apply(t, revocation.Change{Action: revocation.Hold, Identity: r.Identity, State: pki.Suspended})
			w.apply(t, revocation.Change{Action: revocation.Unhold, Identity: r.Identity})
		}, true},
		{"retired", change(func(r ca.Record) revocation.Change {
			return revocation.Change{Action: revocation.Revoke, Reason: pki.CessationOfOperation, Identity: r.Identity, State: pki.Retired}
		}), true},
		{"retired while the clock is ahead", func(t *testing.T, r ca.Record) {
			defer func(now time.Time) { w.now = now }(w.now)
			w.now = w.now.Add(14 * time.Hour)
			w.apply(t, revocation.Change{Action: revocation.Revoke, Reason: pki.CessationOfOperation, Identity: r.Identity, State: pki.Retired})
		}, true},
		{"key compromised", change(certificate(pki.KeyCompromise)), true},
		{"privilege withdrawn", change(certificate(pki.PrivilegeWithdrawn)), true},
		{"compromised key revoked", change(func(r ca.Record) revocation.Change {
			return revocation.Change{Action: revocation.Revoke, Reason: pki.KeyCompromise, Key: r.KeyHash}
		}), true},
		{"bulk revocation of one identity", bulk(func(r ca.Record) pki.Selection { return pki.Selection{Identity: r.Identity} }, pki.PrivilegeWithdrawn), true},
		{"bulk revocation of a lineage", bulk(func(r ca.Record) pki.Selection { return pki.Selection{LineageOf: r.Ref} }, pki.KeyCompromise), true},
		{"key of many certificates compromised", func(t *testing.T, r ca.Record) {
			w.issueCertificates(t, r.Identity, manyCertificates)
			w.apply(t, certificate(pki.KeyCompromise)(r))
		}, true},
		{"bulk revocation of one identity with many certificates", func(t *testing.T, r ca.Record) {
			w.issueCertificates(t, r.Identity, manyCertificates)
			bulk(func(r ca.Record) pki.Selection { return pki.Selection{Identity: r.Identity} }, pki.PrivilegeWithdrawn)(t, r)
		}, true},
		{"key compromised after the certificate expired", func(t *testing.T, r ca.Record) {
			w.now = r.NotAfter.Add(2 * time.Hour)
			w.advanceAge(t)
			bulk(func(r ca.Record) pki.Selection { return pki.Selection{Key: r.KeyHash} }, pki.KeyCompromise)(t, r)
		}, true},
		{"superseded", change(certificate(pki.Superseded)), false},
		{"certificate held", change(func(r ca.Record) revocation.Change {
			return revocation.Change{Action: revocation.Hold, Certificate: r.Ref}
		}), false},
		{"expired", func(*testing.T, ca.Record) { w.now = w.now.Add(2 * time.Hour) }, false},
		{"bulk revocation of others", bulk(func(ca.Record) pki.Selection { return pki.Selection{Profile: "other"} }, pki.KeyCompromise), false},
		{"bulk revocation for another reason", bulk(profile, pki.CACompromise), false},
	}
}

func revokedWithTheirCreator(t *testing.T, w *world) {
	for _, c := range w.creatorChanges() {
		t.Run(c.name, func(t *testing.T) {
			creator, other := w.enrollOperator(t, pki.RoleRegistrar), w.enrollOperator(t, pki.RoleRegistrar)
			token, otherToken := w.createTokenBy(t, creator), w.createTokenBy(t, other)
			c.change(t, creator)
			if !c.revokes {
				w.mustBeUsable(t, token)
				return
			}
			e := w.lastEntry(t)
			if c.name != "suspended and resumed" && (e.Action != translog.TokenRevoked || e.Identity != creator.Identity || e.Actor != operator || e.Facts()["cause"] == "") {
				t.Errorf("log entry %+v", e)
			}
			w.mustBeRevoked(t, token)
			w.mustBeUsable(t, otherToken)
		})
	}
	t.Run("open bulk revocation", func(t *testing.T) {
		creator := w.enrollOperator(t, pki.RoleRegistrar)
		token := w.createTokenBy(t, creator)
		w.bulkChange(selectProfile, pki.KeyCompromise)(t, creator)
		w.mustBeRevoked(t, token)
		again := w.issue(t, w.record(t, creator.Identity)) // the creator has a new certificate
		w.mustBeUsable(t, w.createTokenBy(t, again))
		w.reopen(t)
		w.begin(t)
		w.mustBeRevoked(t, token)
		w.mustReplay(t)
		w.Replay = nil // the outer test must not replay again: this handle is closed
	})
}

func revokedByAnOperator(t *testing.T, w *world) {
	ctx := context.Background()
	creator := w.enrollOperator(t, pki.RoleRegistrar)
	first, second, third := w.createTokenBy(t, creator), w.createTokenBy(t, creator), w.createTokenBy(t, creator)
	revoke := func(r ra.TokenRevocation, want int) {
		t.Helper()
		r.By, r.At, r.Comment = operator, w.now, "lost in the post"
		n, err := w.RA.RevokeTokens(ctx, r)
		must(t, err)
		mustEqual(t, "the number of revoked tokens", n, want)
	}
	revoke(ra.TokenRevocation{ID: first.ID.String()}, 1)
	mustEqual(t, "the log entry", w.lastEntry(t), translog.Entry{
		Time: w.now, Actor: operator, Action: translog.TokenRevoked, Outcome: translog.Done, Identity: first.Identity,
		Event: &translog.RevokedTokens{ID: first.ID, Usable: 1, Cause: "an operator revoked it", Comment: "lost in the post"},
	})
	revoke(ra.TokenRevocation{ID: first.ID.String()}, 0)
	w.mustBeRevoked(t, first)
	w.mustBeUsable(t, second)
	revoke(ra.TokenRevocation{CreatedBy: creator.Identity}, 2)
	mustEqual(t, "the log entry", w.lastEntry(t).Facts(), map[string]string{
		"tokens": "2", "cause": "an operator revoked all tokens of its creator", "comment": "lost in the post",
	})
	logged := len(w.entries(t))
	revoke(ra.TokenRevocation{CreatedBy: creator.Identity}, 0)
	if n := len(w.entries(t)); n != logged {
		t.Errorf("a repeated revocation wrote %d log entries", n-logged)
	}
	mustRefuse(t, w.readToken(t, second.ID).CheckRevoked(), pki.RuleTokenRevoked)
	w.mustBeRevoked(t, third)
	w.mustBeUsable(t, w.createTokenBy(t, creator))
	for _, bad := range []struct {
		r    ra.TokenRevocation
		want pki.Rule
	}{
		{ra.TokenRevocation{}, pki.RuleRequest}, {ra.TokenRevocation{ID: first.ID.String(), CreatedBy: creator.Identity}, pki.RuleRequest},
		{ra.TokenRevocation{ID: "pump"}, pki.RuleRequest}, {ra.TokenRevocation{ID: "0123456789abcdef"}, pki.RuleNotFound},
		{ra.TokenRevocation{CreatedBy: w.newIdentity(t).ID}, pki.RuleIdentity},
	} {
		bad.r.By, bad.r.At = operator, w.now
		_, err := w.RA.RevokeTokens(ctx, bad.r)
		mustRefuse(t, err, bad.want)
	}
}

// enrollmentWithToken returns the record of an enrollment that spends a token. The token is bound to it.
func (w *world) enrollmentWithToken(t *testing.T, token ra.Token) ca.Record {
	t.Helper()
	r := w.enrollment(t, w.readIdentity(t, token.Identity))
	r.Guard.Token = token.ID
	_, err := w.RA.BindToken(context.Background(), token.ID, ra.Binding{Request: r.RequestID, Key: r.KeyHash, At: w.now})
	must(t, err)
	return r
}

// revokedAfterSigning revokes a token after the intent of its enrollment was written. The commit must be refused.
func revokedAfterSigning(t *testing.T, w *world) {
	creator := w.enrollOperator(t, pki.RoleRegistrar)
	r := w.enrollmentWithToken(t, w.createTokenBy(t, creator))
	intent := w.writeIntent(t, r)
	w.apply(t, revocation.Change{Action: revocation.Revoke, Reason: pki.KeyCompromise, Certificate: creator.Ref})
	mustRefuse(t, w.commitBatch(t, intent, r)[0], pki.RuleTokenRevoked)
	if c := w.readCertificate(t, r.Ref); c.Delivered {
		t.Error("a certificate was issued for a revoked token")
	}
}

// spentAreNotRevoked checks that a spent token is not revoked with its creator, because its enrollment may be repeated.
func spentAreNotRevoked(t *testing.T, w *world) {
	creator := w.enrollOperator(t, pki.RoleRegistrar)
	token := w.createTokenBy(t, creator)
	w.issue(t, w.enrollmentWithToken(t, token))
	w.apply(t, revocation.Change{Action: revocation.Hold, Identity: creator.Identity, State: pki.Suspended})
	have := w.readToken(t, token.ID)
	if !have.Spent || have.RevokedBecause != "" || have.CreatorCertificate != creator.Ref {
		t.Errorf("the spent token is %+v", have)
	}
}

func listTokens(t *testing.T, w *world) {
	ctx := context.Background()
	creator, other := w.enrollOperator(t, pki.RoleRegistrar), w.enrollOperator(t, pki.RoleRegistrar)
	tokens := map[ra.TokenState]ra.Token{}
	tokens[ra.TokenRevoked] = w.createTokenBy(t, creator)
	_, err := w.RA.RevokeTokens(ctx, ra.TokenRevocation{CreatedBy: creator.Identity, By: operator, At: w.now})
	must(t, err)
	tokens[ra.TokenSpent] = w.createTokenBy(t, creator)
	w.issue(t, w.enrollmentWithToken(t, tokens[ra.TokenSpent]))
	tokens[ra.TokenExpired] = w.createTokenBy(t, creator)
	w.now = w.now.Add(time.Hour)
	tokens[ra.TokenStale] = w.createTokenBy(t, creator)
	w.issue(t, w.enrollment(t, w.readIdentity(t, tokens[ra.TokenStale].Identity)))
	tokens[ra.TokenOpen] = w.createTokenBy(t, other)
	list := func(f ra.TokenFilter, size int) []ra.ListedToken {
		t.Helper()
		var all []ra.ListedToken
		for after := (ra.TokenPosition{}); ; {
			page, next, err := w.RA.Tokens(ctx, f, w.now, after, size)
			must(t, err)
			if len(page) > size {
				t.Fatalf("a page has %d tokens, want at most %d", len(page), size)
			}
			if all = append(all, page...); next.IsZero() {
				return all
			}
			after = next
		}
	}
	for state, token := range tokens {
		found := list(ra.TokenFilter{States: []ra.TokenState{state}}, 10)
		if len(found) != 1 || found[0].ID != token.ID || found[0].State != state || found[0].CreatedBy != token.CreatedBy.Named() || found[0].CreatorCertificate.IsZero() {
			t.Errorf("the %s tokens are %+v", state, found)
		}
		if found := list(ra.TokenFilter{Identity: token.Identity}, 10); len(found) != 1 || found[0].ID != token.ID {
			t.Errorf("the tokens for %s are %+v", token.Identity, found)
		}
	}
	var want []pki.TokenID // by descending time of creation, then by descending ID
	for _, token := range slices.SortedFunc(maps.Values(tokens), func(a, b ra.Token) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), bytes.Compare(b.ID.Bytes(), a.ID.Bytes()))
	}) {
		want = append(want, token.ID)
	}
	for size := range 3 {
		var found []pki.TokenID
		for _, token := range list(ra.TokenFilter{}, size+1) {
			found = append(found, token.ID)
		}
		mustEqual(t, fmt.Sprintf("the list in pages of %d", size+1), found, want)
	}
	mustEqual(t, "the number of the creator's tokens", len(list(ra.TokenFilter{CreatedBy: creator.Identity}, 2)), 4)
	mustEqual(t, "the number of the creator's open tokens", len(list(ra.TokenFilter{CreatedBy: creator.Identity, States: []ra.TokenState{ra.TokenOpen}}, 2)), 0)
	mustEqual(t, "the number of open or stale tokens", len(list(ra.TokenFilter{States: []ra.TokenState{ra.TokenOpen, ra.TokenStale}}, 1)), 2)
	first, last := tokens[ra.TokenSpent].CreatedAt, tokens[ra.TokenOpen].CreatedAt
	mustEqual(t, "the number of tokens of a period", len(list(ra.TokenFilter{CreatedFrom: first, CreatedUntil: last}, 2)), 3)
	mustEqual(t, "the number of tokens after the newest", len(list(ra.TokenFilter{CreatedFrom: last.Add(1)}, 2)), 0)
	if _, _, err := w.RA.Tokens(ctx, ra.TokenFilter{}, w.now, ra.TokenPosition{}, 0); err == nil {
		t.Error("a list with the limit 0 returned no error")
	}
}
