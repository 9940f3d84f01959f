package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/translog"
)

func testPolicies(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"apply and read": applyPolicies, "pages": pagePolicies, "concurrent changes": concurrentPolicies,
		"refusals": refusedPolicies, "sealing key": sealingKeyStays,
	})
}

// policy returns a change that is based on a revision.
func (w *world) policy(document string, based uint64) ra.PolicyChange {
	return ra.PolicyChange{Document: []byte(document), Based: based, Comment: "for " + document, By: operator, At: w.now}
}

func applyPolicies(t *testing.T, w *world) {
	ctx := context.Background()
	_, err := w.Policies.Policy(ctx, 0)
	mustNotFind(t, err)
	first, err := w.Policies.ApplyPolicy(ctx, w.policy("one", 0))
	must(t, err)
	want := ra.PolicyRevision{
		Revision: 1, Document: []byte("one"), SHA256: sha256.Sum256([]byte("one")),
		AppliedBy: operator, AppliedAt: w.now, Comment: "for one",
	}
	mustEqual(t, "the first revision", first, want)
	e := w.lastEntry(t)
	facts := map[string]string{"sha256": fmt.Sprintf("%x", want.SHA256), "revision": "1", "comment": "for one"}
	if e.Action != translog.PolicyApplied || e.Actor != operator || !e.Time.Equal(w.now) || !maps.Equal(e.Facts(), facts) {
		t.Errorf("log entry %+v", e)
	}
	w.now = w.now.Add(time.Minute)
	second, err := w.Policies.ApplyPolicy(ctx, w.policy("two", 1))
	must(t, err)
	logged := len(w.entries(t))
	for _, based := range []uint64{0, 1, 2, 3} { // such as a repeat after a lost response
		w.now = w.now.Add(time.Minute)
		again, err := w.Policies.ApplyPolicy(ctx, w.policy("two", based))
		must(t, err)
		mustEqual(t, "the second revision, applied again", again, second)
	}
	mustEqual(t, "the number of log entries", len(w.entries(t)), logged)
	third, err := w.Policies.ApplyPolicy(ctx, w.policy("one", 2)) // back to the first document
	must(t, err)
	w.reopen(t)
	for revision, want := range map[uint64]ra.PolicyRevision{0: third, 1: first, 2: second, 3: third} {
		have, err := w.Policies.Policy(ctx, revision)
		must(t, err)
		mustEqual(t, "the policy", have, want)
	}
	_, err = w.Policies.Policy(ctx, 4)
	mustNotFind(t, err)
}

func pagePolicies(t *testing.T, w *world) {
	ctx := context.Background()
	none, next, err := w.Policies.Policies(ctx, 0, 10)
	must(t, err)
	if len(none) != 0 || next != 0 {
		t.Errorf("an empty store lists %v, and continues after %d", none, next)
	}
	var want []uint64
	for n := range uint64(5) {
		_, err := w.Policies.ApplyPolicy(ctx, w.policy(fmt.Sprint(n), n))
		must(t, err)
		want = append(want, n+1)
	}
	slices.Reverse(want)
	for _, limit := range []int{1, 2, 5, 100} {
		var got []uint64
		for after := uint64(0); ; {
			page, next, err := w.Policies.Policies(ctx, after, limit)
			must(t, err)
			for _, p := range page {
				if got = append(got, p.Revision); p.Document != nil || p.AppliedBy != operator {
					t.Errorf("the list has %+v, want no document", p)
				}
			}
			if after = next; next == 0 {
				break
			}
		}
		mustEqual(t, "the list", got, want)
	}
	_, _, err = w.Policies.Policies(ctx, 0, 0)
	mustRefuse(t, err, pki.RuleRequest)
}

// concurrentPolicies applies different changes of the same revision at once. Exactly one is applied.
func concurrentPolicies(t *testing.T, w *world) {
	const authors = 8
	var errs [authors]error
	var run []func()
	for i := range authors {
		run = append(run, func() {
			_, errs[i] = w.Policies.ApplyPolicy(context.Background(), w.policy(fmt.Sprint(i), 0))
		})
	}
	together(run...)
	applied := 0
	for _, err := range errs {
		if err == nil {
			applied++
			continue
		}
		mustRefuse(t, err, pki.RulePolicyRevision)
	}
	if applied != 1 {
		t.Errorf("%d changes of one revision were applied, want one", applied)
	}
}

func refusedPolicies(t *testing.T, w *world) {
	ctx := context.Background()
	large := w.policy("", 0)
	large.Document = bytes.Repeat([]byte{'#'}, ra.MaxPolicy)
	_, err := w.Policies.ApplyPolicy(ctx, large)
	must(t, err)
	logged := len(w.entries(t))
	larger := large
	larger.Based, larger.Document = 1, append(larger.Document, '#')
	comment := w.policy("two", 1)
	comment.Comment = "a\nb"
	for name, c := range map[string]struct {
		change ra.PolicyChange
		want   pki.Rule
	}{
		"too large":              {larger, pki.RulePolicyInvalid},
		"empty":                  {w.policy("", 1), pki.RulePolicyInvalid},
		"a comment of two lines": {comment, pki.RuleRequest},
		"of an older revision":   {w.policy("two", 0), pki.RulePolicyRevision},
		"of a later revision":    {w.policy("two", 2), pki.RulePolicyRevision},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.Policies.ApplyPolicy(ctx, c.change)
			mustRefuse(t, err, c.want)
		})
	}
	by := w.policy("two", 1)
	by.By = pki.ActorCaller(w.register(t).ID, pki.CertRef{Issuer: issuerA, Serial: w.serial(t)})
	_, err = w.Policies.ApplyPolicy(ctx, by)
	mustRefuse(t, err, pki.RuleCertificateUnknown)
	have, err := w.Policies.Policy(ctx, 0)
	must(t, err)
	mustEqual(t, "the newest revision", have.Revision, 1)
	mustEqual(t, "the number of log entries", len(w.entries(t)), logged+1) // that of the identity
}

// sealingKeyStays checks that a store has one sealing key, which other stores do not have, and which is not in the log.
func sealingKeyStays(t *testing.T, w *world) {
	ctx := context.Background()
	key, err := w.Keys.SealingKey(ctx)
	must(t, err)
	if key == [32]byte{} {
		t.Fatal("the sealing key is zero")
	}
	w.register(t)
	w.sequence(t)
	entries, err := w.Log.Entries(ctx, 1, 100)
	must(t, err)
	for _, e := range entries {
		if bytes.Contains(e.Entry, key[:]) {
			t.Errorf("log entry %d contains the sealing key", e.Index)
		}
	}
	w.reopen(t)
	again, err := w.Keys.SealingKey(ctx)
	must(t, err)
	if again != key {
		t.Error("the sealing key changed when the store was opened again")
	}
}
