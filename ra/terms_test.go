package ra_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/enroll/tpm"
	"github.com/brevet-pki/brevet/enroll/tpm/tpmtest"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

// strictWorld starts a server whose rule for the cameras of a manufacturer has the given keys.
func strictWorld(t *testing.T, root *x509.Certificate, keys string) *servertest.World {
	t.Helper()
	return servertest.New(t, ground, servertest.Options{Policy: strictPolicy(root, keys)})
}

func strictPolicy(root *x509.Certificate, keys string) []byte {
	return fmt.Appendf(nil, `
x5c:
  cameras:
    roots: %q
rules:
- {name: tokens, evidence: [token]}
- {name: cameras, evidence: [x5c], when: 'x5c.source == "cameras"', identity: "device/{x5c.serial}", register: true, replace: true, profile: device%s}
- {name: both, evidence: [token, x5c]}
`, pemOf(root), keys)
}

// enrolledCamera enrolls a camera, and returns the holder of its certificate.
func enrolledCamera(t *testing.T, w *servertest.World, camera tls.Certificate, key crypto.Signer) *servertest.Holder {
	t.Helper()
	client := servertest.Must(enroll.NewClient(""))(t)
	evidence := servertest.Must(enroll.FactoryCertificate(camera))(t)
	credential := servertest.Must(client.Enroll(t.Context(), factoryRequest(t, w, servertest.CSR(t, key), evidence)))(t)
	return w.Holder(t, credential.Certificate.Raw, key)
}

// lifeOf returns the lifetime of a certificate without its backdating, which is a minute.
func lifeOf(t *testing.T, der []byte) time.Duration {
	t.Helper()
	c := servertest.Must(x509.ParseCertificate(der))(t)
	return c.NotAfter.Sub(c.NotBefore) - time.Minute
}

// The types of keys and the lifetime of a rule bind renewals and issue requests, until the identity enrolls by another
// rule.
func TestTermsBindRenewals(t *testing.T) {
	t.Parallel()
	root, camera := manufacturer(t)
	w := strictWorld(t, root, ", keys: [P-256], lifetime: 6h")
	p384 := servertest.Must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)
	device := enrolledCamera(t, w, camera, servertest.Key(t))
	if got := lifeOf(t, device.Certificate.Raw); got != 6*time.Hour {
		t.Errorf("the first certificate is valid for %s, want 6h", got)
	}
	terms := servertest.Must(w.Operator.GetIdentity(t.Context(), &brevetv1.GetIdentityRequest{Id: device.ID}))(t).GetIdentity().GetEnrollmentTerms()
	if fmt.Sprint(terms.GetKeyTypes(), terms.GetHardwareKey(), terms.GetMaxLifetime().AsDuration()) != "[P-256] false 6h0m0s" {
		t.Errorf("the identity has the terms %v", terms)
	}
	renew := func(key crypto.Signer, lifetime time.Duration) ([]byte, error) {
		req := servertest.Renewal(t, key)
		if lifetime > 0 {
			req.Lifetime = durationpb.New(lifetime)
		}
		resp, err := device.Renew(t.Context(), req)
		if err == nil {
			device = w.Holder(t, resp.GetCredential().GetCertificate(), key)
		}
		return resp.GetCredential().GetCertificate(), err
	}
	issue := func(key crypto.Signer, lifetime time.Duration) ([]byte, error) {
		req := servertest.Order(t, device.ID, key)
		if lifetime > 0 {
			req.Lifetime = durationpb.New(lifetime)
		}
		return w.Operator.Orders(t, req).Of(req)
	}
	for name, request := range map[string]func(crypto.Signer, time.Duration) ([]byte, error){"renewal": renew, "issue request": issue} {
		before := rows(t, w, "certificates")
		_, err := request(p384, 0)
		servertest.Refused(t, err, codes.InvalidArgument, pki.RuleKeyType)
		_, err = request(servertest.Key(t), 6*time.Hour+time.Second)
		servertest.Refused(t, err, codes.InvalidArgument, pki.RuleLifetime)
		if n := rows(t, w, "certificates"); n != before {
			t.Errorf("refused requests added %d certificates", n-before)
		}
		for asked, want := range map[time.Duration]time.Duration{0: 6 * time.Hour, 2 * time.Hour: 2 * time.Hour} {
			der, err := request(servertest.Key(t), asked)
			if err != nil {
				t.Errorf("%s for %s: %v", name, asked, err)
			} else if got := lifeOf(t, der); got != want {
				t.Errorf("%s for %s: a certificate for %s, want %s", name, asked, got, want)
			}
		}
	}

	w.Enroll(t, w.Token(t, device.ID, true), p384) // the rule tokens requires nothing
	if terms := servertest.Must(w.Operator.GetIdentity(t.Context(), &brevetv1.GetIdentityRequest{Id: device.ID}))(t).GetIdentity().GetEnrollmentTerms(); terms != nil {
		t.Errorf("after an enrollment by another rule, the identity has the terms %v", terms)
	}
	device = enrolledCamera(t, w, camera, servertest.Key(t))
	if _, err := renew(servertest.Key(t), 7*time.Hour); servertest.RuleOf(err) != pki.RuleLifetime {
		t.Errorf("after the third enrollment, a longer renewal: %v, want %s", err, pki.RuleLifetime)
	}
}

// A rule that allows more than the default of the profile does not lengthen certificates, and one that allows more than
// a changed profile does not prevent renewals.
func TestTermsAreLimitedByProfile(t *testing.T) {
	t.Parallel()
	root, camera := manufacturer(t)
	// The check of a policy compares a rule with a profile only if the rule registers identities.
	policy := bytes.ReplaceAll(strictPolicy(root, ", lifetime: 48h"), []byte("register: true, replace: true, profile: device"), []byte("replace: true"))
	w := servertest.New(t, ground, servertest.Options{Policy: policy})
	w.Register(t, "device", "device/SN-0042")
	key := servertest.Key(t)
	device := enrolledCamera(t, w, camera, key)
	short := func(name string, c *ca.ProfileConfig) {
		if name == "device" {
			c.Lifetime, c.MaxLifetime = "12h", "24h"
		}
	}
	life := lifeOf(t, device.Certificate.Raw)
	if life >= 48*time.Hour {
		t.Errorf("the first certificate is valid for %s, want the default of the profile", life)
	}
	w.Restart(t, servertest.Options{Policy: policy, Profile: short})
	device = w.Holder(t, device.Certificate.Raw, key)
	if got := lifeOf(t, w.Renewed(t, device, servertest.Key(t)).Certificate.Raw); got != 12*time.Hour {
		t.Errorf("the renewed certificate is valid for %s, want 12h", got)
	}
}

// tpmPolicy grants the identity device/gateway to every TPM of a manufacturer, with a key in hardware.
const tpmPolicy = `tpm.certified && tpm.source == "acme"`

// An identity whose rule requires a key in hardware renews with the same key, or with a new key that its own TPM
// certifies.
func TestHardwareKeyBindsRenewals(t *testing.T) {
	t.Parallel()
	m := tpmtest.NewManufacturer(t)
	first, second := m.Make(t), m.Make(t)
	w := attestationWorld(t, m, tpmPolicy)
	agent := attestingAgent(t, w, filepath.Join(t.TempDir(), "device"), first.Path)
	if err := agent.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	enrolled := agent.Pair()
	client := servertest.Must(enroll.NewClient(""))(t)
	request := func(key crypto.Signer, evidence enroll.Evidence) enroll.RenewRequest {
		return enroll.RenewRequest{
			RequestID: servertest.Must(pki.RequestIDFromBytes(servertest.RequestID()))(t), Current: enrolled, CSR: servertest.CSR(t, key),
			Key: key, Evidence: evidence,
		}
	}
	attested := func(key *tpm.Key) enroll.Evidence { return servertest.Must(enroll.Attestation(key.Device()))(t) }
	keyIn := func(p *tpmtest.TPM) *tpm.Key { return servertest.Must(tpm.New(p.Path).NewKey())(t) }
	before := rows(t, w, "certificates")
	software, withheld, foreign, own := servertest.Key(t), keyIn(first), keyIn(second), keyIn(first)
	for name, c := range map[string]struct {
		request enroll.RenewRequest
		rule    pki.Rule
	}{
		"a key in software":           {request(software, nil), pki.RuleHardwareKey},
		"a key in the TPM, withheld":  {request(withheld, nil), pki.RuleHardwareKey},
		"evidence about another key":  {request(software, attestationOf{attested(own), own}), pki.RuleEvidenceKey},
		"a key in another TPM":        {request(foreign, attested(foreign)), pki.RuleEvidenceConflict},
		"a challenge that is refused": {request(software, unsupported{}), pki.RuleHardwareKey},
	} {
		_, err := client.Renew(t.Context(), c.request)
		if refusal, _ := pki.AsRefusal(err); refusal == nil || refusal.Rule != c.rule {
			t.Errorf("%s: %v, want %s", name, err, c.rule)
		}
	}
	order := servertest.Order(t, enrolled.ID().Path(), servertest.Key(t))
	_, err := w.Operator.Orders(t, order).Of(order)
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleHardwareKey)
	if n := rows(t, w, "certificates"); n != before {
		t.Errorf("refused requests added %d certificates", n-before)
	}

	servertest.Must(client.Renew(t.Context(), request(enrolled.Key, nil)))(t) // the same key is proven already
	nonces := rows(t, w, "nonces")
	renewal := request(enrolled.Key, attested(enrolled.Key.(*tpm.Key)))
	servertest.Must(client.Renew(t.Context(), renewal))(t)
	if n := rows(t, w, "nonces"); n != nonces {
		t.Errorf("evidence that is not necessary consumed %d nonces", n-nonces)
	}
}

// attestationOf is the attestation of a key, presented with the request for another one.
type attestationOf struct {
	enroll.Evidence
	key crypto.Signer
}

func (a attestationOf) Present(ctx context.Context, p enroll.Presentation) (pki.Evidence, error) {
	p.Key = a.key
	return a.Evidence.Present(ctx, p)
}

// unsupported is evidence of a kind that has no challenge, and asks for one.
type unsupported struct{ enroll.Evidence }

func (unsupported) Present(ctx context.Context, p enroll.Presentation) (pki.Evidence, error) {
	_, err := p.Challenge(ctx, pki.EvidenceJWT, nil)
	return pki.Evidence{}, err
}

// Evidence that the server refuses a challenge for does not prevent a renewal that needs no evidence.
func TestRefusedChallengeDoesNotPreventRenewal(t *testing.T) {
	t.Parallel()
	root, camera := manufacturer(t)
	w := strictWorld(t, root, "")
	client := servertest.Must(enroll.NewClient(""))(t)
	evidence := servertest.Must(enroll.FactoryCertificate(camera))(t)
	key := servertest.Key(t)
	credential := servertest.Must(client.Enroll(t.Context(), factoryRequest(t, w, servertest.CSR(t, key), evidence)))(t)
	origin := enroll.Origin{Server: w.GRPC}
	pair := servertest.Must(enroll.NewPair(credential, key, origin, credential.Certificate.NotBefore))(t)
	servertest.Must(client.Renew(t.Context(), enroll.RenewRequest{
		RequestID: servertest.Must(pki.RequestIDFromBytes(servertest.RequestID()))(t), Current: pair,
		CSR: servertest.CSR(t, servertest.Key(t)), Evidence: unsupported{},
	}))(t)
}

// proofless is a client whose renewals have no evidence.
type proofless struct{ *enroll.Client }

func (p proofless) Renew(ctx context.Context, r enroll.RenewRequest) (enroll.Credential, error) {
	r.Evidence = nil
	return p.Client.Renew(ctx, r)
}

// An agent that cannot prove that its new key is in hardware keeps its identity, by renewing with the current key.
func TestAgentRenewsWithSameKey(t *testing.T) {
	t.Parallel()
	m := tpmtest.NewManufacturer(t)
	device := m.Make(t)
	w := servertest.New(t, ground, servertest.Options{Policy: attestationPolicy(t, m, tpmPolicy), Profile: renewedAtOnce})
	directory := filepath.Join(t.TempDir(), "device")
	agent, dir := openAttestingAgent(t, w, directory, device.Path, nil)
	if err := errors.Join(agent.Ensure(t.Context()), dir.Close()); err != nil {
		t.Fatal(err)
	}
	first := agent.Pair()
	forgetRenewalWindow(t, directory)
	agent, dir = openAttestingAgent(t, w, directory, device.Path, proofless{servertest.Must(enroll.NewClient(""))(t)})
	if err := errors.Join(agent.Refresh(t.Context()), dir.Close()); err != nil {
		t.Fatal(err)
	}
	second := agent.Pair()
	if second.Certificate.Equal(first.Certificate) || !second.Key.Public().(*ecdsa.PublicKey).Equal(first.Key.Public()) {
		t.Error("the agent has the old certificate, or another key")
	}
	w.Status(t, second.Certificate, "good")
}

// renewedAtOnce backdates the certificates of devices, so that agents renew them immediately.
func renewedAtOnce(name string, c *ca.ProfileConfig) {
	if name == "device" {
		c.Lifetime, c.MaxLifetime, c.Backdate = "10m", "10m", "55m"
	}
}

// An agent whose key is in a TPM renews with a new key, and attests it. Its evidence is used once, and is in the log.
func TestAgentRenewsWithTPM(t *testing.T) {
	t.Parallel()
	m := tpmtest.NewManufacturer(t)
	device := m.Make(t)
	w := servertest.New(t, ground, servertest.Options{Policy: attestationPolicy(t, m, tpmPolicy), Profile: renewedAtOnce})
	directory := filepath.Join(t.TempDir(), "device")
	// run starts the agent, lets it work, and stops it, like a device that wakes up briefly.
	run := func(work func(*enroll.Agent) error) *enroll.Pair {
		t.Helper()
		agent, dir := openAttestingAgent(t, w, directory, device.Path, nil)
		if err := errors.Join(work(agent), dir.Close()); err != nil {
			t.Fatal(err)
		}
		return agent.Pair()
	}
	first := run(func(a *enroll.Agent) error { return a.Ensure(t.Context()) })
	nonces := rows(t, w, "nonces")
	before := first
	for range 2 {
		forgetRenewalWindow(t, directory)
		after := run(func(a *enroll.Agent) error { return a.Refresh(t.Context()) })
		if _, ok := after.Key.(*tpm.Key); !ok || !after.Origin.Attested || after.Certificate.Equal(before.Certificate) ||
			after.Key.Public().(*ecdsa.PublicKey).Equal(before.Key.Public()) {
			t.Errorf("the renewed credential has a %T, the origin %+v, or the key of the one before", after.Key, after.Origin)
		}
		w.Status(t, after.Certificate, "good")
		before = after
	}
	if n := rows(t, w, "nonces") - nonces; n != 2 {
		t.Errorf("two renewals consumed %d nonces, want 2", n)
	}
	for _, e := range servertest.Find(w.Entries(t, 0), translog.CertificateIssued, first.ID().String()) {
		if got := e.Facts()["evidence"]; len(got) != len("tpm:")+64 || got[:4] != "tpm:" {
			t.Errorf("the log has the evidence %q, want the digest of an attestation", got)
		}
	}
}
