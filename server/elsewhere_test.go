package server_test

import (
	"bytes"
	"crypto/x509"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/servertest"
)

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for n := 0; !holds(); n++ {
		if n == 3000 {
			t.Fatalf("it does not happen that %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// crlOf returns the full CRL of a CA that a server publishes, or nil if there is none.
func crlOf(t *testing.T, w *servertest.World, issuing *x509.Certificate) *x509.RevocationList {
	t.Helper()
	resp := servertest.Must(http.Get("http://" + w.HTTP + "/crl/" + pki.IssuerOf(issuing).Short() + ".crl"))(t)
	defer resp.Body.Close()
	der := servertest.Must(io.ReadAll(resp.Body))(t)
	if resp.StatusCode != http.StatusOK {
		return nil
	}
	return servertest.Must(x509.ParseRevocationList(der))(t)
}

// lists reports whether the CRL of a CA that a server publishes has a certificate.
func lists(t *testing.T, w *servertest.World, issuing, c *x509.Certificate) bool {
	t.Helper()
	list := crlOf(t, w, issuing)
	if list == nil {
		return false
	}
	for _, e := range list.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(c.SerialNumber) == 0 {
			return true
		}
	}
	return false
}

// sameCRL waits until two servers publish the same CRL of a CA, which is newer than another one unless that is nil.
func sameCRL(t *testing.T, first, second *servertest.World, issuing *x509.Certificate, than *x509.RevocationList) *x509.RevocationList {
	t.Helper()
	var list *x509.RevocationList
	eventually(t, "both servers publish the same CRL", func() bool {
		list = crlOf(t, first, issuing)
		there := crlOf(t, second, issuing)
		return list != nil && there != nil && bytes.Equal(list.Raw, there.Raw) && (than == nil || list.Number.Cmp(than.Number) > 0)
	})
	return list
}

// answersOCSP reports whether a server has a certificate with which it answers OCSP for its world's CA.
func answersOCSP(t *testing.T, w *servertest.World, c *x509.Certificate) bool {
	t.Helper()
	return !bytes.Equal(w.AskOCSP(t, c), ocsp.TryLaterErrorResponse)
}

// Two servers have HSMs with clones of one key. Both issue, and there is one sequence of CRLs. Either of them goes on alone,
// and comes back.
func TestServersWithClonesOfOneKey(t *testing.T) {
	t.Parallel()
	o := servertest.Options{Shared: shared(t, &cable{})}
	first := servertest.New(t, ground, o)
	second := first.AnotherOn(t, "second", clone, o)
	for _, w := range []*servertest.World{first, second} {
		here := w.Enrolled(t, "device", "device/at-"+w.Name())
		for _, at := range []*servertest.World{first, second} {
			eventually(t, "both servers say that it is good", func() bool { return at.OCSP(t, here.Certificate).Status == ocsp.Good })
		}
	}
	before := sameCRL(t, first, second, first.Issuing, nil)

	for n, stops := range []*servertest.World{first, second} {
		remains := []*servertest.World{second, first}[n]
		stops.StopServer(t)
		device := remains.Enrolled(t, "device", "device/without-"+stops.Name())
		remains.Renewed(t, device, servertest.Key(t))
		remains.Revoke(t, device.Certificate, "keyCompromise")
		eventually(t, "the other server signs the CRL", func() bool { return lists(t, remains, first.Issuing, device.Certificate) })
		stops.Serve(t, o)
		before = sameCRL(t, first, second, first.Issuing, before)
		if !lists(t, stops, first.Issuing, device.Certificate) {
			t.Error("the server that has come back publishes a CRL without the revoked certificate")
		}
	}
}

// Two servers have HSMs with the keys of different CAs below one root. Each issues with its own, and serves OCSP and CRLs of
// both. When one has ended, only the CRLs of its CA are not renewed any more, and the other server says so.
func TestServersWithDifferentCAs(t *testing.T) {
	t.Parallel()
	o := servertest.Options{Shared: shared(t, &cable{})}
	first := servertest.New(t, ground, o)
	second := first.AnotherCA(t, "second", other, o)
	a, b := first.Issuing, second.Issuing
	atFirst, atSecond := first.For(second), second.For(first) // with the CA of the other
	ofA, ofB := first.Enrolled(t, "device", "device/a"), second.Enrolled(t, "device", "device/b")
	if servertest.Must(0, ofA.Certificate.CheckSignatureFrom(a))(t); ofB.Certificate.CheckSignatureFrom(b) != nil {
		t.Error("the second server has issued with another CA than its own")
	}
	eventually(t, "the first server answers OCSP for both", func() bool { return answersOCSP(t, atFirst, ofB.Certificate) })
	eventually(t, "the second server answers OCSP for both", func() bool { return answersOCSP(t, atSecond, ofA.Certificate) })
	for w, c := range map[*servertest.World]*x509.Certificate{first: ofA.Certificate, atFirst: ofB.Certificate, second: ofB.Certificate, atSecond: ofA.Certificate} {
		eventually(t, "both servers say that both certificates are good", func() bool { return w.OCSP(t, c).Status == ocsp.Good })
	}
	sameCRL(t, first, second, a, nil)
	sameCRL(t, first, second, b, nil)
	if code, body := getOperations(t, first, "/readyz"); code != http.StatusOK || strings.Contains(body, "Fleet Issuing") {
		t.Errorf("/readyz of the first server: %d %s", code, body)
	}

	// A certificate of either CA may be revoked, and renewed, at either server.
	revoked := first.Enrolled(t, "device", "device/revoked")
	second.Revoke(t, revoked.Certificate, "keyCompromise")
	second.Revoke(t, second.Enrolled(t, "device", "device/revoked-too").Certificate, "superseded")
	eventually(t, "the CRL of A has the certificate at both", func() bool {
		return lists(t, first, a, revoked.Certificate) && lists(t, second, a, revoked.Certificate)
	})
	eventually(t, "OCSP of both reports it", func() bool {
		return first.OCSP(t, revoked.Certificate).Status == ocsp.Revoked && atSecond.OCSP(t, revoked.Certificate).Status == ocsp.Revoked
	})
	request := servertest.Renewal(t, servertest.Key(t))
	held := second.Holder(t, ofB.Certificate.Raw, ofB.Key)
	renewed := servertest.Must(held.Renew(t.Context(), request))(t).GetCredential()
	elsewhere := atFirst.Holder(t, ofB.Certificate.Raw, ofB.Key)
	again := servertest.Must(elsewhere.Renew(t.Context(), request))(t).GetCredential()
	if !bytes.Equal(again.GetCertificate(), renewed.GetCertificate()) || !bytes.Equal(again.GetChain().GetCertificates()[0], b.Raw) {
		t.Error("a renewal that is repeated at the server of the other CA gets another certificate or chain")
	}
	if moved := atFirst.Renewed(t, second.Enrolled(t, "device", "device/moves").On(t, atFirst), servertest.Key(t)); moved.Certificate.CheckSignatureFrom(a) != nil {
		t.Error("the first server has renewed with another CA than its own")
	}

	second.StopServer(t)
	ended := time.Now()
	atFirst.Revoke(t, ofB.Certificate, "keyCompromise")
	eventually(t, "OCSP for B goes on", func() bool { return atFirst.OCSP(t, ofB.Certificate).Status == ocsp.Revoked })
	lost := first.Enrolled(t, "device", "device/alone")
	first.Revoke(t, lost.Certificate, "keyCompromise")
	eventually(t, "the CRLs of A go on", func() bool { return lists(t, first, a, lost.Certificate) })
	var body string
	eventually(t, "/readyz names the CA", func() bool {
		_, body = getOperations(t, first, "/readyz")
		return strings.Contains(body, "no server signs the CRLs of "+b.Subject.String())
	})
	if code, _ := getOperations(t, first, "/readyz"); code != http.StatusOK || strings.Contains(body, a.Subject.String()) {
		t.Errorf("/readyz of the first server: %d %s", code, body)
	}
	name := b.Subject.String() + " " + pki.IssuerOf(b).Short()
	if _, text := getOperations(t, first, "/metrics"); metric(t, text, `brevet_crl_unsigned{name="`+name+`"}`) != 1 {
		t.Error("the metric does not name the CA")
	}
	// The first server may have published the last CRL of B after the other one had ended, but none was signed since.
	if list := crlOf(t, first, b); list.ThisUpdate.After(ended) || lists(t, first, b, ofB.Certificate) {
		t.Errorf("CRL %v of the CA was signed after %s, when the only server with its key had ended", list.Number, ended)
	}

	second.Serve(t, o)
	eventually(t, "the CRL of B has the certificate at both", func() bool {
		return lists(t, first, b, ofB.Certificate) && lists(t, second, b, ofB.Certificate)
	})
	eventually(t, "/readyz is good again", func() bool {
		_, body := getOperations(t, first, "/readyz")
		return !strings.Contains(body, b.Subject.String())
	})
	atFirst.Judge(t)
	second.For(first).Judge(t)
}
