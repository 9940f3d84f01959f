package server_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/servertest"
)

// getOCSP requests the status of a certificate by GET, and returns the headers and the body of the response.
func getOCSP(t *testing.T, w *servertest.World, c *x509.Certificate) (http.Header, []byte) {
	t.Helper()
	request := servertest.Must(ocsp.CreateRequest(c, w.Issuing, nil))(t)
	answer := servertest.Must(http.Get("http://" + w.HTTP + "/ocsp/" + base64.RawURLEncoding.EncodeToString(request)))(t)
	defer answer.Body.Close()
	return answer.Header, servertest.Must(io.ReadAll(answer.Body))(t)
}

// delegateOf returns the certificate of the server's OCSP delegate.
func delegateOf(t *testing.T, w *servertest.World) *x509.Certificate {
	t.Helper()
	data := servertest.Must(os.ReadFile(filepath.Join(w.Dir, "own", "va-"+pki.IssuerOf(w.Issuing).Short(), "current", "cert.pem")))(t)
	block, _ := pem.Decode(data)
	return servertest.Must(x509.ParseCertificate(block.Bytes))(t)
}

func TestOCSPConfiguration(t *testing.T) {
	t.Parallel()
	for name, isKind := range map[string]func(any) bool{
		"P-384":    func(k any) bool { _, ok := k.(*ecdsa.PublicKey); return ok },
		"RSA-2048": func(k any) bool { _, ok := k.(*rsa.PublicKey); return ok },
		"Ed25519":  func(k any) bool { _, ok := k.(ed25519.PublicKey); return ok },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := servertest.New(t, ground, servertest.Options{
				DelegateKeys: []string{name, "P-256"}, OCSP: server.OCSP{MaxAge: 7 * time.Second, ExtendedRevoke: true},
			})
			device := w.Enrolled(t, "device", "device/1")
			header, good := getOCSP(t, w, device.Certificate)
			if got := header.Get("Cache-Control"); !strings.HasPrefix(got, "public, max-age=7,") {
				t.Errorf("Cache-Control %q, want 7 seconds", got)
			}
			delegate := delegateOf(t, w)
			if !bytes.HasSuffix(good, delegate.Raw) || !isKind(delegate.PublicKey) {
				t.Errorf("the response is not signed by the delegate, or the delegate's key is a %T", delegate.PublicKey)
			}
			if lives := delegate.NotAfter.Sub(delegate.NotBefore); lives > ca.MaxDelegateLifetime {
				t.Errorf("the delegate's lifetime is %v", lives)
			}
			if id := fmt.Sprint(delegate.URIs); !strings.Contains(id, "/brevet/va/") {
				t.Errorf("the delegate's identity is %s", id)
			}
			stranger := *device.Certificate
			stranger.SerialNumber = w.Issuing.SerialNumber
			extended := []byte{0x2b, 6, 1, 5, 5, 7, 0x30, 1, 9, 4, 2, 5, 0} // RFC 6960 §4.4.8
			if _, answer := getOCSP(t, w, &stranger); !bytes.Contains(answer, extended) || bytes.Contains(good, extended) {
				t.Error("the extension extended-revoke is missing, or in a response that must not have it")
			}
			if name != "Ed25519" { // not supported by x/crypto/ocsp
				w.Status(t, device.Certificate, "good")
				w.Status(t, &stranger, "certificateHold") // the response about a certificate that was never issued
			}
		})
	}
}
