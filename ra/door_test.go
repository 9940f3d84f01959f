package ra_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra/policy"
	"github.com/brevet-pki/brevet/server/servertest"
)

// doors is a policy whose profile for workloads allows renewals at some doors only.
func doors(t *testing.T, rules []byte, at ...string) []byte {
	t.Helper()
	return servertest.Policy(t, rules, func(name string, c *ca.ProfileConfig) {
		if name == "workload" {
			c.Renewals = append([]string{}, at...)
		}
	})
}

// The profile that the certificate was issued with decides, in the newest revision of the policy.
func TestRenewalsAtDoors(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{Policy: doors(t, policy.Default(), "est")})
	holder := w.Enrolled(t, "workload", "web/1")
	renew := func() error {
		_, err := holder.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
		return err
	}
	before := rows(t, w, "certificates")
	servertest.Refused(t, renew(), codes.PermissionDenied, pki.RuleRenewalDoor)
	w.Update(t, holder.ID, &brevetv1.IdentitySpec{Profile: "client"}, "profile")
	servertest.Refused(t, renew(), codes.PermissionDenied, pki.RuleRenewalDoor)
	if n := rows(t, w, "certificates"); n != before {
		t.Errorf("%d certificates were added", n-before)
	}
	w.Restart(t, servertest.Options{Policy: doors(t, policy.Default(), "grpc")})
	holder.Caller = w.Caller(t, holder.TLS(w))
	renewed := w.Renewed(t, holder, servertest.Key(t))
	w.Status(t, renewed.Certificate, "good")
}

// What came by ACME is validated again instead of renewed.
func TestDefaultProfilesAllowAllDoors(t *testing.T) {
	t.Parallel()
	p := servertest.Must(ca.NewProfiles(nil, "http://pki.fleet.example"))(t)
	for _, name := range p.Names() {
		profile := servertest.Must(p.Profile(name))(t)
		for _, d := range pki.Doors() {
			if profile.RenewableAt(d) == (name == "acme") {
				t.Errorf("whether certificates of the default profile %s can be renewed by %s: %v", name, d, name == "acme")
			}
		}
		if profile.RenewableAt("") || profile.RenewableAt(pki.DoorSelf) {
			t.Errorf("certificates of the default profile %s can be renewed at an unknown door", name)
		}
	}
}

// A recovery with an expired certificate counts as a renewal over gRPC.
func TestRecoveryAtADoor(t *testing.T) {
	t.Parallel()
	const rules = "rules:\n- {name: tokens, evidence: [token]}\n- {name: back, evidence: [recovery]}\nrecovery: {grace: 24h, times: 3}\n"
	for at, refusal := range map[string]string{"est": "[renewal.protocol]", "grpc": ""} {
		w := servertest.New(t, ground, servertest.Options{Policy: doors(t, []byte(rules), at)})
		holder := w.Enrolled(t, "workload", "web/1")
		w.Clock.Advance(61 * time.Minute)
		client := servertest.Must(enroll.NewClient(""))(t)
		request := factoryRequest(t, w, servertest.CSR(t, servertest.Key(t)))
		_, err := client.Enroll(t.Context(), presentedWith(request, recovering(t, w, holder)))
		if (err == nil) != (refusal == "") || err != nil && !strings.Contains(err.Error(), refusal) {
			t.Errorf("with renewals at %s: %v, want %q", at, err, refusal)
		}
	}
}
