package acme_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	pebbleca "github.com/letsencrypt/pebble/v2/ca"
	pebbledb "github.com/letsencrypt/pebble/v2/db"
	pebbleva "github.com/letsencrypt/pebble/v2/va"
	pebblewfe "github.com/letsencrypt/pebble/v2/wfe"
)

// newPebble returns Pebble, the ACME server with which authors of clients test them.
func newPebble(t *testing.T) *target {
	t.Helper()
	t.Setenv("PEBBLE_WFE_NONCEREJECT", "0")
	t.Setenv("PEBBLE_VA_ALWAYS_VALID", "1")
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	logger := log.New(io.Discard, "", 0)
	db := pebbledb.NewMemoryStore()
	ca := pebbleca.New(logger, db, "", "ecdsa", 0, 1, map[string]pebbleca.Profile{"acme": {Description: "TLS servers"}})
	va := pebbleva.New(logger, 5002, 5001, false, "", db)
	wfe := pebblewfe.New(logger, db, va, ca, []string{"pebble.example"}, false, false, 1, 1)
	s := httptest.NewTLSServer(wfe.Handler())
	t.Cleanup(s.Close)
	p := &target{t: t, url: s.URL, http: s.Client()}
	p.open(s.URL + pebblewfe.DirectoryPath)
	return p
}

// oddRequest is a request that is unusual or wrong. A response is the status and the type of the problem.
type oddRequest struct {
	name string
	send func(s *target) response
	ours string
	// pebble is the response of Pebble, and why says why it differs. Both are empty if it does not.
	pebble, why string
}

// agreed creates an account. Pebble has terms of service.
const agreed = `{"termsOfServiceAgreed":true}`

const names = `{"identifiers":[{"type":"dns","value":"host.fleet.example"}]}`

// altered returns a signed request for newOrder whose parts edit changes.
func altered(s *target, edit func(parts map[string]any)) response {
	s.t.Helper()
	c := s.registered()
	var parts map[string]any
	if err := json.Unmarshal([]byte(c.sign(s.at("newOrder"), names, nil)), &parts); err != nil {
		s.t.Fatal(err)
	}
	edit(parts)
	body, err := json.Marshal(parts)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.post(s.at("newOrder"), string(body))
}

// header returns a response to a request whose protected header edit changes, without a valid signature.
func header(s *target, edit func(h map[string]any)) response {
	s.t.Helper()
	return altered(s, func(parts map[string]any) {
		raw, err := base64.RawURLEncoding.DecodeString(fmt.Sprint(parts["protected"]))
		if err != nil {
			s.t.Fatal(err)
		}
		var h map[string]any
		if err := json.Unmarshal(raw, &h); err != nil {
			s.t.Fatal(err)
		}
		edit(h)
		if raw, err = json.Marshal(h); err != nil {
			s.t.Fatal(err)
		}
		parts["protected"] = base64.RawURLEncoding.EncodeToString(raw)
	})
}

func order(payload string) func(s *target) response {
	return func(s *target) response { return s.registered().post("newOrder", payload) }
}

func identifier(kind, value string) func(s *target) response {
	return order(fmt.Sprintf(`{"identifiers":[{"type":%q,"value":%q}]}`, kind, value))
}

// weak returns a client with an RSA key of 1024 bits.
func weak(s *target) *client {
	s.t.Helper()
	s.t.Setenv("GODEBUG", "rsa1024min=0")
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		s.t.Fatal(err)
	}
	return &client{w: s, key: key, alg: jose.RS256}
}

func p521(s *target) *client {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	return &client{w: s, key: key, alg: jose.ES512}
}

// ofAnother returns a request to an object of another account.
func ofAnother(payload string, object func(c *client, o response) string) func(s *target) response {
	return func(s *target) response {
		c := s.registered()
		return s.registered().post(object(c, c.order("dns", "host.fleet.example")), payload)
	}
}

// hidden is why requests to objects of other accounts have another response.
const hidden = "an account must not find out which objects others have"

var oddRequests = []oddRequest{
	// The form of the request.
	{name: "GET of newOrder", send: func(s *target) response { return s.get("newOrder") }, ours: "405 ", pebble: "405 malformed",
		why: "package frontdoor refuses the method, not the door"},
	{name: "PUT of newOrder", send: func(s *target) response { return s.send(http.MethodPut, s.at("newOrder"), "", "") }, ours: "405 ", pebble: "405 malformed",
		why: "package frontdoor refuses the method, not the door"},
	{name: "another Content-Type", send: func(s *target) response {
		return s.send(http.MethodPost, s.at("newOrder"), s.registered().sign(s.at("newOrder"), names, nil), "application/json")
	}, ours: "415 malformed"},
	{name: "no Content-Type", send: func(s *target) response {
		return s.send(http.MethodPost, s.at("newOrder"), s.registered().sign(s.at("newOrder"), names, nil), "")
	}, ours: "415 malformed"},
	{name: "an empty body", send: func(s *target) response { return s.post(s.at("newOrder"), "") }, ours: "400 malformed"},
	{name: "a body that is not JSON", send: func(s *target) response { return s.post(s.at("newOrder"), "order=1") }, ours: "400 malformed"},
	{name: "a body of 1 MiB", send: func(s *target) response { return s.post(s.at("newOrder"), strings.Repeat("A", 1<<20)) },
		ours: "413 malformed", pebble: "400 malformed", why: "the status says that the size is the reason"},
	{name: "the compact serialization", send: func(s *target) response {
		var parts map[string]string
		_ = json.Unmarshal([]byte(s.registered().sign(s.at("newOrder"), names, nil)), &parts)
		return s.post(s.at("newOrder"), parts["protected"]+"."+parts["payload"]+"."+parts["signature"])
	}, ours: "400 malformed"},
	{name: "an unprotected header", send: func(s *target) response {
		return altered(s, func(p map[string]any) { p["header"] = map[string]any{"kid": "x"} })
	}, ours: "400 malformed"},
	{name: "the general serialization", send: func(s *target) response {
		return altered(s, func(p map[string]any) { p["signatures"] = []any{map[string]any{"signature": p["signature"]}} })
	}, ours: "400 malformed"},
	{name: "another signature", send: func(s *target) response {
		return altered(s, func(p map[string]any) { p["signature"] = strings.Repeat("A", 86) })
	}, ours: "400 malformed"},
	{name: "another payload", send: func(s *target) response {
		return altered(s, func(p map[string]any) { p["payload"] = "e30" })
	}, ours: "400 malformed"},

	// The protected header.
	{name: "none", send: func(s *target) response {
		return header(s, func(h map[string]any) { h["alg"] = "none" })
	}, ours: "400 badSignatureAlgorithm"},
	{name: "HMAC", send: func(s *target) response {
		return header(s, func(h map[string]any) { h["alg"] = "HS256" })
	}, ours: "400 badSignatureAlgorithm"},
	{name: "both jwk and kid", send: func(s *target) response {
		return header(s, func(h map[string]any) { h["jwk"] = jose.JSONWebKey{Key: s.client().key.Public()} })
	}, ours: "400 malformed"},
	{name: "neither jwk nor kid", send: func(s *target) response {
		return header(s, func(h map[string]any) { delete(h, "kid") })
	}, ours: "400 malformed"},
	{name: "no URL", send: func(s *target) response {
		return s.registered().postWith("newOrder", names, map[string]any{"url": nil})
	},
		ours: "400 malformed"},
	{name: "another URL", send: func(s *target) response {
		return s.registered().postWith("newOrder", names, map[string]any{"url": s.at("newAccount")})
	}, ours: "401 unauthorized", pebble: "400 malformed", why: "RFC 8555 section 6.4 requires unauthorized"},
	{name: "no nonce", send: func(s *target) response {
		return s.registered().postWith("newOrder", names, map[string]any{"nonce": nil})
	}, ours: "400 badNonce"},
	{name: "a nonce of another server", send: func(s *target) response {
		return s.registered().postWith("newOrder", names, map[string]any{"nonce": "bm9uY2U"})
	}, ours: "400 badNonce"},
	{name: "a nonce again", send: func(s *target) response {
		body := s.registered().sign(s.at("newOrder"), names, nil)
		s.post(s.at("newOrder"), body)
		return s.post(s.at("newOrder"), body)
	}, ours: "400 badNonce"},
	{name: "a jwk where a kid must be", send: func(s *target) response { return s.client().post("newOrder", names) }, ours: "400 malformed"},
	{name: "a kid where a jwk must be", send: func(s *target) response { return s.registered().post("newAccount", `{}`) }, ours: "400 malformed"},
	{name: "an unknown account", send: func(s *target) response {
		c := s.registered()
		c.kid = c.kid[:len(c.kid)-1] + "x"
		return c.post("newOrder", names)
	}, ours: "400 accountDoesNotExist"},
	{name: "an account of another server", send: func(s *target) response {
		c := s.registered()
		c.kid = "https://other.example/account/1"
		return c.post("newOrder", names)
	}, ours: "400 malformed"},
	{name: "an RSA key of 1024 bits", send: func(s *target) response { return weak(s).post("newAccount", agreed) },
		ours: "400 badPublicKey", pebble: "201 ", why: "such a key can be factored"},
	{name: "a key on P-521", send: func(s *target) response { return p521(s).post("newAccount", agreed) },
		ours: "400 badSignatureAlgorithm", pebble: "201 ", why: "no profile of ours certifies keys on P-521, so accounts have none either"},

	// Accounts.
	{name: "an account that exists", send: func(s *target) response {
		c := s.registered()
		c.kid = ""
		return c.post("newAccount", `{}`)
	}, ours: "200 "},
	{name: "onlyReturnExisting without an account", send: func(s *target) response {
		return s.client().post("newAccount", `{"onlyReturnExisting":true}`)
	}, ours: "400 accountDoesNotExist"},
	{name: "another account", send: func(s *target) response { return s.registered().post(s.registered().kid, "") },
		ours: "400 accountDoesNotExist", pebble: "200 ", why: "Pebble ignores the URL, and responds with the account that signs"},
	{name: "a deactivated account", send: func(s *target) response {
		c := s.registered()
		c.post(c.kid, `{"status":"deactivated"}`)
		return c.post("newOrder", names)
	}, ours: "401 unauthorized", pebble: "403 unauthorized", why: "RFC 8555 section 7.3.6 requires 401"},
	{name: "the key of another account", send: func(s *target) response {
		c, other := s.registered(), s.registered()
		return c.post("keyChange", c.change(&client{w: s, key: other.key, alg: other.alg}, c.kid, c.key.Public()))
	}, ours: "409 malformed", pebble: "200 ", why: "RFC 8555 section 7.3.5 requires 409"},
	{name: "the same key", send: func(s *target) response {
		c := s.registered()
		return c.post("keyChange", c.change(&client{w: s, key: c.key, alg: c.alg}, c.kid, c.key.Public()))
	}, ours: "400 malformed"},

	// Orders.
	{name: "no identifiers", send: order(`{"identifiers":[]}`), ours: "400 malformed"},
	{name: "no payload", send: order(``), ours: "400 malformed"},
	{name: "another type of identifier", send: identifier("email", "a@fleet.example"), ours: "400 unsupportedIdentifier",
		pebble: "400 malformed", why: "unsupportedIdentifier says what is wrong (RFC 8555 section 6.7)"},
	{name: "an address as a DNS name", send: identifier("dns", "192.0.2.1"), ours: "400 rejectedIdentifier",
		pebble: "400 malformed", why: "rejectedIdentifier says what is wrong (RFC 8555 section 6.7)"},
	{name: "a trailing dot", send: identifier("dns", "host.fleet.example."), ours: "400 rejectedIdentifier",
		pebble: "400 malformed", why: "rejectedIdentifier says what is wrong (RFC 8555 section 6.7)"},
	{name: "upper case", send: identifier("dns", "HOST.Fleet.example"), ours: "201 "},
	{name: "Unicode", send: identifier("dns", "b\u00fccher.example"), ours: "400 rejectedIdentifier",
		pebble: "400 malformed", why: "rejectedIdentifier says what is wrong (RFC 8555 section 6.7)"},
	{name: "a wildcard inside", send: identifier("dns", "a.*.fleet.example"), ours: "400 rejectedIdentifier",
		pebble: "400 malformed", why: "rejectedIdentifier says what is wrong (RFC 8555 section 6.7)"},
	{name: "a name as an address", send: identifier("ip", "host.fleet.example"), ours: "400 rejectedIdentifier",
		pebble: "400 malformed", why: "rejectedIdentifier says what is wrong (RFC 8555 section 6.7)"},
	{name: "an IPv6 address in full", send: identifier("ip", "2001:0db8:0000:0000:0000:0000:0000:0001"),
		ours: "400 rejectedIdentifier", pebble: "201 ", why: "the rule forms a SPIFFE ID from the name, which can have no colon"},
	{name: "an unknown profile", send: order(`{"identifiers":[{"type":"dns","value":"host.fleet.example"}],"profile":"x"}`), ours: "400 invalidProfile"},
	{name: "notAfter", send: order(`{"identifiers":[{"type":"dns","value":"host.fleet.example"}],"notAfter":"2030-01-01T00:00:00Z"}`),
		ours: "400 malformed", pebble: "201 ", why: "the profile determines how long a certificate is valid"},

	// Objects of other accounts, and the wrong time.
	{name: "an order of another account", send: ofAnother("", func(_ *client, o response) string { return o.header.Get("Location") }), ours: "404 malformed",
		pebble: "403 unauthorized", why: hidden},
	{name: "an authorization of another account", send: ofAnother("", func(c *client, o response) string {
		_, authorization := c.challenges(o)
		return authorization
	}), ours: "404 malformed", pebble: "403 unauthorized", why: hidden},
	{name: "a challenge of another account", send: ofAnother("{}", func(c *client, o response) string {
		challenges, _ := c.challenges(o)
		return fmt.Sprint(challenges["http-01"]["url"])
	}), ours: "404 malformed", pebble: "403 unauthorized", why: hidden},
	{name: "an unknown order", send: func(s *target) response {
		c := s.registered()
		url := c.order("dns", "host.fleet.example").header.Get("Location")
		return c.post(url[:len(url)-4]+"AAAA", "")
	}, ours: "404 malformed", pebble: "404 ", why: "RFC 8555 section 6.7 wants a problem document"},
	{name: "a payload in a read", send: func(s *target) response {
		c := s.registered()
		return c.post(c.order("dns", "host.fleet.example").header.Get("Location"), "{}")
	}, ours: "400 malformed"},
	{name: "finalizing a pending order", send: func(s *target) response {
		c := s.registered()
		text, _ := csr(s.t, csrFor("host.fleet.example"))
		return c.post(c.order("dns", "host.fleet.example").text("finalize"), `{"csr":"`+text+`"}`)
	}, ours: "403 orderNotReady"},
	{name: "another status of an authorization", send: func(s *target) response {
		c := s.registered()
		_, authorization := c.challenges(c.order("dns", "host.fleet.example"))
		return c.post(authorization, `{"status":"valid"}`)
	}, ours: "400 malformed"},
	{name: "revoking what is no certificate", send: func(s *target) response {
		return s.registered().post("revokeCert", `{"certificate":"AAAA"}`)
	}, ours: "404 malformed", pebble: "400 malformed", why: "to look for it is enough, and it is not on record"},
	{name: "renewalInfo of nothing", send: func(s *target) response { return s.get(s.at("renewalInfo") + "/x") }, ours: "400 malformed"},
	{name: "renewalInfo of an unknown certificate", send: func(s *target) response { return s.get(s.at("renewalInfo") + "/AQ.AQ") }, ours: "404 malformed",
		pebble: "400 malformed", why: "the identifier is well-formed"},
}

// moveClient lets the next connections come from the address 127.0.1.n, because an address can create few accounts.
func (w *realWorld) moveClient(n int) {
	transport := w.http.Transport.(*http.Transport)
	transport.CloseIdleConnections()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(n))}}
	transport.DialContext = func(ctx context.Context, _, address string) (net.Conn, error) {
		return dialer.DialContext(ctx, "tcp4", address)
	}
}

// TestOddRequests compares the responses to odd requests with those of Pebble.
func TestOddRequests(t *testing.T) {
	p := newPebble(t)
	s := newServer(t)
	summary := func(r response) string { return fmt.Sprintf("%d %s", r.status, r.problem()) }
	for n, o := range oddRequests {
		s.moveClient(n)
		ours, theirs := summary(o.send(&s.target)), summary(o.send(p))
		expected := o.pebble
		if o.why == "" {
			expected = o.ours
		}
		if ours != o.ours || theirs != expected {
			t.Errorf("%s: the response is %q, want %q; that of Pebble is %q, want %q", o.name, ours, o.ours, theirs, expected)
		}
	}
}
