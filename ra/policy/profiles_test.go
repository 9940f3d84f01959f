package policy_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/ra/policy"
)

// pump is a profile for devices.
const pump = `{kinds: [device], lifetime: 1h, max_lifetime: 2h, keys: [P-256], key_usage: [digitalSignature], extended_key_usage: [clientAuth]}`

const pumps = "\nrules: [{name: a, evidence: [x5c], identity: 'pump/{x5c.source}/{x5c.serial}', register: true, profile: pump}]\n"

// TestProfiles compiles documents with an additional profile, and with one that replaces a default profile.
func TestProfiles(t *testing.T) {
	added := compile(t, "profiles: {pump: "+pump+"}"+pumps)
	p, err := added.Profiles().Profile("pump")
	if err != nil || p.MaxLifetime() != 2*time.Hour {
		t.Errorf("the profile is %+v: %v", p, err)
	}
	replaced := compile(t, "profiles: {device: "+pump+"}\n"+string(policy.Default()))
	before, err := added.Profiles().Profile("device")
	if err != nil {
		t.Fatal(err)
	}
	after, err := replaced.Profiles().Profile("device")
	if err != nil || before.MaxLifetime() != 30*24*time.Hour || after.MaxLifetime() != 2*time.Hour {
		t.Errorf("the replaced profile allows %s, and the default one %s: %v", after.MaxLifetime(), before.MaxLifetime(), err)
	}
	configs, err := ca.DefaultProfiles()
	if err != nil {
		t.Fatal(err)
	}
	all, err := yaml.Marshal(map[string]any{"profiles": configs}) // has every key
	if err != nil {
		t.Fatal(err)
	}
	compile(t, string(all)+string(policy.Default()))
}

// TestProfileFaults compiles profiles with faults. Each is reported with its line and the path of its key, and once.
func TestProfileFaults(t *testing.T) {
	with := func(change, to string) string { return strings.Replace(pump, change, to, 1) }
	var many strings.Builder
	for n := range 101 {
		fmt.Fprintf(&many, "  p%d: %s\n", n, pump)
	}
	for document, want := range map[string]string{
		"profiles:\n  pump: " + with("kinds", "kind"):                        "line 2: profiles.pump.kind: there is no key \"kind\"; the nearest is kinds",
		"profiles:\n  pump: " + with("[device]", "[toaster]"):                "line 2: profiles.pump.kinds: ",
		"profiles:\n  pump: " + with("[device]", "device"):                   "line 2: profiles.pump.kinds: a list of texts",
		"profiles:\n  pump: " + with("1h", "[1h]"):                           "line 2: profiles.pump.lifetime: a text belongs here",
		"profiles:\n  pump: " + with("1h", "3h"):                             "line 2: profiles.pump.lifetime: 3h is longer than max_lifetime, 2h",
		"profiles:\n  pump: " + with("1h", ""):                               "line 2: profiles.pump.lifetime: the key has no value",
		"profiles:\n  pump: " + with("1h", "1h, lint: 3"):                    "line 2: profiles.pump.lint: true or false belongs here",
		"profiles:\n  pump: " + with("1h", "1h, max_unexpired: many"):        "line 2: profiles.pump.max_unexpired: a whole number belongs here",
		"profiles:\n  pump: " + with("1h", "1h, crl_url: 'https://a/a.crl'"): "line 2: profiles.pump.crl_url: ",
		"profiles:\n  pump: " + with("1h", "1h, lifetime: 2h"):               "line 2: profiles.pump.lifetime: this key occurs twice",
		"profiles:\n  pump: " + with("keys: [P-256], ", ""):                  "line 2: profiles.pump.keys: name at least one type of key",
		"profiles:\n  pump: 1":                                               "line 2: profiles.pump: keys with values belong here",
		"profiles:\n  pump: " + pump + "\n  pump: " + pump:                   "line 3: profiles.pump: this key occurs twice",
		"profiles:\n  pump: " + pump + "\n  \"p\\u00fcmp\": " + pump:         "line 3: profiles: no profile can have this name",
		"profiles: [pump]": "line 1: profiles: keys with values belong here",
		"profiles:\n  pump: " + pump + "\n" + many.String(): "line 102: profiles: there are more than 100 profiles",
	} {
		_, err := policy.Compile([]byte(document+pumps), 1, environment(t))
		var faults policy.Faults
		if !errors.As(err, &faults) || len(faults) == 0 || !strings.HasPrefix(faults[0].String(), want) {
			t.Errorf("%q: %v, want %s", document, err, want)
		} else if len(faults) > 1 && !strings.HasPrefix(document, "profiles: [") {
			t.Errorf("%q has %d faults: %v", document, len(faults), err)
		}
	}
}

// TestProfilesAreIssuable compiles a document with a profile of which no certificate can be issued.
func TestProfilesAreIssuable(t *testing.T) {
	e := environment(t)
	prepared := 0
	e.Prepare = func(all *ca.Profiles) (*ca.Profiles, error) {
		prepared++
		return nil, &ca.ProfileError{Profile: "pump", Err: errors.New("relying parties would refuse it")}
	}
	document := []byte("profiles:\n  pump: " + pump + pumps)
	_, err := policy.Compile(document, 1, e)
	var faults policy.Faults
	if !errors.As(err, &faults) || faults.Error() != "line 2: profiles.pump: relying parties would refuse it" {
		t.Errorf("the error is %v", err)
	}
	if _, err := policy.Compile(append(document, "foo: 1"...), 1, e); err == nil || prepared != 1 {
		t.Errorf("a document with another fault: %v, and its profiles are prepared %d times", err, prepared-1)
	}
	e.Prepare = func(*ca.Profiles) (*ca.Profiles, error) { return nil, errors.New("the CA is not valid now") }
	if _, err := policy.Compile(document, 1, e); err == nil || errors.As(err, &faults) {
		t.Errorf("a failure that is not about a profile: %v", err)
	}
}
