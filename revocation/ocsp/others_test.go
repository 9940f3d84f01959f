package ocsp_test

import (
	"bytes"
	"crypto"
	"strings"
	"testing"
	"time"

	xocsp "golang.org/x/crypto/ocsp"
	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
	"github.com/brevet-pki/brevet/revocation/ocsp"
)

// TestOpenSSLAndGnuTLSReadExtendedRevoke lets OpenSSL and GnuTLS parse a response about a certificate that was never
// issued.
func TestOpenSSLAndGnuTLSReadExtendedRevoke(t *testing.T) {
	key := revtest.Key(t, "p256")
	root := revtest.NewRoot(t, "Root", "p256")
	ca := root.Intermediate(t, "Issuing CA", "p256")
	signer, err := ocsp.NewSigner(ca.Delegate(t, key, nil), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf := ca.Leaf(t, "stranger")
	q, _ := opensslRequest(t, ca, nil, leaf)
	now := time.Now().Truncate(time.Second)
	single := ocsp.NotIssued(q.IDs[0])
	single.ThisUpdate, single.NextUpdate = now, now.Add(time.Minute)
	der, err := signer.Sign(ocsp.Response{ProducedAt: now, Singles: []ocsp.Single{single}, Nonce: q.Nonce, ExtendedRevoke: true})
	if err != nil {
		t.Fatal(err)
	}
	file := revtest.File(t, "response.der", der)
	text := revtest.MustTool(t, "openssl", "ocsp", "-respin", file, "-resp_text", "-noverify")
	text, _, _ = strings.Cut(text, "Signature Algorithm") // cut off the delegate's certificate, which follows
	for _, want := range []string{
		"Cert Status: revoked", "Revocation Time: Jan  1 00:00:00 1970 GMT", "Revocation Reason: certificateHold (0x6)",
		"valid: \n", // OpenSSL's text for {id-pkix-ocsp 9}, from a draft of the RFC
		"OCSP Nonce",
	} {
		if strings.Count(text, want) != 1 {
			t.Errorf("openssl does not print %q once:\n%s", want, text)
		}
	}
	if strings.Contains(text, "critical") {
		t.Errorf("an extension is critical:\n%s", text)
	}
	out := revtest.MustTool(t, "ocsptool", "--verify-response", "--load-response", file, "--load-trust", revtest.PEMFile(t, ca.Certificate))
	if !strings.Contains(out, "Verifying OCSP Response: Success") {
		t.Errorf("ocsptool does not verify the response:\n%s", out)
	}
	out = revtest.MustTool(t, "ocsptool", "--response-info", "--infile", file)
	if !strings.Contains(out, "Certificate Status: revoked") || !strings.Contains(out, "1970") {
		t.Errorf("ocsptool shows:\n%s", out)
	}
}

// TestGoReadsRandomResponses signs random responses, and parses them with x/crypto/ocsp.
func TestGoReadsRandomResponses(t *testing.T) {
	ca := revtest.NewRoot(t, "Root", "p256").Intermediate(t, "Issuing CA", "p256")
	key := revtest.Key(t, "p256")
	signer, err := ocsp.NewSigner(ca.Delegate(t, key, nil), key)
	if err != nil {
		t.Fatal(err)
	}
	at := func(r *rapid.T, label string) time.Time {
		return time.Unix(rapid.Int64Range(0, time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC).Unix()).Draw(r, label), 0).UTC()
	}
	rapid.Check(t, func(r *rapid.T) {
		id := certID(t, sha1OID, []byte{5, 0}, 20, append([]byte{1}, rapid.SliceOfN(rapid.Byte(), 0, 19).Draw(r, "serial")...))
		q, err := ocsp.ParseRequest(requestSpec{ids: [][]byte{id}}.der(t))
		if err != nil {
			r.Fatal(err)
		}
		single := ocsp.Single{
			ID: q.IDs[0], Status: rapid.SampledFrom([]ocsp.CertStatus{ocsp.Unknown, ocsp.Good, ocsp.Revoked}).Draw(r, "status"),
			ThisUpdate: at(r, "thisUpdate"), NextUpdate: at(r, "nextUpdate"),
		}
		if single.Status == ocsp.Revoked {
			single.RevokedAt = at(r, "revokedAt")
			single.Reason = rapid.SampledFrom([]pki.Reason{pki.Unspecified, pki.KeyCompromise, pki.Superseded, pki.CertificateHold}).Draw(r, "reason")
		}
		der, err := signer.Sign(ocsp.Response{
			ProducedAt: at(r, "producedAt"), Singles: []ocsp.Single{single},
			Nonce: rapid.SliceOfN(rapid.Byte(), 0, ocsp.MaxNonce).Draw(r, "nonce"), ExtendedRevoke: rapid.Bool().Draw(r, "extended"),
		})
		if err != nil {
			r.Fatal(err)
		}
		got, err := xocsp.ParseResponse(der, ca.Certificate)
		if err != nil {
			r.Fatal(err)
		}
		want := map[ocsp.CertStatus]int{ocsp.Unknown: xocsp.Unknown, ocsp.Good: xocsp.Good, ocsp.Revoked: xocsp.Revoked}[single.Status]
		if got.Status != want || got.SerialNumber.Cmp(single.ID.Serial.Int()) != 0 || !got.ThisUpdate.Equal(single.ThisUpdate) ||
			!got.NextUpdate.Equal(single.NextUpdate) || single.Status == ocsp.Revoked &&
			(!got.RevokedAt.Equal(single.RevokedAt) || got.RevocationReason != int(single.Reason)) {
			r.Fatalf("x/crypto/ocsp reads %+v, want %+v", got, single)
		}
	})
}

// compareWithGo compares a parsed request with the result of x/crypto/ocsp, which parses only the first CertID.
func compareWithGo(t testing.TB, der []byte, q *ocsp.Request) {
	t.Helper()
	theirs, err := xocsp.ParseRequest(der)
	if err != nil {
		return // x/crypto/ocsp refuses other hashes, and checks fields that ParseRequest skips
	}
	if serial, err := pki.SerialFromInt(theirs.SerialNumber); (err == nil) != (q.IDs[0].Serial != pki.Serial{}) || err == nil && serial != q.IDs[0].Serial {
		t.Fatalf("%x is parsed as serial %v, by x/crypto/ocsp as %v", der, q.IDs[0].Serial, theirs.SerialNumber)
	}
}

// comparePlainCertID compares PlainCertID with ParseRequest. If the lengths of their CertIDs are equal, the CertIDs
// must be equal, too.
func comparePlainCertID(t testing.TB, der []byte, q *ocsp.Request) {
	t.Helper()
	id, serial, plain := ocsp.PlainCertID(der)
	if !plain || len(id) != len(q.IDs[0].Raw) { // id is longer if extensions follow the CertID
		return
	}
	if len(q.IDs) != 1 || q.Nonce != nil || !bytes.Equal(id, q.IDs[0].Raw) || serial != q.IDs[0].Serial {
		t.Fatalf("PlainCertID of %x returns %x and %v, but it parses as %+v", der, id, serial, q)
	}
}

func TestPlainCertID(t *testing.T) {
	serial := append([]byte{1}, bytes.Repeat([]byte{9}, 19)...)
	ca := revtest.NewRoot(t, "Root", "p256")
	leaf := ca.Leaf(t, "device")
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		der, err := xocsp.CreateRequest(leaf, ca.Certificate, &xocsp.RequestOptions{Hash: h})
		if err != nil {
			t.Fatal(err)
		}
		q, err := ocsp.ParseRequest(der)
		if err != nil {
			t.Fatal(err)
		}
		if id, got, plain := ocsp.PlainCertID(der); !plain || !bytes.Equal(id, q.IDs[0].Raw) || got != ca.Ref(t, leaf).Serial {
			t.Errorf("%v: %x, %v, %v", h, id, got, plain)
		}
		for n := range der {
			if _, _, plain := ocsp.PlainCertID(der[:n]); plain {
				t.Errorf("%v: PlainCertID accepts the first %d of %d bytes", h, n, len(der))
			}
		}
	}
	id := certID(t, sha1OID, []byte{5, 0}, 20, serial)
	for name, d := range map[string]requestSpec{
		"two":              {ids: [][]byte{id, id}},
		"nonce":            {ids: [][]byte{id}, extensions: sequence(t, nonce(t, 1))},
		"single extension": {ids: [][]byte{id}, single: sequence(t, extension(t, otherOID, nil, []byte{5, 0}))},
		"short serial":     {ids: [][]byte{certID(t, sha1OID, []byte{5, 0}, 20, serial[:19])}},
		"negative serial":  {ids: [][]byte{certID(t, sha1OID, []byte{5, 0}, 20, append([]byte{0x80}, serial[1:]...))}},
	} {
		if got, _, plain := ocsp.PlainCertID(d.der(t)); plain {
			t.Errorf("%s: PlainCertID returns %x, want nothing", name, got)
		}
	}
}
