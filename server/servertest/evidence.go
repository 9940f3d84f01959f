package servertest

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/translog"
)

// Refused checks the status code of an RPC's error, and the rule of the Refusal in its details. The rule "" means that
// the error must have no Refusal.
func Refused(t testing.TB, err error, code codes.Code, rule pki.Rule) {
	t.Helper()
	if got := RuleOf(err); status.Code(err) != code || got != rule {
		t.Errorf("got %v %q, want %v %q: %v", status.Code(err), got, code, rule, err)
	}
	for _, detail := range status.Convert(err).Details() {
		if r, ok := detail.(*brevetv1.Refusal); ok && (r.GetDetail() == "" || r.GetHint() == "") {
			t.Errorf("the refusal lacks what was found or what would pass: %v", r)
		}
	}
}

// RuleOf returns the rule of the Refusal in an RPC's error, or "" if there is none.
func RuleOf(err error) pki.Rule { return pki.Rule(refusalOf(err).GetRule()) }

// HintOf returns the hint of the Refusal in an RPC's error, or "" if there is none.
func HintOf(err error) string { return refusalOf(err).GetHint() }

func refusalOf(err error) *brevetv1.Refusal {
	for _, detail := range status.Convert(err).Details() {
		if r, ok := detail.(*brevetv1.Refusal); ok {
			return r
		}
	}
	return nil
}

// Inventory returns every certificate on record, newest first, including those that were never delivered.
func (w *World) Inventory(t testing.TB) []ra.Certificate {
	t.Helper()
	var all []ra.Certificate
	for after := (ra.CertificatePosition{}); ; {
		page, next, err := w.Stores.RA.Certificates(context.Background(), ra.CertificateFilter{}, after, 1000)
		check(t, err)
		if all = append(all, page...); next.IsZero() {
			return all
		}
		after = next
	}
}

// Entries returns the entries with an index above after, read over the API by the operator.
func (w *World) Entries(t testing.TB, after int) []translog.Entry {
	t.Helper()
	stream := Must(w.Operator.ListEntries(t.Context(), &brevetv1.ListEntriesRequest{Start: &brevetv1.LogPosition{Index: int64(after) + 1}}))(t)
	var all []translog.Entry
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		check(t, err)
		all = append(all, Must(translog.ParseEntry(resp.GetEncoded()))(t))
	}
}

// Find returns the entries with an action and an identity.
func Find(entries []translog.Entry, action translog.Action, identity string) []translog.Entry {
	return slices.DeleteFunc(slices.Clone(entries), func(e translog.Entry) bool {
		return e.Action != action || e.Identity.String() != identity
	})
}

// OCSP requests the status of a certificate from the responder. It repeats the request while the response is tryLater.
// After the clock was set, the responder returns tryLater for a moment.
func (w *World) OCSP(t testing.TB, c *x509.Certificate) *ocsp.Response {
	t.Helper()
	return Must(ocsp.ParseResponseForCert(w.ocspDER(t, c), c, w.Issuing))(t)
}

// ocspDER returns the OCSP response in DER. Unlike OCSP, it does not verify the signature, so the delegate may have a
// key of any type. It repeats the request while the response is tryLater.
func (w *World) ocspDER(t testing.TB, c *x509.Certificate) []byte {
	t.Helper()
	for {
		der := w.AskOCSP(t, c)
		if bytes.Equal(der, ocsp.TryLaterErrorResponse) {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		return der
	}
}

// AskOCSP returns the OCSP response to one request in DER, which may be an error such as tryLater.
func (w *World) AskOCSP(t testing.TB, c *x509.Certificate) []byte {
	t.Helper()
	request := Must(ocsp.CreateRequest(c, w.Issuing, nil))(t)
	resp := Must(w.http.Post("http://"+w.HTTP+"/ocsp", "application/ocsp-request", bytes.NewReader(request)))(t)
	der := Must(io.ReadAll(resp.Body))(t)
	check(t, resp.Body.Close())
	return der
}

// Status checks the status of a certificate in OCSP: good, or revoked with a reason of RFC 5280.
func (w *World) Status(t testing.TB, c *x509.Certificate, want string) {
	t.Helper()
	a := w.OCSP(t, c)
	got := "unknown"
	switch a.Status {
	case ocsp.Good:
		got = "good"
	case ocsp.Revoked:
		got = Must(pki.ReasonFromCode(a.RevocationReason))(t).String()
	}
	if got != want {
		t.Errorf("the OCSP status of certificate %s is %s, want %s", Serial(c), got, want)
	}
}

// auditFiles verifies the archive's chain, and searches all files of the world and the server's log for secrets.
func (w *World) auditFiles(t testing.TB) {
	t.Helper()
	archive := Must(os.Open(w.archivePath()))(t)
	defer archive.Close()
	if head, err := translog.Read(archive, nil); err != nil || head.Size == 0 {
		t.Errorf("the archive does not verify: %d entries, %v", head.Size, err)
	}
	files := map[string][]byte{"the server's own log": []byte(w.Log.String())}
	check(t, filepath.WalkDir(w.Dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		files[path], err = os.ReadFile(path)
		return err
	}))
	if w.shared == nil && len(files[w.storePath()]) == 0 || len(files[w.archivePath()]) == 0 || len(w.secrets) == 0 {
		t.Errorf("there was nothing to audit: %d files, %d secrets", len(files), len(w.secrets))
	}
	for name, content := range files {
		for _, secret := range w.secrets {
			if Leaks(content, secret) {
				t.Errorf("%s contains a token's secret", name)
			}
		}
	}
}

// Leaks reports whether a content contains a secret in any form.
func Leaks(content, secret []byte) bool {
	return slices.ContainsFunc(forms(secret), func(form []byte) bool { return bytes.Contains(content, form) })
}

// forms returns the encodings that a secret may have in a file: raw bytes, hexadecimal, and base64 at any offset in the
// encoded data.
func forms(secret []byte) [][]byte {
	digits := hex.EncodeToString(secret)
	all := [][]byte{secret, []byte(digits), []byte(strings.ToUpper(digits))}
	for _, coding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for before, skip := range []int{0, 2, 3} {
			octets := append(make([]byte, before), secret...)
			text := coding.EncodeToString(octets)
			all = append(all, []byte(text[skip:len(octets)*8/6]))
		}
	}
	return all
}
