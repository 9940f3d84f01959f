package ocsp_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
	"github.com/brevet-pki/brevet/revocation/ocsp"
	xocsp "golang.org/x/crypto/ocsp"
)

// opensslRequest creates a request about certificates with OpenSSL. It returns the request and the path of its file.
func opensslRequest(t *testing.T, ca revtest.CA, args []string, leaves ...*x509.Certificate) (*ocsp.Request, string) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "request.der")
	all := append([]string{"ocsp", "-issuer", revtest.PEMFile(t, ca.Certificate), "-reqout", out}, args...)
	for _, leaf := range leaves {
		all = append(all, "-cert", revtest.PEMFile(t, leaf))
	}
	revtest.MustTool(t, "openssl", all...)
	q, err := ocsp.ParseRequest(read(t, out))
	if err != nil {
		t.Fatal(err)
	}
	return q, out
}

func TestOpenSSLGnuTLSAndGoVerifyResponses(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	revokedAt := now.Add(-90 * time.Minute)
	for _, kind := range []string{"p256", "p384", "rsa", "ed25519"} {
		t.Run(kind, func(t *testing.T) {
			root := revtest.NewRoot(t, "Root", "p256")
			ca := root.Intermediate(t, "Issuing CA", kind)
			key := revtest.Key(t, kind)
			signer, err := ocsp.NewSigner(ca.Delegate(t, key, nil), key)
			if err != nil {
				t.Fatal(err)
			}
			leaves := []*x509.Certificate{ca.Leaf(t, "good"), ca.Leaf(t, "revoked"), ca.Leaf(t, "unspecified"), ca.Leaf(t, "unknown")}
			q, requestFile := opensslRequest(t, ca, nil, leaves...)
			singles := []ocsp.Single{
				{Status: ocsp.Good},
				{Status: ocsp.Revoked, RevokedAt: revokedAt, Reason: pki.KeyCompromise},
				{Status: ocsp.Revoked, RevokedAt: revokedAt},
				{Status: ocsp.Unknown},
			}
			for i := range singles {
				singles[i].ID, singles[i].ThisUpdate, singles[i].NextUpdate = q.IDs[i], now, now.Add(time.Minute)
			}
			der, err := signer.Sign(ocsp.Response{ProducedAt: now, Singles: singles, Nonce: q.Nonce})
			if err != nil {
				t.Fatal(err)
			}
			checkOpenSSL(t, root, ca, requestFile, der, leaves, revokedAt)
			checkGnuTLS(t, ca, der, leaves[0])
			if kind != "ed25519" { // x/crypto/ocsp does not support it
				checkGo(t, ca, der, leaves[1], revokedAt)
			}
		})
	}
}

func checkOpenSSL(t *testing.T, root, ca revtest.CA, requestFile string, der []byte, leaves []*x509.Certificate, revokedAt time.Time) {
	t.Helper()
	responseFile := revtest.File(t, "response.der", der)
	// Without -no_nonce, OpenSSL would add a new nonce to the request in the file.
	args := []string{"ocsp", "-no_nonce", "-respin", responseFile, "-reqin", requestFile, "-issuer", revtest.PEMFile(t, ca.Certificate),
		"-CAfile", revtest.PEMFile(t, root.Certificate, ca.Certificate)}
	for _, leaf := range leaves {
		args = append(args, "-cert", revtest.PEMFile(t, leaf))
	}
	out := revtest.MustTool(t, "openssl", args...)
	if !strings.Contains(out, "Response verify OK") || strings.Contains(out, "WARNING") || strings.Contains(strings.ToLower(out), "nonce") {
		t.Errorf("openssl ocsp does not verify the response, or misses the nonce:\n%s", out)
	}
	text := revtest.MustTool(t, "openssl", "ocsp", "-respin", responseFile, "-resp_text", "-noverify")
	at := "Revocation Time: " + revokedAt.UTC().Format("Jan _2 15:04:05 2006 GMT")
	for want, count := range map[string]int{
		"Cert Status: good": 1, "Cert Status: revoked": 2, "Cert Status: unknown": 1, at: 2, "Revocation Reason:": 1,
		"Revocation Reason: keyCompromise (0x1)": 1, "OCSP Nonce": 1, "Responder Id: ": 1,
	} {
		if got := strings.Count(text, want); got != count {
			t.Errorf("openssl prints %q %d times, want %d:\n%s", want, got, count, text)
		}
	}
	revtest.MustTool(t, "openssl", "asn1parse", "-inform", "DER", "-in", responseFile)
}

func checkGnuTLS(t *testing.T, ca revtest.CA, der []byte, leaf *x509.Certificate) {
	t.Helper()
	responseFile := revtest.File(t, "response.der", der)
	out := revtest.MustTool(t, "ocsptool", "--verify-response", "--load-response", responseFile,
		"--load-trust", revtest.PEMFile(t, ca.Certificate))
	if !strings.Contains(out, "Verifying OCSP Response: Success") {
		t.Errorf("ocsptool does not verify the response:\n%s", out)
	}
	out = revtest.MustTool(t, "ocsptool", "--response-info", "--infile", responseFile)
	if serial := fmt.Sprintf("%x", leaf.SerialNumber); !strings.Contains(strings.ToLower(out), serial) {
		t.Errorf("ocsptool does not show serial %s:\n%s", serial, out)
	}
}

func checkGo(t *testing.T, ca revtest.CA, der []byte, revoked *x509.Certificate, revokedAt time.Time) {
	t.Helper()
	got, err := xocsp.ParseResponseForCert(der, revoked, ca.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if got.Status != xocsp.Revoked || got.RevocationReason != xocsp.KeyCompromise || !got.RevokedAt.Equal(revokedAt) ||
		got.NextUpdate.Sub(got.ThisUpdate) != time.Minute || len(got.ResponderKeyHash) != 20 {
		t.Errorf("x/crypto/ocsp reads %+v", got)
	}
}

func TestResponseRepeatsNonceAndCertID(t *testing.T) {
	key := revtest.Key(t, "p256")
	ca := revtest.NewRoot(t, "Root", "p256")
	signer, err := ocsp.NewSigner(ca.Delegate(t, key, nil), key)
	if err != nil {
		t.Fatal(err)
	}
	id, err := ocsp.ParseRequest(requestSpec{ids: [][]byte{certID(t, sha1OID, nil, 20, []byte{9})}}.der(t))
	if err != nil {
		t.Fatal(err)
	}
	single := ocsp.Single{ID: id.IDs[0], ThisUpdate: time.Now(), NextUpdate: time.Now()}
	for _, size := range []int{0, 1, 32, ocsp.MaxNonce} {
		response := ocsp.Response{ProducedAt: time.Now(), Singles: []ocsp.Single{single}}
		want := []byte{6, 9, 0x2b, 6, 1, 5, 5, 7, 0x30, 1, 2} // OID of id-pkix-ocsp-nonce
		if size > 0 {
			response.Nonce = bytes.Repeat([]byte{7}, size)
			want = sequence(t, nonce(t, size))
		}
		der, err := signer.Sign(response)
		if err != nil {
			t.Fatal(err)
		}
		if got := bytes.Contains(der, want); got != (size > 0) {
			t.Errorf("a nonce of %d bytes: contained in the response: %v", size, got)
		}
		// The response must contain the CertID exactly as in the request, in this case without hash parameters.
		if !bytes.Contains(der, single.ID.Raw) {
			t.Errorf("the response does not contain the CertID of the request")
		}
	}
}

// A failingKey is a key that cannot sign.
type failingKey struct{ crypto.Signer }

var errSign = errors.New("the HSM is gone")

func (failingKey) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return nil, errSign }

func TestSignerRefusesKeysAndTimes(t *testing.T) {
	ca := revtest.NewRoot(t, "Root", "p256")
	key := revtest.Key(t, "p256")
	certificate := ca.Delegate(t, key, nil)
	if _, err := ocsp.NewSigner(certificate, revtest.Key(t, "p256")); err == nil {
		t.Error("NewSigner accepts the key of another certificate")
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ocsp.NewSigner(ca.Delegate(t, p521, nil), p521); err == nil {
		t.Error("NewSigner accepts a P-521 key")
	}
	broken, err := ocsp.NewSigner(certificate, failingKey{key})
	if err != nil {
		t.Fatal(err)
	}
	if der, err := broken.Sign(ocsp.Response{ProducedAt: time.Now()}); !errors.Is(err, errSign) || der != nil {
		t.Errorf("signing with a broken key: %x, %v", der, err)
	}
	signer, err := ocsp.NewSigner(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	if der, err := signer.Sign(ocsp.Response{ProducedAt: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}); err == nil {
		t.Errorf("a response of the year 10000, which GeneralizedTime cannot express, is signed: %x", der)
	}
}

func TestRefusals(t *testing.T) {
	for refusal, want := range map[ocsp.Refusal]xocsp.ResponseStatus{
		ocsp.MalformedRequest: xocsp.Malformed, ocsp.InternalError: xocsp.InternalError,
		ocsp.TryLater: xocsp.TryLater, ocsp.Unauthorized: xocsp.Unauthorized,
	} {
		var status xocsp.ResponseError
		if _, err := xocsp.ParseResponse(refusal.DER(), nil); !errors.As(err, &status) || status.Status != want {
			t.Errorf("x/crypto/ocsp reads refusal %d as %v, want %v", refusal, err, want)
		}
	}
}
