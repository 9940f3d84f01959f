package revisions_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/policy"
	"github.com/brevet-pki/brevet/ra/revisions"
	"github.com/brevet-pki/brevet/store/memory"
)

const recoveryRules = "rules:\n- {name: tokens, evidence: [token]}\n- {name: field, evidence: [recovery], when: recovery.profile == \"device\"}\n"

// TestRecoverySection compiles documents with a retention of 48 hours.
func TestRecoverySection(t *testing.T) {
	for section, problem := range map[string]string{
		"recovery: {grace: 48h, times: 3}":            "",
		"recovery: {grace: 2d, times: 1000}":          "",
		"":                                            "add `recovery: {grace: 30d, times: 3}`",
		"recovery: {grace: 48h1s, times: 3}":          "48h0m1s is longer than the retention of 2d",
		"recovery: {grace: 0h, times: 3}":             "grace",
		"recovery: {times: 3}":                        "grace",
		"recovery: {grace: 1h}":                       "times: write how often",
		"recovery: {grace: 1h, times: 0}":             "times: write how often",
		"recovery: {grace: 1h, times: -1}":            "times: write how often",
		"recovery: {grace: 1h, times: 1001}":          "from 1 to 1000",
		"recovery: {grace: soon, times: 3}":           "is not a duration",
		"recovery: {grace: 1h, times: 3, maximum: 4}": "recovery.maximum: there is no key \"maximum\"; use one of grace, times",
		"recovery: [1h]":                              "recovery: keys with values belong here",
		"recovery: {grase: 1h, times: 3}":             "recovery.grase: there is no key \"grase\"; the nearest is grace",
		"recovery: {grace: 1h, times: often}":         "recovery.times: a whole number belongs here",
	} {
		c, err := compiler(t).Compile([]byte(recoveryRules+section), 1)
		if problem == "" {
			if err != nil || c.Grace() != 48*time.Hour {
				t.Errorf("%q: %v, a grace of %s", section, err, c.Grace())
			}
			continue
		}
		if faults := (policy.Faults)(nil); !errors.As(err, &faults) || !strings.Contains(err.Error(), problem) {
			t.Errorf("%q: %v, want a fault with %q", section, err, problem)
		}
	}
	offline := compiler(t)
	offline.Certificates, offline.Retention = nil, 0
	if c, err := offline.Compile([]byte(recoveryRules+"recovery: {grace: 9999d, times: 3}"), 1); err != nil || c.Grace() != 9999*24*time.Hour {
		t.Errorf("without certificates, the grace is %s: %v", c.Grace(), err)
	}
	if c, err := compiler(t).Compile(policy.Default(), 1); err != nil || c.Grace() != 0 || c.Authenticators[pki.EvidenceRecovery] != nil {
		t.Errorf("a document without a section has the grace %s: %v", c.Grace(), err)
	}
}

// TestGraceIsCheckedAtTheStart shortens the retention of a server below the grace of its policy.
func TestGraceIsCheckedAtTheStart(t *testing.T) {
	c := configOf(t, new(memory.Store))
	r, err := revisions.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	document := recoveryRules + "recovery: {grace: 48h, times: 3}"
	if _, err := r.Apply(t.Context(), ra.PolicyChange{Document: []byte(document), Based: 1, By: pki.ActorSystem("test"), At: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if r.Grace() != 48*time.Hour {
		t.Errorf("the grace is %s, want 48h", r.Grace())
	}
	c.Compiler.Retention = 47 * time.Hour
	if _, err := revisions.New(t.Context(), c); err == nil || !strings.Contains(err.Error(), "cannot serve with this configuration") {
		t.Errorf("with a shorter retention, the start returned %v", err)
	}
}
