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
		"with their maker": revokedWithTheirMaker, "by an operator": revokedByAnOperator, "under way": revokedUnderWay,
		"spent ones stay": spentOnesStay, "list": listTokens,
	})
}

// tokenBy has a caller make a token for a new identity.
func (w *world) tokenBy(t *testing.T, maker ca.Record) ra.Token {
	t.Helper()
	b := w.draw()
	id, err := pki.TokenIDFromBytes(b[:])
	must(t, err)
	device := w.identity(t)
	token := ra.Token{
		ID: id, Identity: device.ID, IdentityRevision: device.Revision, Profile: "device", ExpiresAt: w.now.Add(time.Hour), CreatedBy: callerOf(maker), CreatedAt: w.now,
	}
	w.create(t, token)
	return token
}

func (w *world) readToken(t *testing.T, id pki.TokenID) ra.Token {
	t.Helper()
	have, err := w.RA.Token(context.Background(), id)
	must(t, err)
	return have
}

// mustBeRevoked has a token be refused wherever it is presented.
func (w *world) mustBeRevoked(t *testing.T, token ra.Token) {
	t.Helper()
	mustRefuse(t, w.readToken(t, token.ID).CheckRevoked(), pki.RuleTokenRevoked)
	_, err := w.RA.BindToken(context.Background(), token.ID, w.request(t), w.key(), w.now)
	mustRefuse(t, err, pki.RuleTokenRevoked)
}

func (w *world) mustServe(t *testing.T, token ra.Token) {
	t.Helper()
	must(t, w.readToken(t, token.ID).CheckRevoked())
	_, err := w.RA.BindToken(context.Background(), token.ID, w.request(t), w.key(), w.now)
	must(t, err)
}

// ordered gives an order about a maker.
func (w *world) ordered(of func(ca.Record) revocation.Change) func(t *testing.T, maker ca.Record) {
	return func(t *testing.T, maker ca.Record) { t.Helper(); w.apply(t, of(maker)) }
}

// bulkOrdered orders a bulk revocation of what sel selects.
func (w *world) bulkOrdered(sel func(ca.Record) pki.Selection, reason pki.Reason) func(t *testing.T, maker ca.Record) {
	return func(t *testing.T, maker ca.Record) {
		t.Helper()
		need(t, w.Revocation != nil, "bulk revocations")
		_, _, err := w.Revocation.CreateBulk(context.Background(), revocation.BulkRequest{
			Action: revocation.Revoke, Selection: sel(maker), Reason: reason, Actor: operator, At: w.now,
		})
		must(t, err)
	}
}

func revokeCertificate(reason pki.Reason) func(ca.Record) revocation.Change {
	return func(r ca.Record) revocation.Change {
		return revocation.Change{Action: revocation.Revoke, Reason: reason, Certificate: r.Ref}
	}
}

// ofProfile selects the certificates of everybody.
func ofProfile(ca.Record) pki.Selection { return pki.Selection{Profile: "device"} }

// makerChange is what happens to the maker of a token, and whether it revokes the token.
type makerChange struct {
	name    string
	change  func(t *testing.T, maker ca.Record)
	revokes bool
}

// makerChanges are what does and what does not revoke the tokens that a maker has made.
func (w *world) makerChanges() []makerChange {
	order, set, certificate, profile := w.ordered, w.bulkOrdered, revokeCertificate, ofProfile
	return []makerChange{
		{"suspended", order(func(r ca.Record) revocation.Change {
			return revocation.Change{Action: revocation.Hold, Identity: r.Identity, State: pki.Suspended}
		}), true},
		{"suspended and resumed", func(t *testing.T, r ca.Record) {
			w.apply(t, revocation.Change{Action: revocation.Hold, Identity: r.Identity, State: pki.Suspended})
			w.apply(t, revocation.Change{Action: revocation.Unhold, Identity: r.Identity})
		}, true},
		{"retired", order(func(r ca.Record) revocation.Change {
			return revocation.Change{Action: revocation.Revoke, Reason: pki.CessationOfOperation, Identity: r.Identity, State: pki.Retired}
		}), true},
		{"retired while the clock is ahead", func(t *testing.T, r ca.Record) {
			defer func(now time.Time) { w.now = now }(w.now)
			w.now = w.now.Add(14 * time.Hour)
			w.apply(t, revocation.Change{Action: revocation.Revoke, Reason: pki.CessationOfOperation, Identity: r.Identity, State: pki.Retired})
		}, true},
		{"key compromised", order(certificate(pki.KeyCompromise)), true},
		{"privilege withdrawn", order(certificate(pki.PrivilegeWithdrawn)), true},
		{"key compromised, by key", order(func(r ca.Record) revocation.Change {
			return revocation.Change{Action: revocation.Revoke, Reason: pki.KeyCompromise, Key: r.KeyHash}
		}), true},
		{"bulk revocation of one identity", set(func(r ca.Record) pki.Selection { return pki.Selection{Identity: r.Identity} }, pki.PrivilegeWithdrawn), true},
		{"bulk revocation of a lineage", set(func(r ca.Record) pki.Selection { return pki.Selection{LineageOf: r.Ref} }, pki.KeyCompromise), true},
		{"key compromised, of many certificates", func(t *testing.T, r ca.Record) {
			w.certificates(t, r.Identity, manyCertificates)
			w.apply(t, certificate(pki.KeyCompromise)(r))
		}, true},
		{"bulk revocation of one identity with many certificates", func(t *testing.T, r ca.Record) {
			w.certificates(t, r.Identity, manyCertificates)
			set(func(r ca.Record) pki.Selection { return pki.Selection{Identity: r.Identity} }, pki.PrivilegeWithdrawn)(t, r)
		}, true},
		{"key compromised after its certificate's end", func(t *testing.T, r ca.Record) {
			w.now = r.NotAfter.Add(2 * time.Hour)
			w.grow(t)
			set(func(r ca.Record) pki.Selection { return pki.Selection{Key: r.KeyHash} }, pki.KeyCompromise)(t, r)
		}, true},
		{"superseded", order(certificate(pki.Superseded)), false},
		{"certificate held", order(func(r ca.Record) revocation.Change {
			return revocation.Change{Action: revocation.Hold, Certificate: r.Ref}
		}), false},
		{"expired", func(*testing.T, ca.Record) { w.now = w.now.Add(2 * time.Hour) }, false},
		{"bulk revocation of others", set(func(ca.Record) pki.Selection { return pki.Selection{Profile: "other"} }, pki.KeyCompromise), false},
		{"bulk revocation for another reason", set(profile, pki.CACompromise), false},
	}
}

func revokedWithTheirMaker(t *testing.T, w *world) {
	for _, c := range w.makerChanges() {
		t.Run(c.name, func(t *testing.T) {
			maker, other := w.issued(t), w.issued(t)
			token, others := w.tokenBy(t, maker), w.tokenBy(t, other)
			c.change(t, maker)
			if !c.revokes {
				w.mustServe(t, token)
				return
			}
			e := w.lastEntry(t)
			if c.name != "suspended and resumed" && (e.Action != translog.TokenRevoked || e.Identity != maker.Identity || e.Actor != operator || e.Facts()["cause"] == "") {
				t.Errorf("log entry %+v", e)
			}
			w.mustBeRevoked(t, token)
			w.mustServe(t, others)
		})
	}
	t.Run("bulk revocation that is open", func(t *testing.T) {
		maker := w.issued(t)
		token := w.tokenBy(t, maker)
		w.bulkOrdered(ofProfile, pki.KeyCompromise)(t, maker)
		w.mustBeRevoked(t, token)
		again := w.issue(t, w.record(t, maker.Identity)) // the maker has enrolled anew
		w.mustServe(t, w.tokenBy(t, again))
		w.reopen(t)
		w.begin(t)
		w.mustBeRevoked(t, token)
		w.mustRebuild(t)
		w.Rebuild = nil // this handle on the store ends with this test
	})
}

func revokedByAnOperator(t *testing.T, w *world) {
	ctx := context.Background()
	maker := w.issued(t)
	first, second, third := w.tokenBy(t, maker), w.tokenBy(t, maker), w.tokenBy(t, maker)
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
	w.mustServe(t, second)
	revoke(ra.TokenRevocation{CreatedBy: maker.Identity}, 2)
	mustEqual(t, "the log entry", w.lastEntry(t).Facts(), map[string]string{
		"tokens": "2", "cause": "an operator revoked all tokens of its maker", "comment": "lost in the post",
	})
	logged := len(w.entries(t))
	revoke(ra.TokenRevocation{CreatedBy: maker.Identity}, 0)
	if n := len(w.entries(t)); n != logged {
		t.Errorf("revoking nothing wrote %d log entries", n-logged)
	}
	mustRefuse(t, w.readToken(t, second.ID).CheckRevoked(), pki.RuleTokenRevoked)
	w.mustBeRevoked(t, third)
	w.mustServe(t, w.tokenBy(t, maker))
	for _, bad := range []struct {
		r    ra.TokenRevocation
		want pki.Rule
	}{
		{ra.TokenRevocation{}, pki.RuleRequest}, {ra.TokenRevocation{ID: first.ID.String(), CreatedBy: maker.Identity}, pki.RuleRequest},
		{ra.TokenRevocation{ID: "pump"}, pki.RuleRequest}, {ra.TokenRevocation{ID: "0123456789abcdef"}, pki.RuleNotFound},
		{ra.TokenRevocation{CreatedBy: w.newIdentity(t).ID}, pki.RuleIdentity},
	} {
		bad.r.By, bad.r.At = operator, w.now
		_, err := w.RA.RevokeTokens(ctx, bad.r)
		mustRefuse(t, err, bad.want)
	}
}

// enrollmentBy is a record of what a token, bound to it, is to be spent for.
func (w *world) enrollmentBy(t *testing.T, token ra.Token) ca.Record {
	t.Helper()
	r := w.enrollment(t, w.stateOf(t, token.Identity))
	r.Guard.Token = token.ID
	_, err := w.RA.BindToken(context.Background(), token.ID, r.RequestID, r.KeyHash, w.now)
	must(t, err)
	return r
}

// revokedUnderWay revokes a token that is bound, and whose certificate is signed.
func revokedUnderWay(t *testing.T, w *world) {
	maker := w.issued(t)
	r := w.enrollmentBy(t, w.tokenBy(t, maker))
	intent := w.writeIntent(t, r)
	w.apply(t, revocation.Change{Action: revocation.Revoke, Reason: pki.KeyCompromise, Certificate: maker.Ref})
	mustRefuse(t, w.commitBatch(t, intent, r)[0], pki.RuleTokenRevoked)
	if c := w.certificate(t, r.Ref); c.Delivered {
		t.Error("a certificate was issued for a revoked token")
	}
}

// spentOnesStay revokes after a token has served: its request may be repeated.
func spentOnesStay(t *testing.T, w *world) {
	maker := w.issued(t)
	token := w.tokenBy(t, maker)
	w.issue(t, w.enrollmentBy(t, token))
	w.apply(t, revocation.Change{Action: revocation.Hold, Identity: maker.Identity, State: pki.Suspended})
	have := w.readToken(t, token.ID)
	if !have.Spent || have.RevokedBecause != "" || have.CreatorCertificate != maker.Ref {
		t.Errorf("the spent token is %+v", have)
	}
}

func listTokens(t *testing.T, w *world) {
	ctx := context.Background()
	maker, other := w.issued(t), w.issued(t)
	tokens := map[ra.TokenState]ra.Token{}
	tokens[ra.TokenRevoked] = w.tokenBy(t, maker)
	_, err := w.RA.RevokeTokens(ctx, ra.TokenRevocation{CreatedBy: maker.Identity, By: operator, At: w.now})
	must(t, err)
	tokens[ra.TokenSpent] = w.tokenBy(t, maker)
	w.issue(t, w.enrollmentBy(t, tokens[ra.TokenSpent]))
	tokens[ra.TokenExpired] = w.tokenBy(t, maker)
	w.now = w.now.Add(time.Hour)
	tokens[ra.TokenStale] = w.tokenBy(t, maker)
	w.issue(t, w.enrollment(t, w.stateOf(t, tokens[ra.TokenStale].Identity)))
	tokens[ra.TokenOpen] = w.tokenBy(t, other)
	list := func(f ra.TokenFilter, size int) []ra.ListedToken {
		t.Helper()
		var all []ra.ListedToken
		for after := (ra.TokenPlace{}); ; {
			page, next, err := w.RA.Tokens(ctx, f, w.now, after, size)
			must(t, err)
			if len(page) > size {
				t.Fatalf("a page of %d, longer than %d", len(page), size)
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
			t.Errorf("the %s ones are %+v", state, found)
		}
		if found := list(ra.TokenFilter{Identity: token.Identity}, 10); len(found) != 1 || found[0].ID != token.ID {
			t.Errorf("those for %s are %+v", token.Identity, found)
		}
	}
	var want []pki.TokenID // the newest first, those of one time by descending ID
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
	mustEqual(t, "the number that the maker made", len(list(ra.TokenFilter{CreatedBy: maker.Identity}, 2)), 4)
	mustEqual(t, "the number that the maker made and are open", len(list(ra.TokenFilter{CreatedBy: maker.Identity, States: []ra.TokenState{ra.TokenOpen}}, 2)), 0)
	mustEqual(t, "the number that are open or stale", len(list(ra.TokenFilter{States: []ra.TokenState{ra.TokenOpen, ra.TokenStale}}, 1)), 2)
	first, last := tokens[ra.TokenSpent].CreatedAt, tokens[ra.TokenOpen].CreatedAt
	mustEqual(t, "the number made in a window", len(list(ra.TokenFilter{CreatedFrom: first, CreatedUntil: last}, 2)), 3)
	mustEqual(t, "the number made since", len(list(ra.TokenFilter{CreatedFrom: last.Add(1)}, 2)), 0)
	if _, _, err := w.RA.Tokens(ctx, ra.TokenFilter{}, w.now, ra.TokenPlace{}, 0); err == nil {
		t.Error("a page of nothing was listed")
	}
}
