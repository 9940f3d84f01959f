package server_test

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/servertest"
)

// A device that sends the same key again gets its certificate while that is good, and a new one after that.
func TestESTDevicesKeepTheirKey(t *testing.T) {
	t.Parallel()
	acme := newMaker(t)
	w := servertest.New(t, ground, servertest.Options{Policy: estPolicy(acme), Profile: func(name string, c *ca.ProfileConfig) {
		if name == "device" {
			c.Lifetime = "1h"
		}
	}})
	factoryKey, key := servertest.Key(t), servertest.Key(t)
	device := estCall{path: "simpleenroll", device: acme.device(t, "R1", factoryKey), csr: servertest.CSR(t, key)}
	last := est(t, w, device).issued(t, "the first", "router/R1", key)
	next := func(why string) {
		t.Helper()
		got := est(t, w, device).issued(t, why, "router/R1", key)
		if got.Equal(last) || w.Clock.Now().After(got.NotAfter) {
			t.Fatalf("%s: the certificate is the old one", why)
		}
		w.Status(t, got, "good")
		if again := est(t, w, device).issued(t, "a repeat after "+why, "router/R1", key); !again.Equal(got) {
			t.Errorf("after %s, a repeat gets another certificate", why)
		}
		last = got
	}
	for range 2 {
		w.Revoke(t, last, "cessationOfOperation")
		next("its revocation")
	}
	other := servertest.Key(t)
	est(t, w, estCall{path: "simpleenroll", device: device.device, csr: servertest.CSR(t, other)}).issued(t, "another key", "router/R1", other)
	w.Status(t, last, "superseded")
	next("its replacement")

	// A token is for one certificate, whatever becomes of that.
	id := w.Register(t, "device", "meter/1")
	for _, replace := range []bool{false, true} {
		call := estCall{path: "simpleenroll", token: tokenText(t, w, id, replace), csr: servertest.CSR(t, servertest.Key(t))}
		first := est(t, w, call)
		w.Revoke(t, first.certificates[0], "cessationOfOperation")
		rule, status := pki.RuleAlreadyEnrolled, 409
		if replace {
			rule, status = pki.RuleTokenBound, 403
		}
		est(t, w, call).refused(t, "the token of a revoked certificate", status, rule)
	}
	w.Clock.Advance(last.NotAfter.Sub(w.Clock.Now()) + time.Minute)
	awaitReady(t, w)
	next("its expiry")
}

// The repeat of a renewal gets a new certificate if that of the first was revoked, and none if the renewal revoked the
// certificate that was renewed.
func TestESTRenewalsAreRepeatedWhileGood(t *testing.T) {
	t.Parallel()
	for _, revokes := range []bool{false, true} {
		w := servertest.New(t, ground, servertest.Options{Policy: estPolicy(newMaker(t)), Profile: func(name string, c *ca.ProfileConfig) { c.RenewalRevokes = revokes && name == "device" }})
		holder, key := w.Enrolled(t, "device", "meter/1"), servertest.Key(t)
		call := estCall{path: "simplereenroll", device: holder.TLS(w), csr: servertest.CSR(t, key)}
		first := est(t, w, call).issued(t, "a renewal", "meter/1", key)
		w.Revoke(t, first, "cessationOfOperation")
		again := est(t, w, call)
		if revokes {
			again.refused(t, "the repeat of a renewal whose certificate was revoked", 403, pki.RuleRevoked)
		} else if again.issued(t, "its repeat", "meter/1", key).Equal(first) {
			t.Error("the repeat gets the revoked certificate")
		}
	}
}

// On an open connection, each request is authorized again, and each connection is of its own client.
func TestESTKeptConnections(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{Policy: estPolicy(newMaker(t))})
	one, two := w.Enrolled(t, "device", "meter/1"), w.Enrolled(t, "device", "meter/2")
	keys := map[string]*ecdsa.PrivateKey{one.ID: servertest.Key(t), two.ID: servertest.Key(t)}
	clients := map[string]*http.Client{one.ID: keptClient(w, one.TLS(w)), two.ID: keptClient(w, two.TLS(w))}
	reenroll := func(id string) (status int, text string) {
		t.Helper()
		body := strings.NewReader(base64.StdEncoding.EncodeToString(servertest.CSR(t, keys[id])))
		q := servertest.Must(http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+w.HTTPS+"/.well-known/est/simplereenroll", body))(t)
		reused := false
		q = q.WithContext(httptrace.WithClientTrace(q.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused }}))
		r := servertest.Must(clients[id].Do(q))(t)
		defer func() { _ = r.Body.Close() }()
		content := servertest.Must(io.ReadAll(r.Body))(t)
		if status, text = r.StatusCode, string(content); status == http.StatusOK {
			c := certsOnly(t, servertest.Must(base64.StdEncoding.DecodeString(text))(t))[0]
			text = c.URIs[0].String()
		}
		return status, fmt.Sprintf("%s, on an open connection: %v", text, reused)
	}
	for i := range 2 {
		for id := range keys {
			if status, text := reenroll(id); status != 200 || text != fmt.Sprintf("%s, on an open connection: %v", id, i > 0) {
				t.Errorf("%s: %d %s", id, status, text)
			}
		}
	}
	w.Revoke(t, one.Certificate, "keyCompromise")
	if status, text := reenroll(one.ID); status != 403 || !strings.Contains(text, "[certificate.revoked]") || !strings.HasSuffix(text, "true") {
		t.Errorf("after its revocation: %d %s", status, text)
	}
	if status, text := reenroll(two.ID); status != 200 {
		t.Errorf("another device: %d %s", status, text)
	}
	for _, c := range clients {
		c.CloseIdleConnections()
	}
}

// keptClient returns a client that keeps its connection open.
func keptClient(w *servertest.World, device *tls.Certificate) *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(w.Root)
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return device, nil },
	}}}
}

// A device that has lost the response to a renewal that revoked its certificate gets the response again.
func TestESTRepeatsAfterRevokingRenewals(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{Policy: estPolicy(newMaker(t)), Profile: func(name string, c *ca.ProfileConfig) {
		c.RenewalRevokes = name == "device"
		if name == "workload" {
			c.Renewals = []string{"grpc"}
		}
	}})
	holder, key := w.Enrolled(t, "device", "meter/1"), servertest.Key(t)
	call := estCall{path: "simplereenroll", device: holder.TLS(w), csr: servertest.CSR(t, key)}
	first := est(t, w, call).issued(t, "a renewal", "meter/1", key)
	w.Status(t, holder.Certificate, "superseded")
	if again := est(t, w, call).issued(t, "its repeat", "meter/1", key); !again.Equal(first) {
		t.Error("the repeat gets another certificate")
	}
	call.csr = servertest.CSR(t, servertest.Key(t))
	est(t, w, call).refused(t, "another key", 403, pki.RuleRenewalKeyConflict)

	web := w.Enrolled(t, "workload", "web/1")
	est(t, w, estCall{path: "simplereenroll", device: web.TLS(w), csr: call.csr}).refused(t, "a profile for gRPC", 403, pki.RuleRenewalDoor)
	w.Renewed(t, web, servertest.Key(t))
}
