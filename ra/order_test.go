package ra_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra/nonce"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

// presenting is evidence that calls a function after it was presented.
type presenting struct {
	enroll.Evidence
	then func(pki.Evidence)
}

func (p presenting) Present(ctx context.Context, request enroll.Presentation) (pki.Evidence, error) {
	e, err := p.Evidence.Present(ctx, request)
	p.then(e)
	return e, err
}

// enrollWith enrolls a key with the evidence of a camera, and a token if it is not nil. It calls then after the
// evidence was made. It returns the certificate, or the rule of the refusal.
func enrollWith(
	t *testing.T, w *servertest.World, camera tls.Certificate, token []byte, key crypto.Signer, then func(pki.Evidence),
) (*x509.Certificate, pki.Rule) {
	t.Helper()
	client := servertest.Must(enroll.NewClient(""))(t)
	var evidence []enroll.Evidence
	if token != nil {
		evidence = append(evidence, enroll.Token{Secret: servertest.Must(pki.TokenSecretFromBytes(token))(t)})
	}
	evidence = append(evidence, presenting{servertest.Must(enroll.FactoryCertificate(camera))(t), then})
	credential, err := client.Enroll(t.Context(), factoryRequest(t, w, servertest.CSR(t, key), evidence...))
	if refusal, ok := pki.AsRefusal(err); ok {
		return nil, refusal.Rule
	}
	if err != nil {
		t.Fatal(err)
	}
	return credential.Certificate, ""
}

func nothing(pki.Evidence) {}

// A token that replaces certificates and the evidence of a device that has another identity are refused together,
// before the certificates are revoked.
func TestForeignEvidenceSupersedesNothing(t *testing.T) {
	t.Parallel()
	root, cameras := cameraFactory(t, "SN-1", "SN-2")
	w := strictWorld(t, root, "")
	enrolledCamera(t, w, cameras[0], servertest.Key(t))
	other := w.Enrolled(t, "device", "device/other")
	if _, rule := enrollWith(t, w, cameras[0], w.Token(t, other.ID, true), servertest.Key(t), nothing); rule != pki.RuleEvidenceConflict {
		t.Errorf("evidence of a device with another identity: %q, want %s", rule, pki.RuleEvidenceConflict)
	}
	w.Status(t, other.Certificate, "good")
	next, rule := enrollWith(t, w, cameras[1], w.Token(t, other.ID, true), servertest.Key(t), nothing)
	if rule != "" {
		t.Fatalf("evidence of a device without an identity: %q", rule)
	}
	w.Status(t, next, "good")
	w.Status(t, other.Certificate, "superseded")
}

// Evidence that is about to expire is refused before certificates are revoked.
func TestExpiringEvidenceSupersedesNothing(t *testing.T) {
	t.Parallel()
	root, camera := manufacturer(t)
	w := strictWorld(t, root, "")
	device := enrolledCamera(t, w, camera, servertest.Key(t))
	late := func(pki.Evidence) { w.Clock.Advance(nonce.Lifetime - 5*time.Second) }
	if _, rule := enrollWith(t, w, camera, nil, servertest.Key(t), late); rule != pki.RuleEvidenceExpired {
		t.Errorf("evidence whose challenge is valid for 5 s: %q, want %s", rule, pki.RuleEvidenceExpired)
	}
	w.Status(t, device.Certificate, "good")

	other := w.Enrolled(t, "device", "device/other")
	token := servertest.Must(w.Operator.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{
		Identity: other.ID, Replace: true, Lifetime: durationpb.New(time.Minute),
	}))(t)
	w.Clock.Advance(55 * time.Second)
	_, err := w.Caller(t, nil).Enroll(t.Context(), servertest.Enrollment(t, w.Secret(t, token.GetToken()), servertest.Key(t)))
	servertest.Refused(t, err, codes.Unauthenticated, pki.RuleEvidenceExpired)
	w.Status(t, other.Certificate, "good")

	// For a first certificate, nothing is revoked, and the evidence need not be valid for longer than the request.
	fresh := w.Register(t, "device", "device/fresh")
	token = servertest.Must(w.Operator.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{
		Identity: fresh, Lifetime: durationpb.New(time.Minute),
	}))(t)
	w.Clock.Advance(50 * time.Second)
	w.Enroll(t, w.Secret(t, token.GetToken()), servertest.Key(t))
}

// A refused request registers no identity, whatever refuses it.
func TestRefusedRequestsRegisterNothing(t *testing.T) {
	t.Parallel()
	root, cameras := cameraFactory(t, "SN-1", "SN-2", "SN-3")
	w := strictWorld(t, root, ", keys: [P-256], limits: {rate: 1/1h}")
	taken := servertest.Key(t)
	w.Enroll(t, w.Token(t, w.Register(t, "device", "device/first"), false), taken)
	compromised := servertest.Key(t)
	w.Revoke(t, w.Enroll(t, w.Token(t, w.Register(t, "device", "device/second"), false), compromised).Certificate, "keyCompromise")
	before := rows(t, w, "identities")
	for name, c := range map[string]struct {
		key  crypto.Signer
		then func(pki.Evidence)
		rule pki.Rule
	}{
		"key of another identity": {taken, nothing, pki.RuleKeyInUse},
		"compromised key":         {compromised, nothing, pki.RuleKeyCompromised},
		"type of the key":         {servertest.Must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t), nothing, pki.RuleKeyType},
		"expired challenge":       {servertest.Key(t), func(pki.Evidence) { w.Clock.Advance(nonce.Lifetime) }, pki.RuleChallengeExpired},
	} {
		if _, rule := enrollWith(t, w, cameras[0], nil, c.key, c.then); rule != c.rule {
			t.Errorf("%s: %q, want %s", name, rule, c.rule)
		}
	}
	for _, c := range []struct {
		key  crypto.Signer
		code codes.Code
		rule pki.Rule
	}{{taken, codes.PermissionDenied, pki.RuleKeyInUse}, {compromised, codes.PermissionDenied, pki.RuleKeyCompromised}} {
		order := servertest.Order(t, "device/new", c.key)
		_, err := w.Operator.Orders(t, order).Of(order)
		servertest.Refused(t, err, c.code, c.rule)
	}
	if n := rows(t, w, "identities"); n != before {
		t.Errorf("refused requests registered %d identities", n-before)
	}
	enrolledCamera(t, w, cameras[0], servertest.Key(t)) // none of the refused requests was counted
	if _, rule := enrollWith(t, w, cameras[1], nil, servertest.Key(t), nothing); rule != pki.RulePolicyLimit {
		t.Errorf("above the rate: %q, want %s", rule, pki.RulePolicyLimit)
	}
	if n := rows(t, w, "identities"); n != before+1 {
		t.Errorf("%d identities were registered, want 1", n-before)
	}
}

// A device that repeats its request does not use up the rate of the rule.
func TestRepeatsAreNotCounted(t *testing.T) {
	t.Parallel()
	root, cameras := cameraFactory(t, "SN-1", "SN-2", "SN-3")
	w := strictWorld(t, root, ", limits: {rate: 2/1h}")
	client := servertest.Must(enroll.NewClient(""))(t)
	evidence := servertest.Must(enroll.FactoryCertificate(cameras[0]))(t)
	request := factoryRequest(t, w, servertest.CSR(t, servertest.Key(t)), evidence)
	for i := range 5 {
		if _, err := client.Enroll(t.Context(), request); err != nil {
			t.Fatalf("request %d: %v", i+1, err)
		}
	}
	enrolledCamera(t, w, cameras[1], servertest.Key(t))
	if _, rule := enrollWith(t, w, cameras[2], nil, servertest.Key(t), nothing); rule != pki.RulePolicyLimit {
		t.Errorf("the third device: %q, want %s", rule, pki.RulePolicyLimit)
	}
}

// The log has refused enrollments whose identity is not known: with the kind and digest of the evidence, and without
// what the evidence says about a device or person.
func TestRefusedEvidenceIsInTheLog(t *testing.T) {
	t.Parallel()
	root, camera := manufacturer(t)
	_, foreign := manufacturer(t)
	w := servertest.New(t, ground, servertest.Options{Policy: fmt.Appendf(nil, `
x5c:
  cameras:
    roots: %q
rules:
- {name: tokens, evidence: [token]}
- {name: none, evidence: [x5c], when: 'x5c.source == "cameras" && x5c.serial == "none"', identity: "device/{x5c.serial}"}
`, pemOf(root))})
	before := len(w.Entries(t, 0))
	var want []string
	note := func(rule pki.Rule) func(e pki.Evidence) {
		return func(e pki.Evidence) {
			// The server encodes x5c evidence from its fields in protobuf, and gets the same bytes.
			want = append(want, fmt.Sprintf("%s x5c:%x", rule, sha256.Sum256(e.Value)))
		}
	}
	if _, rule := enrollWith(t, w, camera, nil, servertest.Key(t), note(pki.RulePolicy)); rule != pki.RulePolicy {
		t.Errorf("without a rule: %q, want %s", rule, pki.RulePolicy)
	}
	if _, rule := enrollWith(t, w, foreign, nil, servertest.Key(t), note(pki.RuleEvidenceUntrusted)); rule != pki.RuleEvidenceUntrusted {
		t.Errorf("of another manufacturer: %q, want %s", rule, pki.RuleEvidenceUntrusted)
	}
	unknown := []byte(strings.Repeat("s", 32))
	for _, secret := range [][]byte{unknown, []byte("hunter2")} {
		_, err := w.Caller(t, nil).Enroll(t.Context(), servertest.Enrollment(t, secret, servertest.Key(t)))
		servertest.Refused(t, err, codes.Unauthenticated, pki.RuleToken)
	}
	want = append(want, fmt.Sprintf("%s token:%x", pki.RuleToken, sha256.Sum256(unknown)), fmt.Sprintf("%s token", pki.RuleToken))
	var got []string
	for _, e := range w.Entries(t, before) {
		if e.Action != translog.RequestRefused {
			continue
		}
		facts := e.Facts()
		got = append(got, facts["rule"]+" "+facts["evidence"])
		if !e.Identity.IsZero() || facts["detail"] != "" {
			t.Errorf("the entry is about %q, with the detail %q, want neither", e.Identity, facts["detail"])
		}
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("the log has the refusals\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
