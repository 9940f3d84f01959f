package server_test

import (
	"crypto"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// pattern returns a request for a token for sensors.
func pattern() *brevetv1.CreateTokenRequest {
	return &brevetv1.CreateTokenRequest{
		Pattern: "sensor/S[0-9]{6}", Spec: &brevetv1.IdentitySpec{Kind: servertest.Kind("device"), Labels: map[string]string{"line": "7"}},
	}
}

// secretFor creates a token and returns its secret.
func secretFor(t *testing.T, w *servertest.World, req *brevetv1.CreateTokenRequest) []byte {
	t.Helper()
	return w.Secret(t, servertest.Must(w.Operator.CreateToken(t.Context(), req))(t).GetToken())
}

// enrollmentOf returns a request to enroll an identity that the caller names.
func enrollmentOf(t *testing.T, secret []byte, key crypto.Signer, identity string) *brevetv1.EnrollRequest {
	t.Helper()
	req := servertest.Enrollment(t, secret, key)
	req.Identity = identity
	return req
}

// TestPatternTokens enrolls with a token for a pattern. The server registers the identity, repeats its response, and
// refuses everything else.
func TestPatternTokens(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	created := servertest.Must(w.Operator.CreateToken(t.Context(), pattern()))(t)
	secret, key := w.Secret(t, created.GetToken()), servertest.Key(t)
	device := w.Caller(t, nil)
	for what, c := range map[string]struct {
		identity string
		rule     pki.Rule
	}{
		"no identity":         {"", pki.RuleTokenIdentity},
		"another serial":      {"sensor/S17", pki.RuleTokenIdentity},
		"a longer path":       {"sensor/S000017/x", pki.RuleTokenIdentity},
		"another segment":     {"pump/S000017", pki.RuleTokenIdentity},
		"a reserved identity": {"brevet/operator/alice", pki.RuleTokenIdentity},
	} {
		_, err := device.Enroll(t.Context(), enrollmentOf(t, secret, key, c.identity))
		if got := servertest.RuleOf(err); got != c.rule {
			t.Errorf("%s: %v, want a refusal by %s", what, err, c.rule)
		}
	}
	_, err := device.Enroll(t.Context(), enrollmentOf(t, secret, key, "spiffe://other.example/sensor/S000017"))
	servertest.Refused(t, err, codes.InvalidArgument, pki.RuleTrustDomain)

	req := enrollmentOf(t, secret, key, "sensor/S000017")
	first := servertest.Must(device.Enroll(t.Context(), req))(t).GetCredential().GetCertificate()
	holder := w.Holder(t, first, key)
	if holder.ID != "spiffe://fleet.example/sensor/S000017" {
		t.Errorf("the certificate names %s", holder.ID)
	}
	if again := servertest.Must(device.Enroll(t.Context(), req))(t).GetCredential().GetCertificate(); string(again) != string(first) {
		t.Error("the repeated request got another certificate")
	}
	id := servertest.Must(w.Operator.GetIdentity(t.Context(), &brevetv1.GetIdentityRequest{Id: holder.ID}))(t).GetIdentity()
	if id.GetProfile() != "device" || id.GetLabels()["line"] != "7" || id.GetState() != brevetv1.IdentityState_IDENTITY_STATE_ENROLLED {
		t.Errorf("the identity is %v", id)
	}
	list := servertest.Must(w.Operator.ListTokens(t.Context(), &brevetv1.ListTokensRequest{Identity: holder.ID}))(t).GetTokens()
	if len(list) != 1 || list[0].GetId() != created.GetTokenId() || list[0].GetPattern() != "sensor/S[0-9]{6}" || list[0].GetKind() != servertest.Kind("device") ||
		list[0].GetState() != brevetv1.TokenState_TOKEN_STATE_SPENT {
		t.Errorf("the tokens of the identity are %v", list)
	}

	_, err = device.Enroll(t.Context(), enrollmentOf(t, secret, servertest.Key(t), "sensor/S000018"))
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleTokenBound)
	_, err = w.Operator.GetIdentity(t.Context(), &brevetv1.GetIdentityRequest{Id: "sensor/S000018"})
	servertest.Refused(t, err, codes.NotFound, pki.RuleIdentity)
	_, err = device.Enroll(t.Context(), enrollmentOf(t, secretFor(t, w, pattern()), servertest.Key(t), "sensor/S000017"))
	servertest.Refused(t, err, codes.FailedPrecondition, pki.RuleAlreadyEnrolled)
	w.Renewed(t, holder, servertest.Key(t))
}

// TestPatternTokensOfRegisteredIdentities enrolls identities that an operator has registered before.
func TestPatternTokensOfRegisteredIdentities(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	labelled := func(name, value string) func(*brevetv1.CreateIdentityRequest) {
		return func(r *brevetv1.CreateIdentityRequest) { r.Spec.Labels = map[string]string{name: value} }
	}
	secret, device := secretFor(t, w, pattern()), w.Caller(t, nil)
	refused := func(what, identity string, code codes.Code, rule pki.Rule) {
		t.Helper()
		_, err := device.Enroll(t.Context(), enrollmentOf(t, secret, servertest.Key(t), identity))
		t.Log(what)
		servertest.Refused(t, err, code, rule)
	}
	w.Register(t, "device", "sensor/S000001")
	refused("without the labels", "sensor/S000001", codes.FailedPrecondition, pki.RuleIdentityExists)
	w.Register(t, "device", "sensor/S000002", labelled("line", "7"), func(r *brevetv1.CreateIdentityRequest) {
		r.Spec.Names = []*brevetv1.Name{{Kind: &brevetv1.Name_Dns{Dns: "s2.fleet.example"}}}
	})
	refused("with a name", "sensor/S000002", codes.FailedPrecondition, pki.RuleIdentityExists)
	w.Register(t, "workload", "sensor/S000003", labelled("line", "7"))
	refused("another kind", "sensor/S000003", codes.FailedPrecondition, pki.RuleIdentityExists)
	w.Register(t, "device", "sensor/S000004", labelled("line", "7"), func(r *brevetv1.CreateIdentityRequest) {
		r.Spec.EvidenceSubject = "tpm:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
	})
	refused("tied to a TPM", "sensor/S000004", codes.PermissionDenied, pki.RuleEvidenceConflict)
	w.Suspend(t, w.Register(t, "device", "sensor/S000005", labelled("line", "7")))
	refused("suspended", "sensor/S000005", codes.FailedPrecondition, pki.RuleIdentityState)
	same := w.Register(t, "device", "sensor/S000006", labelled("line", "7"))
	servertest.Must(device.Enroll(t.Context(), enrollmentOf(t, secret, servertest.Key(t), same)))(t)
}

// TestDevicesRaceOneToken lets devices enroll different identities with one token at once. One enrolls, and nothing is
// left of the others.
func TestDevicesRaceOneToken(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	secret := secretFor(t, w, pattern())
	identities := []string{"sensor/S000001", "sensor/S000002", "sensor/S000003", "sensor/S000004"}
	errs := make([]error, len(identities))
	var all sync.WaitGroup
	for i, identity := range identities {
		device, req := w.Caller(t, nil), enrollmentOf(t, secret, servertest.Key(t), identity)
		all.Go(func() { _, errs[i] = device.Enroll(t.Context(), req) })
	}
	all.Wait()
	enrolled := 0
	for i, err := range errs {
		if err == nil {
			enrolled++
			continue
		}
		servertest.Refused(t, err, codes.PermissionDenied, pki.RuleTokenBound)
		_, err := w.Operator.GetIdentity(t.Context(), &brevetv1.GetIdentityRequest{Id: identities[i]})
		servertest.Refused(t, err, codes.NotFound, pki.RuleIdentity)
	}
	if enrolled != 1 {
		t.Errorf("%d devices enrolled with one token", enrolled)
	}
}

// TestTokensRaceOneIdentity lets two devices enroll one identity, each with a token of its own. One enrolls, and the
// token of the other can still enroll another identity.
func TestTokensRaceOneIdentity(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	secrets := [][]byte{secretFor(t, w, pattern()), secretFor(t, w, pattern())}
	var errs [2]error
	var all sync.WaitGroup
	for i := range secrets {
		device, req := w.Caller(t, nil), enrollmentOf(t, secrets[i], servertest.Key(t), "sensor/S000017")
		all.Go(func() { _, errs[i] = device.Enroll(t.Context(), req) })
	}
	all.Wait()
	if (errs[0] == nil) == (errs[1] == nil) {
		t.Fatalf("the devices got %v", errs)
	}
	lost := 0
	if errs[0] == nil {
		lost = 1
	}
	servertest.Refused(t, errs[lost], codes.FailedPrecondition, pki.RuleAlreadyEnrolled)
	servertest.Must(w.Caller(t, nil).Enroll(t.Context(), enrollmentOf(t, secrets[lost], servertest.Key(t), "sensor/S000018")))(t)
}

// TestTokensOfNetworksAndKeys uses tokens elsewhere than in their network, and for another key.
func TestTokensOfNetworksAndKeys(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	key := servertest.Key(t)
	hash := servertest.Must(pki.HashKey(key.Public()))(t)
	req := pattern()
	req.Networks, req.KeyHash = []string{"127.0.0.3/32", "2001:db8::/32"}, hash.Bytes()
	secret := secretFor(t, w, req)
	inside, outside := w.Caller(t, nil, from("127.0.0.3")), w.Caller(t, nil, from("127.0.0.4"))
	_, err := outside.Enroll(t.Context(), enrollmentOf(t, secret, key, "sensor/S000017"))
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleTokenNetwork)
	_, err = inside.Enroll(t.Context(), enrollmentOf(t, secret, servertest.Key(t), "sensor/S000017"))
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleTokenKey)
	_, err = w.Operator.GetIdentity(t.Context(), &brevetv1.GetIdentityRequest{Id: "sensor/S000017"})
	servertest.Refused(t, err, codes.NotFound, pki.RuleIdentity)
	servertest.Must(inside.Enroll(t.Context(), enrollmentOf(t, secret, key, "sensor/S000017")))(t)

	unknown := make([]byte, 32) // a caller without the secret learns nothing
	_, err = outside.Enroll(t.Context(), enrollmentOf(t, unknown, key, "sensor/S000017"))
	servertest.Refused(t, err, codes.Unauthenticated, pki.RuleToken)
	ordinary := servertest.Must(w.Operator.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{
		Identity: w.Register(t, "device", "device/1"), Networks: []string{"127.0.0.3/8"},
	}))(t)
	secret = w.Secret(t, ordinary.GetToken())
	_, err = inside.Enroll(t.Context(), enrollmentOf(t, secret, servertest.Key(t), "device/2"))
	servertest.Refused(t, err, codes.Unauthenticated, pki.RuleEvidenceMismatch)
	servertest.Must(outside.Enroll(t.Context(), enrollmentOf(t, secret, servertest.Key(t), "device/1")))(t)
	list := servertest.Must(w.Operator.ListTokens(t.Context(), &brevetv1.ListTokensRequest{Identity: "device/1"}))(t).GetTokens()
	if len(list) != 1 || len(list[0].GetNetworks()) != 1 || list[0].GetNetworks()[0] != "127.0.0.0/8" || list[0].GetPattern() != "" {
		t.Errorf("the tokens of device/1 are %v", list)
	}
}

func TestRefusedPatternTokens(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	device := w.Register(t, "device", "device/1")
	for what, c := range map[string]struct {
		edit func(*brevetv1.CreateTokenRequest)
		rule pki.Rule
	}{
		"neither identity nor pattern": {func(r *brevetv1.CreateTokenRequest) { r.Pattern, r.Spec = "", nil }, pki.RuleRequest},
		"identity and pattern":         {func(r *brevetv1.CreateTokenRequest) { r.Identity = device }, pki.RuleRequest},
		"identity and spec":            {func(r *brevetv1.CreateTokenRequest) { r.Identity, r.Pattern = device, "" }, pki.RuleRequest},
		"no spec":                      {func(r *brevetv1.CreateTokenRequest) { r.Spec = nil }, pki.RuleRequest},
		"replace":                      {func(r *brevetv1.CreateTokenRequest) { r.Replace = true }, pki.RuleRequest},
		"a pattern of all identities":  {func(r *brevetv1.CreateTokenRequest) { r.Pattern = ".*" }, pki.RuleRequest},
		"reserved identities":          {func(r *brevetv1.CreateTokenRequest) { r.Pattern = "brevet/operator/[a-z]+" }, pki.RuleReserved},
		"operators":                    {func(r *brevetv1.CreateTokenRequest) { r.Spec.Kind = servertest.Kind("operator") }, pki.RuleRequest},
		"no kind":                      {func(r *brevetv1.CreateTokenRequest) { r.Spec.Kind = 0 }, pki.RuleRequest},
		"an unknown profile":           {func(r *brevetv1.CreateTokenRequest) { r.Spec.Profile = "fast" }, pki.RuleProfile},
		"a profile of another kind":    {func(r *brevetv1.CreateTokenRequest) { r.Spec.Profile = "operator" }, pki.RuleAccess},
		"a label without a name":       {func(r *brevetv1.CreateTokenRequest) { r.Spec.Labels = map[string]string{"": "x"} }, pki.RuleRequest},
		"names": {func(r *brevetv1.CreateTokenRequest) {
			r.Spec.Names = []*brevetv1.Name{{Kind: &brevetv1.Name_Dns{Dns: "s.fleet.example"}}}
		}, pki.RuleRequest},
		"evidence": {func(r *brevetv1.CreateTokenRequest) {
			r.Spec.EvidenceSubject = "tpm:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
		}, pki.RuleRequest},
		"no network":       {func(r *brevetv1.CreateTokenRequest) { r.Networks = []string{"10.2.0.0"} }, pki.RuleRequest},
		"a mapped network": {func(r *brevetv1.CreateTokenRequest) { r.Networks = []string{"::ffff:10.2.0.0/112"} }, pki.RuleRequest},
		"many networks":    {func(r *brevetv1.CreateTokenRequest) { r.Networks = make([]string, 17) }, pki.RuleRequest},
		"a short key hash": {func(r *brevetv1.CreateTokenRequest) { r.KeyHash = []byte{1} }, pki.RuleRequest},
	} {
		req := pattern()
		c.edit(req)
		for i := range req.GetNetworks() {
			if req.Networks[i] == "" {
				req.Networks[i] = "10.2.0.0/16"
			}
		}
		_, err := w.Operator.CreateToken(t.Context(), req)
		if got := servertest.RuleOf(err); got != c.rule {
			t.Errorf("%s: %v, want a refusal by %s", what, err, c.rule)
		}
	}
	if list := servertest.Must(w.Operator.ListTokens(t.Context(), &brevetv1.ListTokensRequest{States: []brevetv1.TokenState{brevetv1.TokenState_TOKEN_STATE_OPEN}}))(t).GetTokens(); len(list) != 0 {
		t.Errorf("the refused requests created %v", list)
	}
}
