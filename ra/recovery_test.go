package ra_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra/nonce"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

// recoveryPolicy lets devices recover for an hour after their certificates expired, twice in a row, except for those
// under device/indoor.
const recoveryPolicy = `
rules:
- name: tokens
  evidence: [token]
- name: field
  evidence: [recovery]
  when: recovery.profile == "device" && !recovery.identity.startsWith("device/indoor/") && recovery.expired_at > timestamp("2020-01-01T00:00:00Z")
recovery: {grace: 1h, times: 2}
`

// deviceLifetime is the lifetime of devices' certificates in these tests.
const deviceLifetime = 10 * time.Minute

// recoveryWorld starts a server. Its own certificate is valid for a day, so that its clock can be advanced by some hours.
func recoveryWorld(t *testing.T, document string, revokes bool) *servertest.World {
	t.Helper()
	return servertest.New(t, ground, servertest.Options{Policy: []byte(document), Profile: func(name string, c *ca.ProfileConfig) {
		if name == "device" {
			c.Lifetime, c.RenewalRevokes = ca.Duration(deviceLifetime.String()), revokes
		}
	}})
}

// pairOf returns the credential of a holder.
func pairOf(t *testing.T, w *servertest.World, h *servertest.Holder) *enroll.Pair {
	t.Helper()
	c := enroll.Credential{Certificate: h.Certificate, Chain: []*x509.Certificate{w.Issuing}, Roots: []*x509.Certificate{w.Root}}
	return servertest.Must(enroll.NewPair(c, h.Key, enroll.Origin{Server: w.GRPC}, time.Now()))(t)
}

// presentedWith returns the request with other evidence.
func presentedWith(r enroll.EnrollRequest, evidence ...enroll.Evidence) enroll.EnrollRequest {
	r.Evidence = evidence
	return r
}

// recovering returns the evidence of a holder whose certificate expired.
func recovering(t *testing.T, w *servertest.World, h *servertest.Holder) enroll.Evidence {
	t.Helper()
	return servertest.Must(enroll.ExpiredKey(pairOf(t, w, h)))(t)
}

// recovered recovers with an expired certificate and a new key.
func recovered(t *testing.T, w *servertest.World, h *servertest.Holder) *servertest.Holder {
	t.Helper()
	key := servertest.Key(t)
	client := servertest.Must(enroll.NewClient(""))(t)
	c := servertest.Must(client.Enroll(t.Context(), presentedWith(factoryRequest(t, w, servertest.CSR(t, key)), recovering(t, w, h))))(t)
	return w.Holder(t, c.Certificate.Raw, key)
}

// recoveries returns how often in a row an identity has recovered.
func recoveries(t *testing.T, w *servertest.World, id string) int32 {
	t.Helper()
	return servertest.Must(w.Operator.GetIdentity(t.Context(), &brevetv1.GetIdentityRequest{Id: id}))(t).GetIdentity().GetRecoveries()
}

func TestExpiredDeviceRecovers(t *testing.T) {
	t.Parallel()
	w := recoveryWorld(t, recoveryPolicy, false)
	old := w.Enrolled(t, "device", "device/1")
	w.Clock.Advance(deviceLifetime + time.Minute)
	_, err := old.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
	servertest.Refused(t, err, codes.Unauthenticated, pki.RuleExpired) // the rule of TLS stays
	client := servertest.Must(enroll.NewClient(""))(t)
	key := servertest.Key(t)
	request := factoryRequest(t, w, servertest.CSR(t, key))
	credential := servertest.Must(client.Enroll(t.Context(), presentedWith(request, recovering(t, w, old))))(t)
	if credential.Certificate.URIs[0].String() != old.ID || !key.PublicKey.Equal(credential.Certificate.PublicKey) {
		t.Errorf("the certificate names %s, want %s, or has another key", credential.Certificate.URIs[0], old.ID)
	}
	w.Status(t, credential.Certificate, "good")
	for _, wait := range []time.Duration{0, 2 * nonce.Lifetime} {
		w.Clock.Advance(wait)
		again := servertest.Must(client.Enroll(t.Context(), presentedWith(request, recovering(t, w, old))))(t)
		if !bytes.Equal(again.Certificate.Raw, credential.Certificate.Raw) {
			t.Errorf("the request repeated after %s returned another certificate", wait)
		}
	}
	if n := recoveries(t, w, old.ID); n != 1 {
		t.Errorf("the identity has recovered %d times, want once", n)
	}
	issued := servertest.Find(w.Entries(t, 0), translog.CertificateIssued, old.ID)
	serial := servertest.Must(pki.SerialFromInt(old.Certificate.SerialNumber))(t)
	facts := issued[len(issued)-1].Facts()
	if len(issued) != 2 || issued[1].Actor.String() != "recovery:"+serial.String() || facts["predecessor"] != serial.String() ||
		facts["policy_rule"] != "field" || !strings.HasPrefix(facts["evidence"], "recovery:") {
		t.Errorf("the log has %+v", issued)
	}
	w.Clock.Advance(deviceLifetime)
	next := recovered(t, w, w.Holder(t, credential.Certificate.Raw, key))
	if n := recoveries(t, w, old.ID); n != 2 {
		t.Errorf("the identity has recovered %d times, want twice", n)
	}
	next = w.Renewed(t, next, servertest.Key(t))
	if n := recoveries(t, w, old.ID); n != 0 {
		t.Errorf("after a renewal the identity has recovered %d times in a row, want none", n)
	}
	w.Clock.Advance(deviceLifetime + time.Minute)
	recovered(t, w, next)
}

// TestLostRenewalIsRepeatedAfterExpiry loses the response to a renewal. After its certificate has expired, the device gets
// the response again.
func TestLostRenewalIsRepeatedAfterExpiry(t *testing.T) {
	t.Parallel()
	for name, revokes := range map[string]bool{"the predecessor stays": false, "the predecessor is revoked": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := recoveryWorld(t, recoveryPolicy, revokes)
			old, key := w.Enrolled(t, "device", "device/1"), servertest.Key(t)
			w.Clock.Advance(deviceLifetime - time.Minute)
			renewal := servertest.Renewal(t, key)
			lost := servertest.Must(old.Renew(t.Context(), renewal))(t).GetCredential().GetCertificate()
			w.Clock.Advance(2 * time.Minute)
			request := factoryRequest(t, w, renewal.GetCsr())
			request.RequestID = servertest.Must(pki.RequestIDFromBytes(renewal.GetRequestId()))(t)
			client := servertest.Must(enroll.NewClient(""))(t)
			found := servertest.Must(client.Enroll(t.Context(), presentedWith(request, recovering(t, w, old))))(t)
			if !bytes.Equal(found.Certificate.Raw, lost) {
				t.Error("the repeated request returned another certificate")
			}
			w.Renewed(t, w.Holder(t, lost, key), servertest.Key(t))
			if n := recoveries(t, w, old.ID); n != 0 {
				t.Errorf("a repeated request counts as %d recoveries", n)
			}
		})
	}
}

// TestPredecessorRecoversOnce loses the certificate of a renewal together with its key. The predecessor recovers only after
// the lost certificate has expired, because a device may still use it. The recovery revokes the lost certificate.
func TestPredecessorRecoversOnce(t *testing.T) {
	t.Parallel()
	w := recoveryWorld(t, recoveryPolicy, false)
	old := w.Enrolled(t, "device", "device/1")
	w.Clock.Advance(deviceLifetime - time.Minute)
	lost := w.Renewed(t, old, servertest.Key(t))
	refused := func(h *servertest.Holder, rule pki.Rule) {
		t.Helper()
		client := servertest.Must(enroll.NewClient(""))(t)
		_, err := client.Enroll(t.Context(), presentedWith(factoryRequest(t, w, servertest.CSR(t, servertest.Key(t))), recovering(t, w, h)))
		if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != rule {
			t.Errorf("%v, want %s", err, rule)
		}
	}
	w.Clock.Advance(2 * time.Minute)
	refused(old, pki.RuleRecoveryValid)
	w.Status(t, lost.Certificate, "good")
	w.Clock.Advance(deviceLifetime - time.Minute)
	next := recovered(t, w, old)
	w.Status(t, next.Certificate, "good")
	w.Clock.Advance(deviceLifetime + time.Minute)
	refused(old, pki.RuleRecoveryNewest)
	refused(lost, pki.RuleRevoked)
	recovered(t, w, next)
}

// signedFor is evidence that signs a statement about another certificate, for another trust domain, or with another key.
type signedFor struct {
	enroll.Evidence
	certificate pki.CertRef
	domain      string
	key         *ecdsa.PrivateKey
}

func (s signedFor) Present(ctx context.Context, p enroll.Presentation) (pki.Evidence, error) {
	made, err := s.Evidence.Present(ctx, p)
	if err != nil {
		return made, err
	}
	e, err := pki.ParseRecoveryEvidence(made.Value)
	if err != nil {
		return made, err
	}
	digest := sha256.Sum256(pki.RecoveryStatement(s.domain, s.certificate, p.KeyHash, p.RequestID, e.Challenge))
	e.IssuerID, e.Serial = s.certificate.Issuer.Bytes(), s.certificate.Serial.Bytes()
	e.Signature, err = s.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	made.Value = e.Encode()
	return made, err
}

// recoveryCase is a recovery that is refused. The function before runs while the certificate is valid, and after when it
// has expired. They can return another holder whose key to use.
type recoveryCase struct {
	name, path    string
	rule          pki.Rule
	before, after func(t *testing.T, w *servertest.World, h *servertest.Holder) *servertest.Holder
	// evidence replaces the evidence, if it is not nil, and key the new key.
	evidence func(t *testing.T, w *servertest.World, h *servertest.Holder) enroll.Evidence
	key      func(h *servertest.Holder) crypto.Signer
}

// revokedFor returns a function that revokes the certificate.
func revokedFor(reason string) func(t *testing.T, w *servertest.World, h *servertest.Holder) *servertest.Holder {
	return func(t *testing.T, w *servertest.World, h *servertest.Holder) *servertest.Holder {
		w.Revoke(t, h.Certificate, reason)
		return h
	}
}

var refusedRecoveries = []recoveryCase{
	{name: "of a suspended identity", rule: pki.RuleIdentityState, after: func(t *testing.T, w *servertest.World, h *servertest.Holder) *servertest.Holder {
		servertest.Must(w.Operator.SuspendIdentity(t.Context(), &brevetv1.SuspendIdentityRequest{Id: h.ID}))(t)
		return h
	}},
	{name: "of a retired identity", rule: pki.RuleIdentityState, after: func(t *testing.T, w *servertest.World, h *servertest.Holder) *servertest.Holder {
		servertest.Must(w.Operator.RetireIdentity(t.Context(), &brevetv1.RetireIdentityRequest{Id: h.ID}))(t)
		return h
	}},
	{name: "revoked before it expired", rule: pki.RuleRevoked, before: revokedFor("cessationOfOperation")},
	{name: "revoked after it expired", rule: pki.RuleRevoked, after: revokedFor("privilegeWithdrawn")},
	{name: "superseded by an operator", rule: pki.RuleRevoked, after: revokedFor("superseded")},
	{name: "compromised", rule: pki.RuleRevoked, after: revokedFor("keyCompromise")},
	{name: "revoked in bulk after it expired", path: "device/stolen", rule: pki.RuleRevoked, after: func(t *testing.T, w *servertest.World, h *servertest.Holder) *servertest.Holder {
		servertest.Must(w.Operator.CreateBulkRevocation(t.Context(), &brevetv1.CreateBulkRevocationRequest{
			Selection: &brevetv1.CertificateSelection{Identity: h.ID}, Reason: brevetv1.RevocationReason_REVOCATION_REASON_CESSATION_OF_OPERATION,
		}))(t)
		return h
	}},
	{name: "of another identity than the policy allows", path: "device/indoor/1", rule: pki.RulePolicy},
	{name: "with the key of an older certificate", rule: pki.RuleRecoveryNewest, before: func(t *testing.T, w *servertest.World, h *servertest.Holder) *servertest.Holder {
		w.Renewed(t, w.Renewed(t, h, servertest.Key(t)), servertest.Key(t))
		return h
	}},
	{name: "after another enrollment", rule: pki.RuleRevoked, before: func(t *testing.T, w *servertest.World, h *servertest.Holder) *servertest.Holder {
		w.Enroll(t, w.Token(t, h.ID, true), servertest.Key(t))
		return h
	}},
	{name: "with the same key", rule: pki.RuleKeyInUse, key: func(h *servertest.Holder) crypto.Signer { return h.Key }},
	{name: "for another trust domain", rule: pki.RuleEvidenceSignature, evidence: func(t *testing.T, w *servertest.World, h *servertest.Holder) enroll.Evidence {
		return signedFor{recovering(t, w, h), refOf(t, w, h), "other.example", h.Key.(*ecdsa.PrivateKey)}
	}},
	{name: "with a signature of another key", rule: pki.RuleEvidenceSignature, evidence: func(t *testing.T, w *servertest.World, h *servertest.Holder) enroll.Evidence {
		return signedFor{recovering(t, w, h), refOf(t, w, h), servertest.TrustDomain, servertest.Key(t)}
	}},
	{name: "with the reference of another certificate", rule: pki.RuleEvidenceUntrusted, evidence: func(t *testing.T, w *servertest.World, h *servertest.Holder) enroll.Evidence {
		other := w.Enrolled(t, "device", "device/other")
		return signedFor{recovering(t, w, h), refOf(t, w, other), servertest.TrustDomain, h.Key.(*ecdsa.PrivateKey)}
	}},
	{name: "with evidence for another request", rule: pki.RuleEvidenceKey, evidence: func(t *testing.T, w *servertest.World, h *servertest.Holder) enroll.Evidence {
		evidence, made := recovering(t, w, h), pki.Evidence{}
		client := servertest.Must(enroll.NewClient(""))(t)
		request := factoryRequest(t, w, servertest.CSR(t, h.Key)) // is refused, because the key is not new
		if _, err := client.Enroll(t.Context(), presentedWith(request, kept{evidence, &made})); err == nil {
			t.Error("a recovery with the same key succeeds")
		}
		return stolen{evidence, made}
	}},
}

// refOf returns the reference of a holder's certificate.
func refOf(t *testing.T, w *servertest.World, h *servertest.Holder) pki.CertRef {
	t.Helper()
	return pki.CertRef{Issuer: pki.IssuerOf(w.Issuing), Serial: servertest.Must(pki.SerialFromInt(h.Certificate.SerialNumber))(t)}
}

func TestRecoveriesAreRefused(t *testing.T) {
	t.Parallel()
	w := recoveryWorld(t, recoveryPolicy, false)
	holders := make([]*servertest.Holder, len(refusedRecoveries))
	for i, c := range refusedRecoveries {
		path := c.path
		if path == "" {
			path = "device/" + strings.ReplaceAll(c.name, " ", "-")
		}
		holders[i] = w.Enrolled(t, "device", path)
	}
	w.Clock.Advance(deviceLifetime - time.Minute)
	for i, c := range refusedRecoveries {
		if c.before != nil {
			holders[i] = c.before(t, w, holders[i])
		}
	}
	client := servertest.Must(enroll.NewClient(""))(t)
	refuse := func(name string, evidence enroll.Evidence, key crypto.Signer, rule pki.Rule) {
		t.Helper()
		before := rows(t, w, "certificates WHERE state <> 3")
		_, err := client.Enroll(t.Context(), presentedWith(factoryRequest(t, w, servertest.CSR(t, key)), evidence))
		if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != rule || refusal.Hint == "" {
			t.Errorf("%s: %v, want %s", name, err, rule)
		}
		if after := rows(t, w, "certificates WHERE state <> 3"); after != before {
			t.Errorf("%s: %d certificates were added", name, after-before)
		}
	}
	refuse("before the expiry", recovering(t, w, holders[0]), servertest.Key(t), pki.RuleRecoveryValid)
	w.Clock.Advance(12 * time.Minute) // those that were renewed have expired as well
	for i, c := range refusedRecoveries {
		h, key := holders[i], crypto.Signer(servertest.Key(t))
		if c.after != nil {
			h = c.after(t, w, h)
		}
		if c.key != nil {
			key = c.key(h)
		}
		evidence := recovering(t, w, h)
		if c.evidence != nil {
			evidence = c.evidence(t, w, h)
		}
		refuse(c.name, evidence, key, c.rule)
	}
	operator := w.NewOperator(t, "bob")
	late, often := w.Enrolled(t, "device", "device/late"), w.Enrolled(t, "device", "device/often")
	for range 2 {
		w.Clock.Advance(deviceLifetime + time.Minute)
		often = recovered(t, w, often)
	}
	w.Clock.Advance(deviceLifetime + time.Minute)
	refuse("too often", recovering(t, w, often), servertest.Key(t), pki.RuleRecoveryLimit)
	w.Clock.Advance(time.Hour)
	refuse("after the grace", recovering(t, w, late), servertest.Key(t), pki.RuleRecoveryGrace)
	refuse("of an operator", recovering(t, w, operator), servertest.Key(t), pki.RuleReserved)
}

// TestRecoveryNeedsTheSection enrolls with the default policy, which accepts no recoveries.
func TestRecoveryNeedsTheSection(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	device := w.Enrolled(t, "device", "device/1")
	client := servertest.Must(enroll.NewClient(""))(t)
	_, err := client.Enroll(t.Context(), presentedWith(factoryRequest(t, w, servertest.CSR(t, servertest.Key(t))), recovering(t, w, device)))
	if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != pki.RuleEvidenceKind {
		t.Errorf("%v, want %s", err, pki.RuleEvidenceKind)
	}
}

// TestRecoveryWithASecondKind requires the certificate of the manufacturer too. An identity that is tied to another device,
// or to none, does not recover.
func TestRecoveryWithASecondKind(t *testing.T) {
	t.Parallel()
	root, cameras := cameraFactory(t, "SN-1", "SN-2")
	w := recoveryWorld(t, "rules:\n- {name: tokens, evidence: [token]}\n"+
		"- {name: cameras, evidence: [x5c], when: 'x5c.source == \"cameras\"', identity: 'device/{x5c.serial}', register: true}\n"+
		"- {name: field, evidence: [recovery, x5c]}\n"+
		"recovery: {grace: 1h, times: 2}\nx5c: {cameras: {roots: "+quoted(pemOf(root))+"}}\n", false)
	client := servertest.Must(enroll.NewClient(""))(t)
	factory := servertest.Must(enroll.FactoryCertificate(cameras[0]))(t)
	other := servertest.Must(enroll.FactoryCertificate(cameras[1]))(t)
	key := servertest.Key(t)
	c := servertest.Must(client.Enroll(t.Context(), presentedWith(factoryRequest(t, w, servertest.CSR(t, key)), factory)))(t)
	camera, untied := w.Holder(t, c.Certificate.Raw, key), w.Enrolled(t, "device", "device/untied")
	w.Clock.Advance(deviceLifetime + time.Minute)
	for name, r := range map[string]struct {
		evidence []enroll.Evidence
		rule     pki.Rule
	}{
		"without the second kind":      {[]enroll.Evidence{recovering(t, w, camera)}, pki.RulePolicy},
		"with another device":          {[]enroll.Evidence{recovering(t, w, camera), other}, pki.RuleEvidenceConflict},
		"of an identity without a tie": {[]enroll.Evidence{other, recovering(t, w, untied)}, pki.RuleEvidenceConflict},
	} {
		_, err := client.Enroll(t.Context(), presentedWith(factoryRequest(t, w, servertest.CSR(t, servertest.Key(t))), r.evidence...))
		if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != r.rule {
			t.Errorf("%s: %v, want %s", name, err, r.rule)
		}
	}
	request := factoryRequest(t, w, servertest.CSR(t, servertest.Key(t)))
	servertest.Must(client.Enroll(t.Context(), presentedWith(request, factory, recovering(t, w, camera))))(t)
}

// quoted returns text as a YAML value in one line.
func quoted(text []byte) string {
	return `"` + strings.ReplaceAll(string(text), "\n", `\n`) + `"`
}
