package revisions_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/policy"
	"github.com/brevet-pki/brevet/ra/revisions"
	"github.com/brevet-pki/brevet/store/memory"
)

// profiles are the default profiles.
type profiles map[string]*ca.Profile

func (p profiles) Profile(name string) (*ca.Profile, error) {
	if found, ok := p[name]; ok {
		return found, nil
	}
	return nil, pki.Refuse(pki.RuleProfile, "use another", "there is no profile %q", name)
}

func compiler(t *testing.T) revisions.Compiler {
	t.Helper()
	configs, err := ca.DefaultProfiles()
	if err != nil {
		t.Fatal(err)
	}
	all := profiles{}
	for name, config := range configs {
		if all[name], err = ca.NewProfile(name, config, "http://pki.example"); err != nil {
			t.Fatal(err)
		}
	}
	log := slog.New(slog.DiscardHandler)
	return revisions.Compiler{
		TrustDomain: "fleet.example", Profiles: all, Files: revisions.NewFiles(t.TempDir(), log), Clock: time.Now, Log: log, Retention: 48 * time.Hour,
	}
}

func configOf(t *testing.T, store ra.PolicyStore) revisions.Config {
	t.Helper()
	c := compiler(t)
	return revisions.Config{Compiler: c, Store: store, First: policy.Default(), Clock: c.Clock, Log: c.Log}
}

const onlyLab = "rules:\n- name: lab\n  evidence: [token]\n  when: token.identity.startsWith(\"lab/\")\n"

// rulesOf returns the names of the rules in effect.
func rulesOf(t *testing.T, r *revisions.Revisions) string {
	t.Helper()
	p, ok := r.Current().Policy.(*policy.Policy)
	if !ok {
		t.Fatalf("the policy is a %T", r.Current().Policy)
	}
	return strings.Join(p.Rules(), " ")
}

// TestRevisionsChangeTogether applies documents, and opens the store again.
func TestRevisionsChangeTogether(t *testing.T) {
	store := new(memory.Store)
	c := configOf(t, store)
	r, err := revisions.New(t.Context(), c)
	if err != nil || rulesOf(t, r) != "tokens" || r.Newest().Revision != 1 {
		t.Fatalf("the first policy is %+v: %v", r.Newest(), err)
	}
	defer r.Close()
	apply := func(document string, based uint64) (ra.PolicyRevision, error) {
		return r.Apply(t.Context(), ra.PolicyChange{Document: []byte(document), Based: based, By: pki.ActorSystem("test"), At: time.Now()})
	}
	if p, err := apply(onlyLab, 1); err != nil || p.Revision != 2 || rulesOf(t, r) != "lab" {
		t.Errorf("the second policy is %+v with the rules %s: %v", p, rulesOf(t, r), err)
	}
	for document, rule := range map[string]pki.Rule{
		"rules: [{name: a, evidence: [tokn]}]":                                            pki.RulePolicyInvalid,
		"rules: [{name: a, evidence: [x5c], identity: 'device/{x5c.serial}'}]":            pki.RulePolicyInvalid, // no section
		"x5c: {acme: {roots: no PEM}}\nrules: [{name: a, evidence: [token]}]":             pki.RulePolicyInvalid,
		"x5c: {acme: {rots: no PEM}}\nrules: [{name: a, evidence: [token]}]":              pki.RulePolicyInvalid,
		"jwt: {ci: {issuer: 'http://ci.example'}}\nrules: [{name: a, evidence: [token]}]": pki.RulePolicyInvalid,
		"tpm: [a]\nrules: [{name: a, evidence: [token]}]":                                 pki.RulePolicyInvalid,
		strings.Replace(onlyLab, "lab/", "other/", 1):                                     pki.RulePolicyRevision, // based on 1
	} {
		if _, err := apply(document, 1); err == nil {
			t.Errorf("%q is applied", document)
		} else if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != rule {
			t.Errorf("%q: %v, want %s", document, err, rule)
		}
	}
	if rulesOf(t, r) != "lab" || r.Newest().Revision != 2 {
		t.Errorf("after refused documents, revision %d with the rules %s is in effect", r.Newest().Revision, rulesOf(t, r))
	}
	again, err := revisions.New(t.Context(), c)
	if err != nil || rulesOf(t, again) != "lab" {
		t.Errorf("the store opened again: %v", err)
	}
	e, err := r.Explain([]byte("evidence: [token]\nidentity: device/1\nfacts: {token.identity: device/1}\n"))
	if err != nil || e.Revision != 2 || len(e.Trials) != 1 || e.Trials[0].Outcome != policy.Unmatched {
		t.Errorf("explained as %+v: %v", e, err)
	}
	if _, err := r.Explain([]byte("facts: {}")); err == nil {
		t.Error("facts of no evidence are explained")
	}
}

// withoutDocuments is a store that was recreated from the log.
type withoutDocuments struct{ ra.PolicyStore }

func (s withoutDocuments) Policy(context.Context, uint64) (ra.PolicyRevision, error) {
	return ra.PolicyRevision{}, pki.Refuse(pki.RuleNotFound, "give it", "the document is missing")
}

// TestDocumentsAreMissing starts with a store whose documents are missing: only the right document makes it start.
func TestDocumentsAreMissing(t *testing.T) {
	store := new(memory.Store)
	c := configOf(t, store)
	if _, err := revisions.New(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	c.Store = withoutDocuments{store}
	if r, err := revisions.New(t.Context(), c); err != nil || r.Newest().Revision != 1 {
		t.Errorf("with the right document: %v", err)
	}
	c.First = []byte(onlyLab)
	if _, err := revisions.New(t.Context(), c); err == nil || !strings.Contains(err.Error(), "the document with the SHA-256") {
		t.Errorf("with another document: %v", err)
	}
}
