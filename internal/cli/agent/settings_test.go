package agent

import (
	"flag"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/internal/config/configtest"
)

var update = flag.Bool("update", false, "write the reference of the configuration, where it is not current")

func TestReferenceIsCurrent(t *testing.T) {
	configtest.Reference(t, "configuration.md", "The agent: agent.yaml", configtest.Keys(t, defaultSettings()), "", *update)
}

func TestExampleLoads(t *testing.T) {
	keys := configtest.Keys(t, defaultSettings())
	example := configtest.ReadExample(t, "brevet-agent.example.yaml", defaultSettings(), keys)
	if _, err := loadSettings(example.Path(), nil); err != nil {
		t.Error(err)
	}
	for _, k := range keys {
		_, err := loadSettings(example.Without(t, k.Path), nil)
		if k.Required != (err != nil) || err != nil && !strings.Contains(err.Error(), ": "+k.Path+": ") {
			t.Errorf("without %s, which is required: %v, the error is %v", k.Path, k.Required, err)
		}
	}
}

func TestAttestationNeedsAllKeys(t *testing.T) {
	complete := defaultSettings()
	complete.Server, complete.Key.TPM = "ca.fleet.example:7443", "/dev/tpmrm0"
	complete.Attestation = attestationSettings{TrustDomain: "fleet.example", RootFingerprint: fingerprint{1}}
	if a, err := complete.attestation(nil); err != nil || a == nil {
		t.Errorf("got %v, %v", a, err)
	}
	if a, err := defaultSettings().attestation(nil); err != nil || a != nil {
		t.Errorf("without the keys: %v, %v", a, err)
	}
	for name, edit := range map[string]func(*settings){
		"server":                       func(s *settings) { s.Server = "" },
		"key.tpm":                      func(s *settings) { s.Key.TPM = "" },
		"attestation.trust_domain":     func(s *settings) { s.Attestation.TrustDomain = "" },
		"attestation.root_fingerprint": func(s *settings) { s.Attestation.RootFingerprint = fingerprint{} },
	} {
		s := complete
		edit(&s)
		if _, err := s.attestation(nil); err == nil || !strings.HasPrefix(err.Error(), name+" is missing") {
			t.Errorf("without %s: %v", name, err)
		}
	}
}

func TestFingerprint(t *testing.T) {
	digits := strings.Repeat("ab", 32)
	for text, want := range map[string]string{digits: digits, "AB" + strings.Repeat(":AB", 31): digits, "ab": "", digits + "ab": "", "not hexadecimal": ""} {
		var f fingerprint
		if err := f.UnmarshalText([]byte(text)); f.String() != want || (err != nil) != (want == "") {
			t.Errorf("%s: got %s, %v, want %s", text, f, err, want)
		}
	}
}
