package ra_test

import (
	"context"
	"crypto/x509"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/enroll/tpm/tpmtest"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// badNetwork is a client that loses the response to a renewal.
type badNetwork struct {
	*enroll.Client
	lifetime time.Duration // of the lost certificate; zero for the profile's default
	lost     *x509.Certificate
	lose     func() // is called when the response is lost
}

func (b *badNetwork) Renew(ctx context.Context, r enroll.RenewRequest) (enroll.Credential, error) {
	r.Lifetime = b.lifetime
	c, err := b.Client.Renew(ctx, r)
	if err != nil {
		return c, err
	}
	b.lost = c.Certificate
	b.lose()
	return enroll.Credential{}, errLost
}

// TestAgentComesBack runs an agent that loses the response to a renewal, and is then off. In the first case it comes back
// when only its own certificate has expired, and gets the lost certificate. In the second case that has expired too, and the
// agent recovers with its key.
func TestAgentComesBack(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		lifetime   time.Duration // of the lost certificate
		recoveries int32
	}{
		"while the lost certificate is valid":    {time.Hour, 0},
		"after the lost certificate has expired": {0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := servertest.New(t, ground, servertest.Options{Policy: []byte(recoveryPolicy), Profile: func(name string, c *ca.ProfileConfig) {
				if name == "device" {
					c.Lifetime = "12s"
				}
			}})
			id := w.Register(t, "device", "device/1")
			secret := servertest.Must(pki.TokenSecretFromBytes(w.Token(t, id, false)))(t)
			network := &badNetwork{Client: servertest.Must(enroll.NewClient(""))(t), lifetime: c.lifetime}
			log := slog.New(slog.NewTextHandler(io.Discard, nil))
			dir := servertest.Must(enroll.OpenDirectory(t.TempDir(), log))(t)
			defer dir.Close()
			config := enroll.Config{Directory: dir, Authority: network, Log: log}
			agent := servertest.Must(enroll.NewAgent(config))(t)
			if err := agent.Enroll(t.Context(), enroll.Token{Secret: secret, Bootstrap: factoryRequest(t, w, nil).Bootstrap}); err != nil {
				t.Fatal(err)
			}
			first := agent.Pair()
			ctx, cancel := context.WithDeadline(t.Context(), first.Certificate.NotAfter)
			defer cancel()
			network.lose = cancel
			if err := agent.Run(ctx); err != nil {
				t.Fatal(err)
			}
			if network.lost == nil || agent.Pair() != first {
				t.Fatal("the agent has not tried to renew its certificate, or has another one")
			}
			off := first.Certificate.NotAfter
			if c.recoveries > 0 {
				off = network.lost.NotAfter
			}
			time.Sleep(time.Until(off.Add(time.Second)))
			agent = servertest.Must(enroll.NewAgent(config))(t)
			if err := agent.Ensure(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := recoveries(t, w, id); n != c.recoveries {
				t.Errorf("the identity has recovered %d times, want %d", n, c.recoveries)
			}
			if isLost := agent.Pair().Certificate.Equal(network.lost); isLost != (c.recoveries == 0) {
				t.Errorf("the agent has the lost certificate: %v", isLost)
			}
		})
	}
}

// TestAttestedAgentComesBack runs an agent whose enrollment requires a key in hardware. After its certificate has expired,
// it proves the old key, and that the new one is in the TPM.
func TestAttestedAgentComesBack(t *testing.T) {
	t.Parallel()
	m := tpmtest.NewManufacturer(t)
	device := m.Make(t)
	document := append(attestationPolicy(t, m, `tpm.ek == "`+endorsement(t, device)+`"`), `
- name: field
  evidence: [recovery, tpm]
  when: tpm.certified
  hardware_key: true
recovery: {grace: 1h, times: 2}
`...)
	w := servertest.New(t, ground, servertest.Options{Policy: document, Profile: func(name string, c *ca.ProfileConfig) {
		if name == "device" {
			c.Lifetime = "12s"
		}
	}})
	agent := attestingAgent(t, w, t.TempDir(), device.Path)
	if err := agent.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := agent.Pair()
	time.Sleep(time.Until(first.Certificate.NotAfter.Add(time.Second)))
	if err := agent.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	id := first.ID().String()
	if n := recoveries(t, w, id); n != 1 {
		t.Errorf("the identity has recovered %d times, want once", n)
	}
	terms := servertest.Must(w.Operator.GetIdentity(t.Context(), &brevetv1.GetIdentityRequest{Id: id}))(t).GetIdentity().GetEnrollmentTerms()
	if !terms.GetHardwareKey() || !agent.Pair().Origin.Attested {
		t.Errorf("the enrollment requires %v after the recovery, and the agent has forgotten the attestation: %v", terms, !agent.Pair().Origin.Attested)
	}
}
