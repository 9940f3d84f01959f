package storetest

import (
	"context"
	"testing"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
)

// testTwoHandles uses two handles on one store, like two processes, if the engine allows it.
func testTwoHandles(t *testing.T, open func(t *testing.T) Store) {
	for name, test := range map[string]func(t *testing.T, first, second *world){
		"a change is visible at once": changeIsVisible, "a newer epoch fences": newerEpochFences,
		"a nonce is used once": nonceIsUsedOnce, "the handles have one sealing key": handlesHaveOneKey,
		"a token is spent once": tokenIsSpentOnce, "a serial number is used once": serialIsUsedByOne,
		"totals are shared": handlesShareTotals, "an order is finalized once": orderIsFinalizedOnce,
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			need(t, s.Second != nil, "second handle")
			first := newWorld(t, s)
			second := &world{Store: s.Second(t), now: first.now, uniqueCount: 1 << 32}
			test(t, first, second)
		})
	}
}

func changeIsVisible(t *testing.T, first, second *world) {
	r := first.enrollNew(t)
	mustEqual(t, "the status", second.readCertificate(t, r.Ref).Status, pki.Status{State: pki.Good, Version: 1})
	next := first.enrollment(t, first.readIdentity(t, r.Identity))
	second.apply(t, revocation.Change{Action: revocation.Hold, Identity: r.Identity, State: pki.Suspended})
	if have := first.readIdentity(t, r.Identity); have.State != pki.Suspended {
		t.Errorf("the identity is %v", have.State)
	}
	mustRefuse(t, first.commit(t, next), pki.RuleIdentityState)
	mustEqual(t, "the log", len(first.entries(t)), len(second.sequenced(t)))
}

func newerEpochFences(t *testing.T, first, second *world) {
	ctx := context.Background()
	r := first.enrollment(t, first.register(t))
	intent := first.writeIntent(t, r)
	pending := second.begin(t)
	mustEqual(t, "the number of pending intents", len(pending), 1)
	commit := ca.BatchCommit{Intent: intent, Records: []ca.Record{r}, At: first.now}
	_, err := first.Journal.Write(ctx, first.epoch, []ca.BatchCommit{commit}, nil)
	mustBeFenced(t, err)
	must(t, second.commitBatch(t, intent, r)[0])
	if have := first.readCertificate(t, r.Ref); !have.Delivered {
		t.Errorf("the certificate is %+v", have)
	}
}

func tokenIsSpentOnce(t *testing.T, first, second *world) {
	id := first.register(t)
	token := first.createToken(t, id.ID)
	r := first.enrollment(t, id)
	r.Guard.Token = token.ID
	_, err := second.RA.BindToken(context.Background(), token.ID, ra.Binding{Request: r.RequestID, Key: r.KeyHash, At: second.now})
	must(t, err)
	first.issue(t, r)
	if have := second.readToken(t, token.ID); !have.Spent {
		t.Errorf("the token is %+v", have)
	}
	_, err = first.RA.BindToken(context.Background(), token.ID, ra.Binding{Request: first.requestID(t), Key: first.key(), At: first.now})
	must(t, err)
	second.begin(t)
	again := second.enrollment(t, second.readIdentity(t, id.ID))
	again.Guard.Token = token.ID
	mustRefuse(t, second.commit(t, again), pki.RuleToken)
}

func nonceIsUsedOnce(t *testing.T, first, second *world) {
	n, s := first.nonce(), first.subject()
	first.issue(t, first.enrollmentAs(t, first.register(t), s, n))
	second.begin(t)
	mustRefuse(t, second.commit(t, second.enrollmentAs(t, second.register(t), second.subject(), n)), pki.RuleChallengeUsed)
	mustRefuse(t, second.commit(t, second.enrollmentAs(t, second.register(t), s)), pki.RuleEvidenceConflict)
}

func handlesHaveOneKey(t *testing.T, first, second *world) {
	key, err := first.Keys.SealingKey(context.Background())
	must(t, err)
	other, err := second.Keys.SealingKey(context.Background())
	must(t, err)
	if key != other {
		t.Error("two handles on one store have different sealing keys")
	}
}

func serialIsUsedByOne(t *testing.T, first, second *world) {
	r := first.enrollNew(t)
	second.begin(t)
	again := second.enrollment(t, second.register(t))
	again.Ref = r.Ref
	mustRefuse(t, second.commit(t, again), pki.RuleOverloaded)
	if have := first.readCertificate(t, r.Ref); have.Status.State != pki.Good {
		t.Errorf("the first certificate is %+v", have)
	}
}
