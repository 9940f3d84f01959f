package server_test

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

// requestDelegate returns a request for the OCSP delegate of a server, which the key of a certificate has signed.
func requestDelegate(t *testing.T, w *servertest.World, name string, certificate []byte, key crypto.Signer) ra.DelegateRequest {
	t.Helper()
	d := ra.DelegateRequest{
		Issuer: pki.IssuerOf(w.Issuing), Server: name, RequestID: servertest.Must(pki.RequestIDFromBytes(servertest.RequestID()))(t),
		CSR: servertest.CSR(t, servertest.Key(t)), Certificate: certificate,
	}
	csr := servertest.Must(x509.ParseCertificateRequest(d.CSR))(t)
	digest := sha256.Sum256(pki.DelegateStatement(servertest.TrustDomain, d.Issuer, name, d.RequestID, pki.HashSPKI(csr.RawSubjectPublicKeyInfo)))
	d.Signature = servertest.Must(key.Sign(rand.Reader, digest[:], crypto.SHA256))(t)
	return d
}

// forgedServer returns a certificate of a server that its own key has signed.
func forgedServer(t *testing.T, name string, key crypto.Signer) []byte {
	t.Helper()
	id := servertest.Must(url.Parse("spiffe://" + servertest.TrustDomain + "/brevet/server/" + name))(t)
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(servertest.RequestID()), URIs: []*url.URL{id}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	return servertest.Must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)
}

// delegatesOf returns the certificates on record of the OCSP delegate of a server.
func delegatesOf(t *testing.T, w *servertest.World, name string) []ra.Certificate {
	t.Helper()
	id := servertest.Must(pki.VAID(servertest.TrustDomain, pki.IssuerOf(w.Issuing), name))(t)
	var all []ra.Certificate
	for _, c := range w.Inventory(t) {
		if c.Identity == id {
			all = append(all, c)
		}
	}
	return all
}

// answered stores a request as an attacker with access to the database could, and waits until the server has answered it.
func answered(t *testing.T, w *servertest.World, d ra.DelegateRequest) {
	t.Helper()
	if err := w.Stores.Delegates.PutDelegateRequest(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the request is answered", func() bool {
		return len(servertest.Must(w.Stores.Delegates.DelegateRequests(t.Context(), d.Issuer))(t)) == 0
	})
}

// A server gets a certificate for its OCSP delegate only for a request that the key of its own, good certificate has signed. A
// request that is stored again gets no other certificate.
func TestRequestsForDelegates(t *testing.T) {
	t.Parallel()
	o := servertest.Options{Shared: shared(t, &cable{})}
	w := servertest.New(t, ground, o)
	second := w.Another(t, "second", o)
	second.StopServer(t)
	own, device := second.OwnPair(t, "server"), w.Enrolled(t, "workload", "workload/1")
	certificate, key := own.Certificate.Raw, own.Key
	have := len(delegatesOf(t, w, "second"))
	refused := func(what string, d ra.DelegateRequest, rule pki.Rule) {
		t.Helper()
		before := strings.Count(w.Log.String(), "refused the certificate of another server's OCSP delegate")
		answered(t, w, d)
		eventually(t, "the refusal is in the log", func() bool {
			return strings.Count(w.Log.String(), "refused the certificate of another server's OCSP delegate") == before+1
		})
		lines := strings.Split(strings.TrimSpace(w.Log.String()), "refused the certificate")
		if last := lines[len(lines)-1]; !strings.Contains(last, "["+string(rule)+"]") {
			t.Errorf("%s: the request is refused by another rule than %s: %s", what, rule, last)
		}
		if n := len(delegatesOf(t, w, d.Server)); d.Server == "second" && n != have {
			t.Errorf("%s: the server issued a certificate", what)
		}
	}
	stranger := servertest.Key(t)
	refused("a certificate that no CA has signed", requestDelegate(t, w, "second", forgedServer(t, "second", stranger), stranger), pki.RuleCertificate)
	refused("the certificate of a device", requestDelegate(t, w, "second", device.Certificate.Raw, device.Key), pki.RuleCertificate)
	refused("the certificate of another server", requestDelegate(t, w, "second", w.OwnPair(t, "server").Certificate.Raw, w.OwnPair(t, "server").Key), pki.RuleCertificate)
	refused("the signature of another key", requestDelegate(t, w, "second", certificate, stranger), pki.RuleKeyPossession)
	other := requestDelegate(t, w, "second", certificate, key)
	other.CSR = servertest.CSR(t, servertest.Key(t))
	refused("another key than the signed one", other, pki.RuleKeyPossession)
	refused("no certificate", requestDelegate(t, w, "second", []byte("none"), key), pki.RuleCertificate)
	if err := w.Stores.Delegates.PutDelegateRequest(t.Context(), requestDelegate(t, w, "third", certificate, key)); err == nil {
		t.Error("a server that never opened the store can request")
	}

	good := requestDelegate(t, w, "second", certificate, key)
	answered(t, w, good)
	if have++; len(delegatesOf(t, w, "second")) != have {
		t.Fatal("the server did not issue the certificate")
	}
	answered(t, w, good)
	if len(delegatesOf(t, w, "second")) != have {
		t.Error("the same request has two certificates")
	}
	asked := second.Holder(t, certificate, key).ID
	issued := false
	for _, e := range w.Entries(t, 0) {
		issued = issued || e.Action == translog.CertificateIssued && e.Actor.String() == asked && strings.Contains(e.Identity.String(), "/brevet/va/")
	}
	if !issued {
		t.Error("the log has no entry of the delegate with the server as actor")
	}

	w.Revoke(t, own.Certificate, "keyCompromise")
	refused("a revoked certificate", requestDelegate(t, w, "second", certificate, key), pki.RuleRevoked)
}

// A server renews the certificate with which it answers OCSP for the CA of another server. Without that server, it uses the
// last one until it expires, and then answers tryLater. It continues when the other server is back.
func TestDelegatesOfAnotherCA(t *testing.T) {
	t.Parallel()
	o := shortDelegates(t)
	first := servertest.New(t, ground, o)
	second := first.AnotherCA(t, "second", other, o)
	atFirst := first.For(second)
	device := second.Enrolled(t, "device", "device/b").Certificate
	eventually(t, "the first server answers OCSP for both", func() bool { return answersOCSP(t, atFirst, device) })
	held := func() *big.Int { return atFirst.OwnPair(t, atFirst.DelegateDir()).Certificate.SerialNumber }
	before := held()
	eventually(t, "the certificate is renewed", func() bool { return held().Cmp(before) != 0 })

	waits := func() int {
		return strings.Count(first.Log.String(), "another server must issue the certificate of an OCSP delegate")
	}
	waited := waits()
	second.StopServer(t)
	expires := atFirst.OwnPair(t, atFirst.DelegateDir()).Certificate.NotAfter
	for time.Now().Before(expires.Add(-2 * time.Second)) {
		if !answersOCSP(t, atFirst, device) {
			t.Fatal("the server does not answer with the certificate that it has")
		}
		time.Sleep(200 * time.Millisecond)
	}
	eventually(t, "the certificate expires", func() bool { return !answersOCSP(t, atFirst, device) })
	if code, body := getOperations(t, first, "/readyz"); code != http.StatusOK || !strings.Contains(body, "OCSP for "+second.Issuing.Subject.String()) {
		t.Errorf("/readyz: %d %s", code, body)
	}
	eventually(t, "the server looks for the next certificate every second", func() bool { return waits() > waited })
	second.Serve(t, o)
	eventually(t, "the server answers again", func() bool { return answersOCSP(t, atFirst, device) })
	if atFirst.OCSP(t, device).Status != ocsp.Good {
		t.Error("the certificate is not good")
	}
}

// A server whose request for an OCSP delegate is refused logs the rule, and shows it in /readyz when the delegate has expired.
func TestRefusedDelegate(t *testing.T) {
	t.Parallel()
	o := shortDelegates(t)
	first := servertest.New(t, ground, o)
	second := first.AnotherCA(t, "second", other, o)
	atFirst := first.For(second)
	device := second.Enrolled(t, "device", "device/b").Certificate
	eventually(t, "the first server answers OCSP for both", func() bool { return answersOCSP(t, atFirst, device) })
	first.Revoke(t, first.OwnPair(t, "server").Certificate, "keyCompromise")
	eventually(t, "the log names the rule", func() bool {
		return strings.Contains(first.Log.String(), `"rule":"`+string(pki.RuleRevoked)+`"`)
	})
	eventually(t, "the certificate expires", func() bool { return !answersOCSP(t, atFirst, device) })
	eventually(t, "/readyz names the rule", func() bool {
		_, body := getOperations(t, first, "/readyz")
		return strings.Contains(body, "OCSP for "+second.Issuing.Subject.String()) && strings.Contains(body, "["+string(pki.RuleRevoked)+"]")
	})
}

// shortDelegates returns options for servers that share a store, and whose OCSP delegates live for seconds.
func shortDelegates(t *testing.T) servertest.Options {
	t.Helper()
	return servertest.Options{Shared: shared(t, &cable{}), Profile: func(name string, c *ca.ProfileConfig) {
		if name == ra.DelegateProfile {
			c.Lifetime, c.MaxLifetime, c.Backdate = "20s", "1m", "1s"
		}
	}}
}
