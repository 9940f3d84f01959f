package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/translog"
)

// registrationBy returns a registration of a new identity by a rule of the policy.
func (w *world) registrationBy(t *testing.T, rule string, total int) ra.Registration {
	t.Helper()
	n := ra.Registration{Identity: w.newIdentity(t), Total: total}
	n.Rule = rule
	return n
}

// mustRegister registers an identity and returns its record.
func (w *world) mustRegister(t *testing.T, n ra.Registration) ra.Identity {
	t.Helper()
	id, err := w.RA.CreateIdentity(context.Background(), n, operator)
	must(t, err)
	return id
}

// mustReachTotal checks that a registration is refused and leaves nothing.
func (w *world) mustReachTotal(t *testing.T, n ra.Registration) {
	t.Helper()
	logged := len(w.entries(t))
	_, err := w.RA.CreateIdentity(context.Background(), n, operator)
	mustRefuse(t, err, pki.RulePolicyLimit)
	_, err = w.RA.Identity(context.Background(), n.ID)
	mustNotFind(t, err)
	mustEqual(t, "the number of log entries", len(w.entries(t)), logged)
}

func testTotals(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"the rule is on record":      ruleIsOnRecord,
		"a rule reaches its total":   ruleReachesTotal,
		"all its identities count":   allItsIdentitiesCount,
		"many devices register":      manyDevicesRegister,
		"a total survives a restart": totalSurvivesRestart,
	})
}

func ruleIsOnRecord(t *testing.T, w *world) {
	ctx := context.Background()
	n := w.registrationBy(t, "cameras", 0)
	made := w.mustRegister(t, n)
	mustEqual(t, "the rule of the new identity", made.Rule, "cameras")
	if e := w.lastEntry(t); e.Action != translog.IdentityRegistered || e.Facts()["policy_rule"] != "cameras" {
		t.Errorf("log entry %+v, want the rule", e)
	}
	for _, rule := range []string{"", "pumps"} {
		again := n
		again.Rule = rule
		mustEqual(t, "the identity, registered again", w.mustRegister(t, again), made)
	}
	rebound := made
	rebound.Subject, rebound.Labels, rebound.Rule = w.subject(), map[string]string{"site": "north"}, "pumps"
	updated, err := w.RA.UpdateIdentity(ctx, rebound, operator, w.now)
	must(t, err)
	mustEqual(t, "the rule after an update", updated.Rule, "cameras")
	if e := w.lastEntry(t); e.Action != translog.IdentityUpdated || e.Facts()["policy_rule"] != "cameras" {
		t.Errorf("log entry %+v, want the rule", e)
	}
	w.issue(t, w.enrollmentAs(t, updated, updated.Subject))
	w.changeIdentity(t, made.ID, retire, pki.Retired)
	w.reopen(t)
	have := w.readIdentity(t, made.ID)
	mustEqual(t, "the rule of the retired identity", have.Rule, "cameras")
	mustEqual(t, "the rule of an identity of an operator", w.register(t).Rule, "")
	for _, id := range w.identities(t, ra.IdentityFilter{}, 10) {
		mustEqual(t, "the listed identity", id, w.readIdentity(t, id.ID))
	}
	st, err := w.RA.IssuanceState(ctx, ra.IssuanceQuery{Identity: made.ID, Request: w.requestID(t), Key: w.key(), At: w.now})
	must(t, err)
	mustEqual(t, "the identity in the state of an issuance", st.Identity, have)
}

func ruleReachesTotal(t *testing.T, w *world) {
	first := w.registrationBy(t, "cameras", 2)
	made := w.mustRegister(t, first)
	w.mustRegister(t, w.registrationBy(t, "cameras", 2))
	third := w.registrationBy(t, "cameras", 2)
	w.mustReachTotal(t, third)
	w.mustReachTotal(t, third) // a refused registration does not count
	mustEqual(t, "the first identity, registered again", w.mustRegister(t, first), made)

	w.mustRegister(t, w.registrationBy(t, "pumps", 1))
	w.mustReachTotal(t, w.registrationBy(t, "pumps", 1))
	w.mustRegister(t, w.registrationBy(t, "Cameras", 1)) // another name
	w.register(t)

	third.Total = 3 // an operator raises the total
	w.mustRegister(t, third)
	w.mustReachTotal(t, w.registrationBy(t, "cameras", 3))
	w.mustReachTotal(t, w.registrationBy(t, "cameras", 1)) // and lowers it
	w.mustRegister(t, w.registrationBy(t, "cameras", 0))
	w.mustReachTotal(t, w.registrationBy(t, "cameras", 4))
	w.mustRegister(t, w.registrationBy(t, "cameras", 5))
}

func allItsIdentitiesCount(t *testing.T, w *world) {
	retired := w.mustRegister(t, w.registrationBy(t, "cameras", 0))
	w.changeIdentity(t, retired.ID, retire, pki.Retired)
	enrolled := w.mustRegister(t, w.registrationBy(t, "cameras", 0))
	w.issue(t, w.enrollmentAs(t, enrolled, w.subject()))
	w.mustReachTotal(t, w.registrationBy(t, "cameras", 2))

	tied := w.registrationBy(t, "cameras", 3)
	tied.Subject = w.readIdentity(t, enrolled.ID).Subject
	_, err := w.RA.CreateIdentity(context.Background(), tied, operator)
	mustRefuse(t, err, pki.RuleEvidenceConflict)
	other := ra.Registration{Identity: enrolled, Total: 3}
	other.Profile = "server"
	_, err = w.RA.CreateIdentity(context.Background(), other, operator)
	mustRefuse(t, err, pki.RuleIdentityExists)
	w.mustRegister(t, w.registrationBy(t, "cameras", 3)) // neither refusal counted
	w.mustReachTotal(t, w.registrationBy(t, "cameras", 3))
}

func manyDevicesRegister(t *testing.T, w *world) {
	mustHaveRegistered(t, registerAtOnceBy(t, "cameras", 5, w), 5)
	w.mustReachTotal(t, w.registrationBy(t, "cameras", 5))
	mustHaveRegistered(t, registerAtOnceBy(t, "cameras", 7, w), 2)
}

// registerAtOnceBy lets a rule register many identities at once, in the same millisecond, in turn through each of the
// worlds. It returns the results.
func registerAtOnceBy(t *testing.T, rule string, total int, worlds ...*world) []error {
	t.Helper()
	const devices = 24
	errs := make([]error, devices)
	var run []func()
	for i := range errs {
		w := worlds[i%len(worlds)]
		n := w.registrationBy(t, rule, total)
		run = append(run, func() { _, errs[i] = w.RA.CreateIdentity(context.Background(), n, operator) })
	}
	together(run...)
	return errs
}

// mustHaveRegistered checks how many registrations succeeded. The others must have reached the total.
func mustHaveRegistered(t *testing.T, errs []error, want int) {
	t.Helper()
	registered := 0
	for _, err := range errs {
		if err == nil {
			registered++
			continue
		}
		mustRefuse(t, err, pki.RulePolicyLimit)
	}
	mustEqual(t, "the number of registered identities", registered, want)
}

func totalSurvivesRestart(t *testing.T, w *world) {
	w.mustRegister(t, w.registrationBy(t, "cameras", 1))
	w.reopen(t)
	w.now = w.now.Add(time.Hour)
	w.mustReachTotal(t, w.registrationBy(t, "cameras", 1))
	w.mustRegister(t, w.registrationBy(t, "cameras", 2))
}

// handlesShareTotals registers identities by one rule through two handles at once.
func handlesShareTotals(t *testing.T, first, second *world) {
	mustHaveRegistered(t, registerAtOnceBy(t, "cameras", 5, first, second), 5)
	first.mustReachTotal(t, first.registrationBy(t, "cameras", 5))
}
