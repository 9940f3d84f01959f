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
	"github.com/brevet-pki/brevet/revocation/rotation"
	"github.com/brevet-pki/brevet/store/retention"
)

func testRequests(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"a repeat changes nothing": repeatsChangeNothing, "a lost token is replaced": lostTokenIsReplaced,
		"a used token is not replaced": usedTokenIsNotReplaced, "a refused request is not recorded": refusedIsNotRecorded,
		"old requests expire": requestsExpire,
	})
	t.Run("two handles", func(t *testing.T) {
		s := open(t)
		need(t, s.Second != nil, "second handle")
		first := newWorld(t, s)
		second := &world{Store: s.Second(t), now: first.now, uniqueCount: 1 << 32}
		by := callerOf(first.enrollOperator(t, pki.RoleAdmin)).WithRequest(first.newRequest(t, "create"))
		token := first.newToken(t, first.register(t).ID, by)
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

// newRequest returns a request with a new ID and the hash of a content.
func (w *world) newRequest(t rapid.TB, content string) pki.Request {
	t.Helper()
	return pki.Request{ID: w.requestID(t), Content: sha256.Sum256([]byte(content))}
}

// newToken returns a token for an identity, valid for an hour, that a caller is about to create.
func (w *world) newToken(t rapid.TB, id pki.SPIFFEID, by pki.Actor) ra.Token {
	t.Helper()
	b := w.unique()
	tokenID, err := pki.TokenIDFromBytes(b[:])
	must(t, err)
	return ra.Token{
		ID: tokenID, Identity: id, IdentityRevision: w.readIdentity(t, id).Revision, Profile: "device", ExpiresAt: w.now.Add(time.Hour), CreatedBy: by, CreatedAt: w.now,
	}
}

// repeatable is a change and its reversal. change returns its outcome as numbers, which a repeat must return again.
type repeatable struct {
	change func(by pki.Actor) ([]int64, error)
	undo   func()
}

var repeatables = map[string]func(t *testing.T, w *world) repeatable{
	"create an identity": func(t *testing.T, w *world) repeatable {
		wanted := w.newIdentity(t)
		return repeatable{func(by pki.Actor) ([]int64, error) {
			_, err := w.RA.CreateIdentity(t.Context(), ra.Registration{Identity: wanted}, by)
			return nil, err
		}, func() {
			changed := wanted
			changed.Profile = "server"
			_, err := w.RA.UpdateIdentity(t.Context(), changed, operator, w.now)
			must(t, err)
		}}
	},
	"update an identity": func(t *testing.T, w *world) repeatable {
		before := w.register(t)
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
		token := w.createToken(t, w.register(t).ID)
		return repeatable{func(by pki.Actor) ([]int64, error) {
			n, err := w.RA.RevokeTokens(t.Context(), ra.TokenRevocation{ID: token.ID.String(), By: by, At: w.now})
			return []int64{int64(n)}, err
		}, func() {}}
	},
	"suspend an identity": func(t *testing.T, w *world) repeatable {
		r := w.enrollNew(t)
		return repeatable{changes(t, w, revocation.Change{Action: hold, Identity: r.Identity, State: pki.Suspended}), func() {
			w.apply(t, revocation.Change{Action: revocation.Unhold, Identity: r.Identity})
		}}
	},
	"hold a certificate": func(t *testing.T, w *world) repeatable {
		r := w.enrollNew(t)
		return repeatable{changes(t, w, revocation.Change{Action: hold, Certificate: r.Ref}), func() {
			w.apply(t, revocation.Change{Action: revocation.Unhold, Certificate: r.Ref})
		}}
	},
	"unhold a certificate": func(t *testing.T, w *world) repeatable {
		r := w.enrollNew(t)
		w.apply(t, revocation.Change{Action: hold, Certificate: r.Ref})
		return repeatable{changes(t, w, revocation.Change{Action: revocation.Unhold, Certificate: r.Ref}), func() {
			w.apply(t, revocation.Change{Action: hold, Certificate: r.Ref})
		}}
	},
	"revoke a certificate": func(t *testing.T, w *world) repeatable {
		return repeatable{changes(t, w, revocation.Change{Action: revoke, Reason: pki.KeyCompromise, Certificate: w.enrollNew(t).Ref}), func() {}}
	},
	"start a rotation": func(t *testing.T, w *world) repeatable {
		req := rotation.Request{Selection: pki.Selection{Identity: w.enrollNew(t).Identity}, Over: time.Hour, Confirm: 1, At: w.now}
		var started rotation.Rotation
		return repeatable{func(by pki.Actor) (_ []int64, err error) {
			req.Actor = by
			started, err = w.Rotations.StartRotation(t.Context(), req)
			return []int64{started.ID}, err
		}, func() { w.endRotation(t, started.ID, rotation.Progress{}) }}
	},
	"stop a rotation": func(t *testing.T, w *world) repeatable {
		r := w.startRotation(t, pki.Selection{Identity: w.enrollNew(t).Identity})
		return repeatable{func(by pki.Actor) ([]int64, error) {
			ended, err := w.Rotations.EndRotation(t.Context(), rotation.End{ID: r.ID, Stopped: true, Actor: by, At: w.now})
			return []int64{ended.ID, int64(ended.State())}, err
		}, func() {}}
	},
	"revoke by label": func(t *testing.T, w *world) repeatable {
		need(t, w.Revocation != nil, "bulk revocations")
		w.issueLabelled(t, 3)
		req := w.bulkByLabel("7", pki.Superseded)
		return repeatable{bulks(t, w, req), func() {
			w.applyAllBulks(t)
			w.issueLabelled(t, 2)
		}}
	},
	"revoke by identity": func(t *testing.T, w *world) repeatable {
		need(t, w.Revocation != nil, "bulk revocations")
		req := w.bulkByLabel("", pki.Superseded)
		req.Selection = pki.Selection{Identity: w.enrollNew(t).Identity}
		return repeatable{bulks(t, w, req), func() { w.issue(t, w.record(t, req.Identity)) }}
	},
}

// changes returns a function that makes a change and returns the number of affected certificates.
func changes(t *testing.T, w *world, change revocation.Change) func(by pki.Actor) ([]int64, error) {
	return func(by pki.Actor) ([]int64, error) {
		change.Actor, change.At = by, w.now
		result, err := w.Statuses.Apply(t.Context(), change)
		for _, c := range result.All() {
			mustEqual(t, "the status", c.Status, w.readCertificate(t, c.Ref).Status)
		}
		for _, c := range result.Changed {
			result.Affected.Add(c.NotAfter, change.At)
		}
		return []int64{int64(result.Affected.Valid), int64(result.Affected.Expired), int64(len(result.All()))}, err
	}
}

// applyAllBulks applies all open bulk revocations to the records.
func (w *world) applyAllBulks(t *testing.T) {
	t.Helper()
	open, err := w.Revocation.OpenBulk(t.Context())
	must(t, err)
	for _, bulk := range open {
		w.applyBulk(t, bulk.ID)
	}
}

// bulks returns a function that creates a bulk revocation and returns its ID.
func bulks(t *testing.T, w *world, req revocation.BulkRequest) func(by pki.Actor) ([]int64, error) {
	return func(by pki.Actor) ([]int64, error) {
		req.Actor = by
		bulk, _, err := w.Revocation.CreateBulk(t.Context(), req)
		return []int64{bulk.ID}, err
	}
}

func repeatsChangeNothing(t *testing.T, w *world) {
	for name, prepare := range repeatables {
		t.Run(name, func(t *testing.T) {
			caller, other := callerOf(w.enrollOperator(t, pki.RoleAdmin)), callerOf(w.enrollOperator(t, pki.RoleAdmin))
			r := prepare(t, w)
			request := w.newRequest(t, name)
			first, err := r.change(caller.WithRequest(request))
			must(t, err)
			if e := w.lastEntry(t); e.RequestID != request.ID {
				t.Errorf("the log entry has the request ID %s, want %s", e.RequestID, request.ID)
			}
			r.undo()
			logged := len(w.entries(t))
			for range 2 {
				again, err := r.change(caller.WithRequest(request))
				must(t, err)
				mustEqual(t, "the result of a repeat", again, first)
			}
			_, err = r.change(caller.WithRequest(pki.Request{ID: request.ID, Content: sha256.Sum256([]byte("other"))}))
			mustRefuse(t, err, pki.RuleRequestIDReused)
			if n := len(w.entries(t)); n != logged {
				t.Errorf("repeats wrote %d log entries", n-logged)
			}
			if _, err := r.change(other.WithRequest(request)); err != nil { // request IDs of different callers are independent
				if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule == pki.RuleRequestIDReused {
					t.Errorf("the request ID of another caller is refused: %v", err)
				}
			}
			if w.Revocation != nil {
				w.applyAllBulks(t) // labels cannot change while a bulk revocation is open
			}
		})
	}
	w.reopen(t)
}

// lostTokenIsReplaced repeats the creation of a token twice, once after reopening the store.
func lostTokenIsReplaced(t *testing.T, w *world) {
	by := callerOf(w.enrollOperator(t, pki.RoleAdmin)).WithRequest(w.newRequest(t, "create"))
	first := w.newToken(t, w.register(t).ID, by)
	last := first
	w.storeToken(t, first)
	for range 2 {
		w.reopen(t)
		w.now = w.now.Add(time.Minute)
		next := w.newToken(t, first.Identity, by)
		made, err := w.RA.CreateToken(t.Context(), next)
		must(t, err)
		if !made.ExpiresAt.Equal(first.ExpiresAt) || made.ID != next.ID {
			t.Errorf("the token is %+v", made)
		}
		_, err = w.RA.BindToken(t.Context(), last.ID, ra.Binding{Request: w.requestID(t), Key: w.key(), At: w.now})
		mustRefuse(t, err, pki.RuleTokenRevoked)
		last = next
	}
	if have := w.readToken(t, last.ID); have.RevokedBecause != "" || !have.ExpiresAt.Equal(first.ExpiresAt) {
		t.Errorf("the last token is %+v", have)
	}
	other := w.newToken(t, first.Identity, callerOf(w.enrollOperator(t, pki.RoleAdmin)).WithRequest(by.Request()))
	w.storeToken(t, other) // another caller uses the same request ID
	if have := w.readToken(t, last.ID); have.RevokedBecause != "" {
		t.Errorf("another caller's request revoked %+v", have)
	}
}

// usedTokenIsNotReplaced repeats the creation of tokens that were used, revoked or stale. The repeats must be
// refused.
func usedTokenIsNotReplaced(t *testing.T, w *world) {
	for name, use := range map[string]func(token ra.Token){
		"bound": func(token ra.Token) {
			_, err := w.RA.BindToken(t.Context(), token.ID, ra.Binding{Request: w.requestID(t), Key: w.key(), At: w.now})
			must(t, err)
		},
		"spent": func(token ra.Token) { w.issue(t, w.enrollmentWithToken(t, token)) },
		"revoked": func(token ra.Token) {
			_, err := w.RA.RevokeTokens(t.Context(), ra.TokenRevocation{ID: token.ID.String(), By: operator, At: w.now})
			must(t, err)
		},
		"stale": func(token ra.Token) { w.issue(t, w.enrollment(t, w.readIdentity(t, token.Identity))) },
	} {
		t.Run(name, func(t *testing.T) {
			by := callerOf(w.enrollOperator(t, pki.RoleAdmin)).WithRequest(w.newRequest(t, "create"))
			token := w.newToken(t, w.register(t).ID, by)
			w.storeToken(t, token)
			use(token)
			logged := len(w.entries(t))
			next := w.newToken(t, token.Identity, by)
			_, err := w.RA.CreateToken(t.Context(), next)
			mustRefuse(t, err, pki.RuleRequestIDReused)
			_, err = w.RA.Token(t.Context(), next.ID)
			mustNotFind(t, err)
			if n := len(w.entries(t)); n != logged {
				t.Errorf("the refused repeat wrote %d log entries", n-logged)
			}
		})
	}
}

func refusedIsNotRecorded(t *testing.T, w *world) {
	caller := callerOf(w.enrollOperator(t, pki.RoleAdmin))
	request := w.newRequest(t, "refused")
	_, err := w.RA.UpdateIdentity(t.Context(), w.newIdentity(t), caller.WithRequest(request), w.now)
	mustNotFind(t, err)
	request.Content = sha256.Sum256([]byte("another"))
	_, err = w.RA.CreateIdentity(t.Context(), ra.Registration{Identity: w.newIdentity(t)}, caller.WithRequest(request))
	must(t, err)
}

func requestsExpire(t *testing.T, w *world) {
	need(t, w.Retention != nil, "retention")
	ctx := context.Background()
	caller := callerOf(w.enrollOperator(t, pki.RoleAdmin))
	early, late := w.newRequest(t, "early"), w.newRequest(t, "late")
	create := func(r pki.Request) error {
		id := w.newIdentity(t)
		_, err := w.RA.CreateIdentity(ctx, ra.Registration{Identity: id}, caller.WithRequest(r))
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
