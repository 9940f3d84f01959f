package acme_test

import (
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/brevet-pki/brevet/pki"
	racme "github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/server/authz"
)

// want checks the status and the type of the problem in a response.
func want(t *testing.T, what string, got response, status int, problem string) {
	t.Helper()
	if got.status != status || got.problem() != problem {
		t.Errorf("%s: got %d %s (%s), want %d %s", what, got.status, got.problem(), got.body, status, problem)
	}
	if problem != "" && (got.header.Get("Content-Type") != "application/problem+json" || got.text("detail") == "") {
		t.Errorf("%s: the problem has no detail, or the Content-Type %q", what, got.header.Get("Content-Type"))
	}
}

func TestDirectoryAndNonces(t *testing.T) {
	w := newWorld(t)
	r := w.get("/acme/directory")
	meta, _ := r.object["meta"].(map[string]any)
	profiles, _ := meta["profiles"].(map[string]any)
	if r.status != http.StatusOK || meta["externalAccountRequired"] != true || profiles["acme"] != "TLS servers" || meta["termsOfService"] != nil {
		t.Errorf("the directory is %s", r.body)
	}
	for _, name := range []string{"newNonce", "newAccount", "newOrder", "revokeCert", "keyChange", "renewalInfo"} {
		if url, _ := r.object[name].(string); !strings.HasPrefix(url, w.url+"/acme/") {
			t.Errorf("%s is %q", name, url)
		}
	}
	head, get := w.send(http.MethodHead, w.at("newNonce"), "", ""), w.get("newNonce")
	if head.status != http.StatusOK || get.status != http.StatusNoContent {
		t.Errorf("newNonce has the statuses %d and %d", head.status, get.status)
	}
	for _, r := range []response{head, get} {
		if r.header.Get("Replay-Nonce") == "" || r.header.Get("Cache-Control") != "no-store" ||
			r.header.Get("Link") != "<"+w.url+`/acme/directory>;rel="index"` {
			t.Errorf("newNonce has the headers %v", r.header)
		}
	}
	if head.header.Get("Replay-Nonce") == get.header.Get("Replay-Nonce") {
		t.Error("two nonces are the same")
	}
	c := w.optionalBinding().registered()
	if r := c.post("/acme/directory", ""); r.status != http.StatusOK || r.text("newOrder") == "" {
		t.Errorf("the directory by POST-as-GET: %+v", r)
	}
	if r := c.post("newNonce", ""); r.status != http.StatusNoContent {
		t.Errorf("newNonce by POST-as-GET: %+v", r)
	}
}

func TestNoncesAreUsedOnce(t *testing.T) {
	w := newWorld(t).optionalBinding()
	c := w.registered()
	url := w.at("newOrder")
	body := c.sign(url, `{"identifiers":[{"type":"dns","value":"host.fleet.example"}]}`, nil)
	want(t, "the first", w.post(url, body), http.StatusCreated, "")
	again := w.post(url, body)
	want(t, "the same again", again, http.StatusBadRequest, "badNonce")
	next := again.header.Get("Replay-Nonce")
	want(t, "with the nonce of the refusal", c.postWith("newOrder", `{"identifiers":[{"type":"dns","value":"host.fleet.example"}]}`,
		map[string]any{"nonce": next}), http.StatusCreated, "")

	// A request whose signature does not verify does not use its nonce up.
	nonce := w.nonce()
	stranger := w.client()
	stranger.kid = c.kid
	r := stranger.postWith("newOrder", `{}`, map[string]any{"nonce": nonce})
	want(t, "by a stranger", r, http.StatusBadRequest, "malformed")
	want(t, "by the account", c.postWith(c.kid, ``, map[string]any{"nonce": nonce}), http.StatusOK, "")

	// Another process has another key.
	other := newWorld(t)
	want(t, "of another process", c.postWith("newOrder", `{}`, map[string]any{"nonce": other.nonce()}), http.StatusBadRequest, "badNonce")
	for _, nonce := range []string{"x", "****", strings.Repeat("A", 150), w.nonce() + "A"} {
		want(t, "the nonce "+nonce, c.postWith("newOrder", `{}`, map[string]any{"nonce": nonce}), http.StatusBadRequest, "badNonce")
	}
}

func (c *client) bind(kid string, secret []byte, url string, key crypto.PublicKey) string {
	c.w.t.Helper()
	return c.bindWith(jose.HS256, kid, secret, url, key)
}

// bindWith returns a request for an account with an external account binding.
func (c *client) bindWith(alg jose.SignatureAlgorithm, kid string, secret []byte, url string, key crypto.PublicKey) string {
	c.w.t.Helper()
	payload, err := json.Marshal(jose.JSONWebKey{Key: key})
	if err != nil {
		c.w.t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: secret},
		(&jose.SignerOptions{}).WithHeader("kid", kid).WithHeader("url", url))
	if err != nil {
		c.w.t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		c.w.t.Fatal(err)
	}
	return `{"externalAccountBinding":` + signed.FullSerialize() + `}`
}

func TestExternalAccountBinding(t *testing.T) {
	w := newWorld(t)
	c, other := w.client(), w.client()
	url, secret := w.at("newAccount"), w.authority.secrets["kid-1"]
	want(t, "without a binding", c.post("newAccount", `{}`), http.StatusForbidden, "externalAccountRequired")
	want(t, "of another account's key", c.post("newAccount", c.bind("kid-1", secret, url, other.key.Public())), http.StatusBadRequest, "malformed")
	want(t, "for another URL", c.post("newAccount", c.bind("kid-1", secret, url+"/", c.key.Public())), http.StatusBadRequest, "malformed")
	want(t, "with another secret", c.post("newAccount", c.bind("kid-1", make([]byte, 32), url, c.key.Public())), http.StatusUnauthorized, "unauthorized")
	want(t, "of an unknown kid", c.post("newAccount", c.bind("kid-2", secret, url, c.key.Public())), http.StatusUnauthorized, "unauthorized")
	r := c.post("newAccount", c.bind("kid-1", secret, url, c.key.Public()))
	want(t, "the binding", r, http.StatusCreated, "")
	want(t, "a used kid", other.post("newAccount", other.bind("kid-1", secret, url, other.key.Public())), http.StatusUnauthorized, "unauthorized")
	again := c.post("newAccount", `{"onlyReturnExisting":true}`)
	want(t, "the account again", again, http.StatusOK, "")
	if again.header.Get("Location") != r.header.Get("Location") || !strings.HasPrefix(r.header.Get("Location"), w.url+"/acme/account/") {
		t.Errorf("the account is at %q and at %q", r.header.Get("Location"), again.header.Get("Location"))
	}
	want(t, "no account", other.post("newAccount", `{"onlyReturnExisting":true}`), http.StatusBadRequest, "accountDoesNotExist")
}

func TestAccounts(t *testing.T) {
	w := newWorld(t).optionalBinding()
	c, other := w.registered(), w.registered()
	r := c.post(c.kid, `{"contact":["mailto:admin@fleet.example"]}`)
	want(t, "a contact", r, http.StatusOK, "")
	if r := c.post(c.kid, ""); !strings.Contains(r.body, "mailto:admin@fleet.example") || r.object["orders"] != nil {
		t.Errorf("the account is %s", r.body)
	}
	want(t, "an unknown member", c.post(c.kid, `{"key":1}`), http.StatusOK, "")
	want(t, "another status", c.post(c.kid, `{"status":"revoked"}`), http.StatusBadRequest, "malformed")
	want(t, "not an object", c.post(c.kid, `[]`), http.StatusBadRequest, "malformed")

	// Of another account, every response is like that of an account that does not exist.
	one, two := c.post(other.kid, ""), c.post("/acme/account/"+racme.NewID().String(), "")
	want(t, "another account", one, http.StatusBadRequest, "accountDoesNotExist")
	if one.body != two.body {
		t.Errorf("the account of another client is %s, and one that does not exist %s", one.body, two.body)
	}
	want(t, "deactivate another account", c.post(other.kid, `{"status":"deactivated"}`), http.StatusBadRequest, "accountDoesNotExist")
	want(t, "deactivate", c.post(c.kid, `{"status":"deactivated"}`), http.StatusOK, "")
	want(t, "afterwards", c.post("newOrder", `{}`), http.StatusUnauthorized, "unauthorized")
	stranger := w.client()
	stranger.kid = c.kid
	want(t, "a stranger", stranger.post("newOrder", `{}`), http.StatusBadRequest, "malformed")
}

func (c *client) change(to *client, account string, old crypto.PublicKey) string {
	c.w.t.Helper()
	payload, err := json.Marshal(map[string]any{"account": account, "oldKey": jose.JSONWebKey{Key: old}})
	if err != nil {
		c.w.t.Fatal(err)
	}
	return to.sign(c.w.at("keyChange"), string(payload), map[string]any{"nonce": nil})
}

func TestKeyChange(t *testing.T) {
	w := newWorld(t).optionalBinding()
	c, other, next := w.registered(), w.registered(), w.client()
	key := func(c *client) *client { return &client{w: c.w, key: c.key, alg: c.alg} }
	r := c.post("keyChange", c.change(key(other), c.kid, c.key.Public()))
	want(t, "the key of another account", r, http.StatusConflict, "malformed")
	if r.header.Get("Location") != other.kid {
		t.Errorf("the conflict is with %q", r.header.Get("Location"))
	}
	want(t, "another account", c.post("keyChange", c.change(next, other.kid, c.key.Public())), http.StatusBadRequest, "malformed")
	want(t, "another old key", c.post("keyChange", c.change(next, c.kid, other.key.Public())), http.StatusBadRequest, "malformed")
	want(t, "a nonce inside", c.post("keyChange", next.sign(w.at("keyChange"), `{}`, nil)), http.StatusBadRequest, "malformed")
	want(t, "no inner JWS", c.post("keyChange", `{}`), http.StatusBadRequest, "malformed")
	want(t, "the new key", c.post("keyChange", c.change(next, c.kid, c.key.Public())), http.StatusOK, "")
	want(t, "by the old key", c.post(c.kid, ""), http.StatusBadRequest, "malformed")
	next.kid = c.kid
	want(t, "by the new key", next.post(c.kid, ""), http.StatusOK, "")
}

func TestOrderToRevocation(t *testing.T) {
	w := newWorld(t).optionalBinding()
	c, other := w.registered(), w.registered()
	o := w.ready(c)
	if o.text("status") != "ready" || o.text("profile") != "acme" || o.text("expires") == "" {
		t.Fatalf("the order is %s", o.body)
	}
	text, certKey := csr(t, &x509.CertificateRequest{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	body := `{"csr":"` + text + `"}`
	want(t, "by another account", other.post(o.text("finalize"), body), http.StatusNotFound, "malformed")
	want(t, "no CSR", c.post(o.text("finalize"), `{}`), http.StatusBadRequest, "badCSR")
	want(t, "PEM", c.post(o.text("finalize"), `{"csr":"-----BEGIN"}`), http.StatusBadRequest, "badCSR")
	final := c.post(o.text("finalize"), body)
	want(t, "finalize", final, http.StatusOK, "")
	if final.text("status") != "valid" || final.header.Get("Location") != o.header.Get("Location") {
		t.Fatalf("the order is %+v", final)
	}
	url := final.text("certificate")
	want(t, "the certificate for another account", other.post(url, ""), http.StatusNotFound, "malformed")
	want(t, "with a payload", c.post(url, "{}"), http.StatusBadRequest, "malformed")
	chain := c.post(url, "")
	if chain.header.Get("Content-Type") != "application/pem-certificate-chain" || strings.Contains(strings.Join(chain.header.Values("Link"), ","), `rel="up"`) {
		t.Errorf("the certificate has the headers %v", chain.header)
	}
	block, rest := pem.Decode([]byte(chain.body))
	if block == nil || len(rest) == 0 {
		t.Fatalf("the chain is %q", chain.body)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil || leaf.CheckSignatureFrom(w.authority.ca) != nil {
		t.Fatalf("the certificate is not from the CA: %v", err)
	}
	revocation := `{"certificate":"` + base64.RawURLEncoding.EncodeToString(block.Bytes) + `","reason":4}`
	strangerKey := &client{w: &w.target, key: other.key, alg: jose.ES256}
	want(t, "revoke with another key", strangerKey.post("revokeCert", revocation), http.StatusForbidden, "unauthorized")
	want(t, "revoke without certificate", c.post("revokeCert", `{}`), http.StatusBadRequest, "malformed")
	byCertificate := &client{w: &w.target, key: certKey, alg: jose.ES256}
	want(t, "revoke with the certificate's key", byCertificate.post("revokeCert", revocation), http.StatusOK, "")
	want(t, "revoke again", c.post("revokeCert", revocation), http.StatusBadRequest, "alreadyRevoked")
	for _, r := range w.authority.revoked {
		if !r.Account.IsZero() || r.Reason != 4 {
			t.Errorf("the revocation is %+v", r)
		}
	}
}

func TestObjectsOfAnotherAccount(t *testing.T) {
	w := newWorld(t).optionalBinding()
	c, other := w.registered(), w.registered()
	o := c.order("dns", "host.fleet.example")
	challenges, authorization := c.challenges(o)
	random := racme.NewID().String()
	for what, pair := range map[string][2]string{
		"order":         {o.header.Get("Location"), "/acme/order/" + random},
		"authorization": {authorization, "/acme/authorization/" + random},
		"challenge":     {fmt.Sprint(challenges["http-01"]["url"]), "/acme/challenge/" + random + "/http-01"},
		"finalize":      {o.text("finalize"), "/acme/order/" + random + "/finalize"},
	} {
		payload := map[string]string{"finalize": `{"csr":"AAAA"}`}[what]
		theirs, none := other.post(pair[0], payload), other.post(pair[1], payload)
		if theirs.status != none.status || theirs.body != none.body {
			t.Errorf("%s: of another account %s, and one that does not exist %s", what, theirs.body, none.body)
		}
		if what == "challenge" {
			want(t, what, other.post(pair[0], "{}"), http.StatusNotFound, "malformed")
		}
	}
	want(t, "deactivate", other.post(authorization, `{"status":"deactivated"}`), http.StatusNotFound, "malformed")
	if z := c.post(authorization, ""); z.text("status") != "pending" {
		t.Errorf("the authorization is %s", z.body)
	}
	want(t, "deactivate one's own", c.post(authorization, `{"status":"deactivated"}`), http.StatusOK, "")
}

func TestRefusedOrders(t *testing.T) {
	w := newWorld(t).optionalBinding()
	c := w.registered()
	names := func(n int, value string) string {
		return `{"identifiers":[` + strings.TrimSuffix(strings.Repeat(`{"type":"dns","value":"`+value+`"},`, n), ",") + `]}`
	}
	for what, r := range map[string]struct {
		payload string
		status  int
		problem string
	}{
		"10,000 names":         {names(10_000, "host.fleet.example"), http.StatusRequestEntityTooLarge, "malformed"},
		"101 names":            {names(101, "host.fleet.example"), http.StatusBadRequest, "rejectedIdentifier"},
		"no names":             {names(0, ""), http.StatusBadRequest, "malformed"},
		"a trailing dot":       {names(1, "host.fleet.example."), http.StatusBadRequest, "rejectedIdentifier"},
		"an address as name":   {names(1, "192.0.2.1"), http.StatusBadRequest, "rejectedIdentifier"},
		"Unicode":              {names(1, "b\u00fccher.fleet.example"), http.StatusBadRequest, "rejectedIdentifier"},
		"the Kelvin sign":      {names(1, "\u212aelvin.fleet.example"), http.StatusBadRequest, "rejectedIdentifier"},
		"another type":         {`{"identifiers":[{"type":"email","value":"a@fleet.example"}]}`, http.StatusBadRequest, "unsupportedIdentifier"},
		"notBefore":            {`{"identifiers":[{"type":"dns","value":"host.fleet.example"}],"notBefore":"2026-01-01T00:00:00Z"}`, http.StatusBadRequest, "malformed"},
		"notAfter":             {`{"identifiers":[{"type":"dns","value":"host.fleet.example"}],"notAfter":"2026-01-01T00:00:00Z"}`, http.StatusBadRequest, "malformed"},
		"an unknown profile":   {`{"identifiers":[{"type":"dns","value":"host.fleet.example"}],"profile":"x"}`, http.StatusBadRequest, "invalidProfile"},
		"a malformed replaces": {`{"identifiers":[{"type":"dns","value":"host.fleet.example"}],"replaces":"x"}`, http.StatusBadRequest, "malformed"},
		"identifiers twice":    {`{"identifiers":[],"identifiers":[]}`, http.StatusBadRequest, "malformed"},
	} {
		want(t, what, c.post("newOrder", r.payload), r.status, r.problem)
	}
	several := c.post("newOrder", `{"identifiers":[{"type":"dns","value":"a..b"},{"type":"dns","value":"host.fleet.example"},{"type":"x","value":"y"}]}`)
	want(t, "two of three", several, http.StatusBadRequest, "rejectedIdentifier")
	subproblems, _ := several.object["subproblems"].([]any)
	if len(subproblems) != 2 || !strings.Contains(several.body, `"identifier":{"type":"dns","value":"a..b"}`) {
		t.Errorf("the subproblems are %s", several.body)
	}
}

func TestFailedValidation(t *testing.T) {
	w := newWorld(t).optionalBinding()
	c := w.registered()
	o := c.order("ip", "127.0.0.1")
	challenges, authorization := c.challenges(o)
	url := fmt.Sprint(challenges["http-01"]["url"])
	if r := c.post(url, ""); r.text("status") != "pending" {
		t.Errorf("reading the challenge starts it: %s", r.body)
	}
	hold := w.hold() // while the host does not respond, the response to the client does not wait for it
	begun := c.post(url, "{}")
	if begun.text("status") != "processing" || !strings.Contains(strings.Join(begun.header.Values("Link"), ","), "<"+authorization+`>;rel="up"`) {
		t.Errorf("the challenge is %+v", begun)
	}
	hold()
	z := c.wait(authorization, "pending")
	failed := c.post(url, "{}")
	problem, _ := failed.object["error"].(map[string]any)
	if z.text("status") != "invalid" || failed.text("status") != "invalid" || problem["type"] != "urn:ietf:params:acme:error:incorrectResponse" {
		t.Errorf("the challenge is %s", failed.body)
	}
	want(t, "finalize", c.post(o.text("finalize"), `{"csr":"AAAA"}`), http.StatusForbidden, "orderNotReady")
	want(t, "another type of challenge", c.post(strings.Replace(url, "http-01", "dns-01", 1), "{}"), http.StatusNotFound, "malformed")
}

// renewalWindow returns the length of the renewal window in a response.
func renewalWindow(t *testing.T, r response) time.Duration {
	t.Helper()
	window, _ := r.object["suggestedWindow"].(map[string]any)
	start, errStart := time.Parse(time.RFC3339, fmt.Sprint(window["start"]))
	end, errEnd := time.Parse(time.RFC3339, fmt.Sprint(window["end"]))
	if err := errors.Join(errStart, errEnd); err != nil {
		t.Errorf("renewalInfo: %+v, %v", r, err)
	}
	return end.Sub(start)
}

// TestAwaitedValidation lets a host respond at once: the client gets the result without polling.
func TestAwaitedValidation(t *testing.T) {
	w := newWorld(t).optionalBinding()
	c := w.registered()
	start := func(responds bool) (status, authorization string) {
		challenges, authorization := c.challenges(c.order("ip", "127.0.0.1"))
		if responds {
			w.respond(c, fmt.Sprint(challenges["http-01"]["token"]))
		}
		return c.post(fmt.Sprint(challenges["http-01"]["url"]), "{}").text("status"), authorization
	}
	for want, responds := range map[string]bool{"valid": true, "invalid": false} {
		status, authorization := start(responds)
		for tries := 0; status == "processing" && tries < 20; tries++ { // a busy machine can take longer than the server waits
			status, authorization = start(responds)
		}
		if status != want {
			t.Errorf("the challenge is %s, not %s", status, want)
		}
		if z := c.post(authorization, ""); z.text("status") != want {
			t.Errorf("the authorization is %s", z.body)
		}
	}
}

func TestRenewalInfo(t *testing.T) {
	w := newWorld(t).optionalBinding()
	c := w.registered()
	o := w.ready(c)
	text, _ := csr(t, &x509.CertificateRequest{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	final := c.post(o.text("finalize"), `{"csr":"`+text+`"}`)
	block, _ := pem.Decode([]byte(c.post(final.text("certificate"), "").body))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	certID := base64.RawURLEncoding.EncodeToString(leaf.AuthorityKeyId) + "." + base64.RawURLEncoding.EncodeToString(leaf.SerialNumber.Bytes())
	r := w.get(w.at("renewalInfo") + "/" + certID)
	if got := renewalWindow(t, r); got < 10*time.Minute || r.header.Get("Retry-After") != "21600" {
		t.Errorf("renewalInfo: %+v with a window of %s", r, got)
	}
	// A short rotation has windows of milliseconds. Clients ignore a window that does not end after it starts, and some one
	// of a second (RFC 9773 §4.2).
	for _, w.authority.window = range []time.Duration{0, time.Millisecond, 125 * time.Millisecond, 1999 * time.Millisecond} {
		if got := renewalWindow(t, w.get(w.at("renewalInfo")+"/"+certID)); got < 2*time.Second || got > 3*time.Second {
			t.Errorf("the renewal window of %s is one of %s for clients", w.authority.window, got)
		}
	}
	other := base64.RawURLEncoding.EncodeToString(leaf.AuthorityKeyId) + ".AQ"
	want(t, "another certificate", w.get(w.at("renewalInfo")+"/"+other), http.StatusNotFound, "malformed")
	want(t, "another CA", w.get(w.at("renewalInfo")+"/AQ.AQ"), http.StatusNotFound, "malformed")
	want(t, "malformed", w.get(w.at("renewalInfo")+"/x"), http.StatusBadRequest, "malformed")
	replacing := c.post("newOrder", `{"identifiers":[{"type":"ip","value":"127.0.0.1"}],"replaces":"`+certID+`"}`)
	if replacing.status != http.StatusCreated || replacing.text("replaces") != certID {
		t.Errorf("the order is %+v", replacing)
	}
}

// The text of an error that is not a refusal stays on the server.
func TestErrorsOfTheServer(t *testing.T) {
	w := newWorld(t)
	c := w.client()
	for _, e := range []struct {
		err     error
		status  int
		problem string
		retry   string
	}{
		{errors.New("the disk with the secret is gone"), http.StatusInternalServerError, "serverInternal", ""},
		{temporary{errors.New("the disk with the secret is gone")}, http.StatusServiceUnavailable, "serverInternal", "2"},
		{temporary{pki.Refuse(pki.RuleOverloaded, "wait", "too much work")}, http.StatusTooManyRequests, "rateLimited", "2"},
		{temporary{pki.Refuse(pki.RuleRateLimited, "wait", "too many requests")}, http.StatusTooManyRequests, "rateLimited", "2"},
	} {
		w.authority.mu.Lock()
		w.authority.fail = e.err
		w.authority.mu.Unlock()
		r := c.post("newAccount", `{}`)
		want(t, e.err.Error(), r, e.status, e.problem)
		if r.header.Get("Retry-After") != e.retry || strings.Contains(r.body, "secret") || r.header.Get("Replay-Nonce") == "" {
			t.Errorf("%v: %+v", e.err, r)
		}
	}
}

type temporary struct{ error }

func (t temporary) Unwrap() error           { return t.error }
func (temporary) Temporary() bool           { return true }
func (temporary) RetryAfter() time.Duration { return 1500 * time.Millisecond }

// Every operation of ACME in the access table is that of a route, and any caller may call it: signatures authenticate.
func TestOperationsAreRoutes(t *testing.T) {
	served := map[authz.Operation]bool{}
	for _, route := range newWorld(t).door.Door().Routes {
		served[route.Operation] = true
		if authz.AccessOf(route.Operation).Callers != authz.Anybody {
			t.Errorf("%s %s has the operation %s, which not every caller may call", route.Method, route.Path, route.Operation)
		}
	}
	for _, op := range authz.Operations() {
		if strings.HasPrefix(string(op), "ACME") != served[op] {
			t.Errorf("%s is a route: %t", op, served[op])
		}
	}
}

// A validation that panics has failed, and the server goes on.
func TestValidationPanics(t *testing.T) {
	w := newWorld(t).optionalBinding()
	w.door.BreakValidator()
	c := w.registered()
	challenges, authorization := c.challenges(c.order("dns", "host.fleet.example"))
	if r := c.post(fmt.Sprint(challenges["http-01"]["url"]), "{}"); r.status != http.StatusOK {
		t.Fatalf("the challenge: %+v", r)
	}
	if r := c.wait(authorization, "pending"); r.text("status") != "invalid" || !strings.Contains(r.body, "fault of its own") {
		t.Errorf("the authorization is %s", r.body)
	}
}
