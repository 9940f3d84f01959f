package storetest

import (
	"context"
	"crypto/sha256"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/retention"
)

func testRequests(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"a repeat changes nothing": repeatsChangeNothing, "a lost token is replaced": lostTokenIsReplaced,
		"a used token is not replaced": usedTokenIsNotReplaced, "a refused call is not recorded": refusedIsNotRecorded,
		"requests leave with the retention": requestsExpire,
	})
	t.Run("two handles", func(t *testing.T) {
		s := open(t)
		need(t, s.Second != nil, "second handle")
		first := newWorld(t, s)
		second := &world{Store: s.Second(t), now: first.now, drawn: 1 << 32}
		by := callerOf(first.issued(t)).WithRequest(first.newRequest(t, "create"))
		token := first.newToken(t, first.identity(t).ID, by)
		_, err := first.RA.CreateToken(t.Context(), token)
		must(t, err)
		next := second.newToken(t, token.Identity, by)
		_, err = second.RA.CreateToken(t.Context(), next)
		must(t, err)
		if first.readToken(t, token.ID).RevokedBecause == "" || first.readToken(t, next.ID).RevokedBecause != "" {
			t.Error("the two handles did not create exactly one usable token")
		}
	})
}

// newRequest generates a request ID, for some content.
func (w *world) newRequest(t rapid.TB, content string) pki.Request {
	t.Helper()
	return pki.Request{ID: w.request(t), Content: sha256.Sum256([]byte(content))}
}

func (w *world) newToken(t rapid.TB, id pki.SPIFFEID, by pki.Actor) ra.Token {
	t.Helper()
	b := w.draw()
	tokenID, err := pki.TokenIDFromBytes(b[:])
	must(t, err)
	return ra.Token{
		ID: tokenID, Identity: id, IdentityRevision: w.stateOf(t, id).Revision, Profile: "device", ExpiresAt: w.now.Add(time.Hour), CreatedBy: by, CreatedAt: w.now,
	}
}

// repeatable returns a call that makes a change, and a function that reverts it. The call returns its outcome as numbers.
type repeatable struct {
	call func(by pki.Actor) ([]int64, error)
	undo func()
}

var repeatables = map[string]func(t *testing.T, w *world) repeatable{
	"create an identity": func(t *testing.T, w *world) repeatable {
		wish := w.newIdentity(t)
		return repeatable{func(by pki.Actor) ([]int64, error) {
			_, err := w.RA.CreateIdentity(t.Context(), wish, by)
			return nil, err
		}, func() {
			changed := wish
			changed.Profile = "server"
			_, err := w.RA.UpdateIdentity(t.Context(), changed, operator, w.now)
			must(t, err)
		}}
	},
	"update an identity": func(t *testing.T, w *world) repeatable {
		before := w.identity(t)
		after := before
		after.Labels = map[string]string{"site": "north"}
		return repeatable{func(by pki.Actor) ([]int64, error) {
			_, err := w.RA.UpdateIdentity(t.Context(), after, by, w.now)
			return nil, err
		}, func() {
			before.Revision = 0
			_, err := w.RA.UpdateIdentity(t.Context(), before, operator, w.now)
			must(t, err)
		}}
	},
	"revoke a token": func(t *testing.T, w *world) repeatable {
		token := w.token(t, w.identity(t).ID)
		return repeatable{func(by pki.Actor) ([]int64, error) {
			n, err := w.RA.RevokeTokens(t.Context(), ra.TokenRevocation{ID: token.ID.String(), By: by, At: w.now})
			return []int64{int64(n)}, err
		}, func() {}}
	},
	"suspend an identity": func(t *testing.T, w *world) repeatable {
		r := w.issued(t)
		return repeatable{changes(t, w, revocation.Change{Action: hold, Identity: r.Identity, State: pki.Suspended}), func() {
			w.apply(t, revocation.Change{Action: revocation.Unhold, Identity: r.Identity})
		}}
	},
	"hold a certificate": func(t *testing.T, w *world) repeatable {
		r := w.issued(t)
		return repeatable{changes(t, w, revocation.Change{Action: hold, Certificate: r.Ref}), func() {
			w.apply(t, revocation.Change{Action: revocation.Unhold, Certificate: r.Ref})
		}}
	},
	"unhold a certificate": func(t *testing.T, w *world) repeatable {
		r := w.issued(t)
		w.apply(t, revocation.Change{Action: hold, Certificate: r.Ref})
		return repeatable{changes(t, w, revocation.Change{Action: revocation.Unhold, Certificate: r.Ref}), func() {
			w.apply(t, revocation.Change{Action: hold, Certificate: r.Ref})
		}}
	},
	"revoke a certificate": func(t *testing.T, w *world) repeatable {
		return repeatable{changes(t, w, revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Certificate: w.issued(t).Ref}), func() {}}
	},
	"revoke a label": func(t *testing.T, w *world) repeatable {
		need(t, w.Revocation != nil, "bulk revocations")
		w.labelled(t, 3)
		o := w.batch("7", pki.Superseded)
		return repeatable{bulks(t, w, o), func() {
			w.followAll(t)
			w.labelled(t, 2)
		}}
	},
	"revoke an identity's": func(t *testing.T, w *world) repeatable {
		need(t, w.Revocation != nil, "bulk revocations")
		o := w.batch("", pki.Superseded)
		o.Selection = pki.Selection{Identity: w.issued(t).Identity}
		return repeatable{bulks(t, w, o), func() { w.issue(t, w.record(t, o.Identity)) }}
	},
}

// changes returns a call that changes a status and returns the number of affected certificates.
func changes(t *testing.T, w *world, o revocation.Change) func(by pki.Actor) ([]int64, error) {
	return func(by pki.Actor) ([]int64, error) {
		o.Actor, o.At = by, w.now
		out, err := w.Orders.Apply(t.Context(), o)
		for _, c := range out.All() {
			mustEqual(t, "the status", c.Status, w.certificate(t, c.Ref).Status)
		}
		for _, c := range out.Changed {
			out.Affected.Add(c.NotAfter, o.At)
		}
		return []int64{int64(out.Affected.Valid), int64(out.Affected.Expired), int64(len(out.All()))}, err
	}
}

// followAll applies all open bulk revocations to the records.
func (w *world) followAll(t *testing.T) {
	t.Helper()
	open, err := w.Revocation.OpenBulk(t.Context())
	must(t, err)
	for _, bulk := range open {
		w.follow(t, bulk.ID)
	}
}

// bulks returns a call that creates a bulk revocation, and returns its ID.
func bulks(t *testing.T, w *world, o revocation.BulkRequest) func(by pki.Actor) ([]int64, error) {
	return func(by pki.Actor) ([]int64, error) {
		o.Actor = by
		bulk, _, err := w.Revocation.CreateBulk(t.Context(), o)
		return []int64{bulk.ID}, err
	}
}

func repeatsChangeNothing(t *testing.T, w *world) {
	for name, prepare := range repeatables {
		t.Run(name, func(t *testing.T) {
			caller, other := callerOf(w.issued(t)), callerOf(w.issued(t))
			r := prepare(t, w)
			request := w.newRequest(t, name)
			first, err := r.call(caller.WithRequest(request))
			must(t, err)
			if e := w.lastEntry(t); e.RequestID != request.ID {
				t.Errorf("the log entry has the request ID %s, want %s", e.RequestID, request.ID)
			}
			r.undo()
			logged := len(w.entries(t))
			for range 2 {
				again, err := r.call(caller.WithRequest(request))
				must(t, err)
				mustEqual(t, "what a repeat returns", again, first)
			}
			_, err = r.call(caller.WithRequest(pki.Request{ID: request.ID, Content: sha256.Sum256([]byte("other"))}))
			mustRefuse(t, err, pki.RuleRequestIDReused)
			if n := len(w.entries(t)); n != logged {
				t.Errorf("repeats wrote %d log entries", n-logged)
			}
			if _, err := r.call(other.WithRequest(request)); err != nil { // request IDs of different callers are independent
				if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule == pki.RuleRequestIDReused {
					t.Errorf("the request ID of another caller: %v", err)
				}
			}
			if w.Revocation != nil {
				w.followAll(t) // labels cannot change while it is open
			}
		})
	}
	w.reopen(t)
}

// lostTokenIsReplaced repeats the creation of a token twice, once after reopening the store.
func lostTokenIsReplaced(t *testing.T, w *world) {
	by := callerOf(w.issued(t)).WithRequest(w.newRequest(t, "create"))
	first := w.newToken(t, w.identity(t).ID, by)
	last := first
	w.create(t, first)
	for range 2 {
		w.reopen(t)
		w.now = w.now.Add(time.Minute)
		next := w.newToken(t, first.Identity, by)
		made, err := w.RA.CreateToken(t.Context(), next)
		must(t, err)
		if !made.ExpiresAt.Equal(first.ExpiresAt) || made.ID != next.ID {
			t.Errorf("the token is %+v", made)
		}
		_, err = w.RA.BindToken(t.Context(), last.ID, w.request(t), w.key(), w.now)
		mustRefuse(t, err, pki.RuleTokenRevoked)
		last = next
	}
	if have := w.readToken(t, last.ID); have.RevokedBecause != "" || !have.ExpiresAt.Equal(first.ExpiresAt) {
		t.Errorf("the last token is %+v", have)
	}
	other := w.newToken(t, first.Identity, callerOf(w.issued(t)).WithRequest(by.Request()))
	w.create(t, other) // the same request ID of another caller
	if have := w.readToken(t, last.ID); have.RevokedBecause != "" {
		t.Errorf("another caller's request revoked %+v", have)
	}
}

// usedTokenIsNotReplaced repeats the creation of tokens that were used, revoked or expired. The repeats must be refused.
func usedTokenIsNotReplaced(t *testing.T, w *world) {
	for name, use := range map[string]func(token ra.Token){
		"presented": func(token ra.Token) {
			_, err := w.RA.BindToken(t.Context(), token.ID, w.request(t), w.key(), w.now)
			must(t, err)
		},
		"spent": func(token ra.Token) { w.issue(t, w.enrollmentBy(t, token)) },
		"revoked": func(token ra.Token) {
			_, err := w.RA.RevokeTokens(t.Context(), ra.TokenRevocation{ID: token.ID.String(), By: operator, At: w.now})
			must(t, err)
		},
		"stale": func(token ra.Token) { w.issue(t, w.enrollment(t, w.stateOf(t, token.Identity))) },
	} {
		t.Run(name, func(t *testing.T) {
			by := callerOf(w.issued(t)).WithRequest(w.newRequest(t, "create"))
			token := w.newToken(t, w.identity(t).ID, by)
			w.create(t, token)
			use(token)
			logged := len(w.entries(t))
			next := w.newToken(t, token.Identity, by)
			_, err := w.RA.CreateToken(t.Context(), next)
			mustRefuse(t, err, pki.RuleRequestIDReused)
			_, err = w.RA.Token(t.Context(), next.ID)
			mustMiss(t, err)
			if n := len(w.entries(t)); n != logged {
				t.Errorf("the refused repeat wrote %d log entries", n-logged)
			}
		})
	}
}

func refusedIsNotRecorded(t *testing.T, w *world) {
	caller := callerOf(w.issued(t))
	request := w.newRequest(t, "refused")
	_, err := w.RA.UpdateIdentity(t.Context(), w.newIdentity(t), caller.WithRequest(request), w.now)
	mustMiss(t, err)
	request.Content = sha256.Sum256([]byte("another"))
	_, err = w.RA.CreateIdentity(t.Context(), w.newIdentity(t), caller.WithRequest(request))
	must(t, err)
}

func requestsExpire(t *testing.T, w *world) {
	need(t, w.Retention != nil, "retention")
	ctx := context.Background()
	caller := callerOf(w.issued(t))
	early, late := w.newRequest(t, "early"), w.newRequest(t, "late")
	create := func(r pki.Request) error {
		id := w.newIdentity(t)
		_, err := w.RA.CreateIdentity(ctx, id, caller.WithRequest(r))
		return err
	}
	must(t, create(early))
	w.now = w.now.Add(30 * time.Minute)
	must(t, create(late))
	_, err := w.Retention.Expire(ctx, retention.Step{Before: w.now, At: w.now, Limit: 10})
	must(t, err)
	early.Content, late.Content = sha256.Sum256([]byte("another")), sha256.Sum256([]byte("another"))
	must(t, create(early))
	mustRefuse(t, create(late), pki.RuleRequestIDReused)
}
