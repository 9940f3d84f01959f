package ceremony_test

import (
	"crypto/elliptic"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/pki"
)

// TestJavaVerifiesTrustDomains checks what CheckTrustDomain states about Java. Java must verify chains of every accepted
// trust domain, with and without constraints. It must find no host in the URIs of those that SPIFFE allows and
// CheckTrustDomain refuses.
func TestJavaVerifiesTrustDomains(t *testing.T) {
	args, want := []string{"testdata/TrustDomains.java"}, []string{}
	for _, td := range []string{"fleet.example", "plant-7.north.fleet.example", "1fleet.example", "fleet.e1", "fleet"} {
		for _, constrain := range []bool{false, strings.Contains(td, ".")} {
			p := build(t, ecPair(elliptic.P256()), func(s *ceremony.SignSpec) { s.Constrain, s.TrustDomain = constrain, td })
			p.write(t, "leaf.pem", "CERTIFICATE", leaf(t, p.sub, p.subKey, "spiffe://"+td+"/device/42").Raw)
			args = append(args, "chain", filepath.Join(p.dir, "root.pem"), filepath.Join(p.dir, "leaf.pem"), filepath.Join(p.dir, "sub.pem"))
			want = append(want, td)
		}
	}
	for _, td := range []string{"fleet_1.example", "-fleet.example", "fleet-.example", "fleet.1e", "fleet.example.", "_"} {
		if err := ceremony.CheckTrustDomain(td); err == nil {
			t.Errorf("%s is accepted", td)
		}
		if td != "fleet.example." { // a valid host for Java, but Go does not parse it
			args, want = append(args, "host", "spiffe://"+td+"/device/42"), append(want, "null")
		}
		if _, err := pki.ParseTrustDomain(td); err != nil {
			t.Errorf("SPIFFE does not allow it: %v", err)
		}
	}
	out, err := exec.CommandContext(t.Context(), "java", args...).CombinedOutput()
	if got := strings.Fields(string(out)); err != nil || strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("java: %v, want %q:\n%s", err, want, out)
	}
}
