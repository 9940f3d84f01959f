package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/translog"
)

func testTokens(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"create and read": createToken, "bind": bindToken, "refusals are logged": refusalsAreLogged,
	})
}

func createToken(t *testing.T, w *world) {
	ctx := context.Background()
	id := w.register(t).ID
	token := w.createToken(t, id)
	e := w.lastEntry(t)
	if e.Action != translog.TokenCreated || e.Identity != id || e.Actor != operator || !e.Time.Equal(token.CreatedAt) || e.Facts()["token"] != token.ID.String() {
		t.Errorf("log entry %+v", e)
	}
	again := token
	again.ExpiresAt = token.ExpiresAt.Add(time.Hour)
	if _, err := w.RA.CreateToken(ctx, again); err == nil {
		t.Error("a token was created twice")
	}
	w.reopen(t)
	have, err := w.RA.Token(ctx, token.ID)
	must(t, err)
	mustEqual(t, "the token", have, token)

	b := w.unique()
	unknown, err := pki.TokenIDFromBytes(b[:])
	must(t, err)
	_, err = w.RA.Token(ctx, unknown)
	mustNotFind(t, err)
	_, err = w.RA.BindToken(ctx, unknown, ra.Binding{Request: w.requestID(t), Key: w.key(), At: w.now})
	mustNotFind(t, err)
	token.ID, token.Identity, token.Replace = unknown, w.newIdentity(t).ID, true
	_, err = w.RA.CreateToken(ctx, token)
	mustNotFind(t, err)
	token.Identity = id
	w.storeToken(t, token)
	have, err = w.RA.Token(ctx, unknown)
	must(t, err)
	mustEqual(t, "a replacing token", have, token)
}

func bindToken(t *testing.T, w *world) {
	ctx := context.Background()
	token := w.createToken(t, w.register(t).ID)
	first := token
	first.Request, first.Key = w.requestID(t), w.key()
	bound, err := w.RA.BindToken(ctx, token.ID, ra.Binding{Request: first.Request, Key: first.Key, At: w.now.Add(time.Second)})
	must(t, err)
	mustEqual(t, "the bound token", bound, first)
	e := w.lastEntry(t)
	if e.Action != translog.TokenBound || e.Identity != token.Identity || e.Actor != pki.ActorToken(token.ID) || !e.Time.Equal(w.now.Add(time.Second)) {
		t.Errorf("log entry %+v", e)
	}
	logged := len(w.entries(t))
	w.reopen(t)
	for _, again := range []struct {
		request pki.RequestID
		key     pki.KeyHash
	}{{first.Request, first.Key}, {w.requestID(t), first.Key}, {first.Request, w.key()}, {w.requestID(t), w.key()}} {
		bound, err := w.RA.BindToken(ctx, token.ID, ra.Binding{Request: again.request, Key: again.key, At: w.now})
		must(t, err)
		mustEqual(t, "the result of a later binding", bound, first)
	}
	if n := len(w.entries(t)); n != logged {
		t.Errorf("later bindings wrote %d log entries", n-logged)
	}
}

func refusalsAreLogged(t *testing.T, w *world) {
	ctx := context.Background()
	id := w.register(t).ID
	why := pki.Refuse(pki.RuleRenewalKeyConflict, "find out", "renewed before")
	must(t, w.Audit.Refused(ctx, audit.Refusal{By: pki.ActorIdentity(id), Identity: id, Why: why, At: w.now}))
	mustEqual(t, "the log entry", w.lastEntry(t), translog.Entry{
		Time: w.now, Actor: pki.ActorIdentity(id), Action: translog.RequestRefused, Outcome: translog.Refused, Identity: id,
		Event: &translog.Refusal{Rule: pki.RuleRenewalKeyConflict, Detail: "renewed before"},
	})
	unknown := w.newIdentity(t).ID // not registered
	must(t, w.Audit.Refused(ctx, audit.Refusal{Identity: unknown, Why: why, At: w.now}))
	if e := w.lastEntry(t); e.Identity != unknown || e.Actor.String() != "unknown" {
		t.Errorf("log entry %+v", e)
	}
}
