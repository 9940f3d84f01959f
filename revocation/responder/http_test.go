package responder_test

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
	"github.com/brevet-pki/brevet/revocation/ocsp"
	"github.com/brevet-pki/brevet/revocation/responder"
)

func TestGETDecodesEveryFormOfBase64(t *testing.T) {
	s := newFixture(t, responder.Config{}, revtest.Key(t, "p256"))
	// The request's base64 must contain +, / and padding. Serial numbers are random, so the test tries several
	// certificates.
	leaf, der, standard := s.ca.Certificate, []byte(nil), ""
	for n := 0; !strings.Contains(standard, "+") || !strings.Contains(standard, "/") || !strings.Contains(standard, "="); n++ {
		if n == 1000 {
			t.Fatal("no request in 1000 has +, / and padding in base64")
		}
		leaf, _ = s.issue(t)
		der = request(t, leaf, s.ca.Certificate, []crypto.Hash{crypto.SHA1, crypto.SHA256}[n%2])
		standard = base64.StdEncoding.EncodeToString(der)
	}
	escaped := strings.NewReplacer("+", "%2B", "/", "%2F", "=", "%3D").Replace(standard)
	var every strings.Builder
	for _, c := range []byte(standard) {
		every.WriteString("%" + big.NewInt(int64(c)).Text(16))
	}
	for name, path := range map[string]string{
		"standard":               standard,
		"without padding":        strings.TrimRight(standard, "="),
		"URL-safe":               base64.URLEncoding.EncodeToString(der),
		"URL-safe, no padding":   base64.RawURLEncoding.EncodeToString(der),
		"escaped":                escaped,
		"escaped in lower case":  strings.NewReplacer("%2B", "%2b", "%2F", "%2f", "%3D", "%3d").Replace(escaped),
		"escaped by net/url":     url.PathEscape(standard),
		"escaped as a query":     url.QueryEscape(standard),
		"every character":        every.String(),
		"plus turned into space": strings.ReplaceAll(standard, "+", "%20"),
		"a slash in front":       "/" + standard,
		"an escaped slash there": "%2F" + standard,
	} {
		if got, _ := s.read(t, leaf, s.get(t, "/ocsp/"+path).Body.Bytes()); got != "good" {
			t.Errorf("%s: %s", name, got)
		}
	}
	for name, path := range map[string]string{
		"not base64":         "!!!!",
		"escaped twice":      url.PathEscape(url.PathEscape(standard) + "%2B"),
		"padding in between": standard[:8] + "=" + standard[8:],
		"too much padding":   standard + "=",
		"a line break":       standard[:8] + "%0A" + standard[8:],
		"CR and LF":          standard[:8] + "%0D%0A" + standard[8:],
		"a line break after": standard + "%0A",
		"a merged slash":     strings.Replace(standard, "/", "", 1), // some proxies merge two slashes
		"truncated":          standard[:40],
		"dots":               "..",
		"bits left over":     "MB",
	} {
		w := s.get(t, "/ocsp/"+path)
		if !bytes.Equal(w.Body.Bytes(), ocsp.MalformedRequest.DER()) || w.Code != http.StatusOK || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: HTTP %d, %x", name, w.Code, w.Body)
		}
	}
}

func TestWrongRequestsGetHTTPErrors(t *testing.T) {
	s := newFixture(t, responder.Config{}, revtest.Key(t, "p256"))
	leaf, _ := s.issue(t)
	good := request(t, leaf, s.ca.Certificate, crypto.SHA1)
	if err := s.publish(t, crl.CRL{Issuer: s.ca.ID(), Number: big.NewInt(1), NextUpdate: time.Now().Add(time.Hour)}, "crl"); err != nil {
		t.Fatal(err)
	}
	const requestType = "application/ocsp-request"
	crl, cer := "/crl/"+s.ca.ID().Short()+".crl", "/ca/"+s.ca.ID().Short()+".cer"
	for name, c := range map[string]struct {
		method, path, contentType string
		body                      []byte
		code                      int
		allow                     string
	}{
		"a valid request":   {"POST", "/ocsp", requestType, good, 200, ""},
		"slash at the end":  {"POST", "/ocsp/", requestType, good, 200, ""},
		"type in capitals":  {"POST", "/ocsp", "Application/OCSP-Request", good, 200, ""},
		"type, parameter":   {"POST", "/ocsp", requestType + "; charset=binary", good, 200, ""},
		"no type":           {"POST", "/ocsp", "", good, 415, ""},
		"a form":            {"POST", "/ocsp", "application/x-www-form-urlencoded", good, 415, ""},
		"type of responses": {"POST", "/ocsp", "application/ocsp-response", good, 415, ""},
		"GET of nothing":    {"GET", "/ocsp", "", nil, 405, "POST"},
		"PUT":               {"PUT", "/ocsp", requestType, good, 405, "POST"},
		"POST where GET":    {"POST", pathOf(good), requestType, good, 405, "GET, HEAD"},
		"DELETE":            {"DELETE", pathOf(good), "", nil, 405, "GET, HEAD"},
		"POST to a CRL":     {"POST", crl, "", nil, 405, "GET, HEAD"},
		"DELETE a CA":       {"DELETE", cer, "", nil, 405, "GET, HEAD"},
		"HEAD":              {"HEAD", pathOf(good), "", nil, 200, ""},
		"too large":         {"POST", "/ocsp", requestType, make([]byte, ocsp.MaxRequestSize+1), 413, ""},
		"too long":          {"GET", "/ocsp/" + strings.Repeat("A", 2*ocsp.MaxRequestSize), "", nil, 414, ""},
		"root":              {"GET", "/", "", nil, 404, ""},
		"elsewhere":         {"POST", "/ocspd", requestType, good, 404, ""},
		"an unknown CRL":    {"GET", "/crl/0123456789abcdef.crl", "", nil, 404, ""},
		"no CRL yet":        {"GET", "/crl/" + s.root.ID().Short() + ".crl", "", nil, 404, ""},
		"a CRL's long name": {"GET", "/crl/" + s.ca.ID().String() + ".crl", "", nil, 404, ""},
		"a CRL's folder":    {"GET", "/crl/", "", nil, 404, ""},
		"another suffix":    {"GET", "/crl/" + s.ca.ID().Short() + ".cer", "", nil, 404, ""},
		"out of the folder": {"GET", "/crl/../ca/" + s.ca.ID().Short() + ".cer", "", nil, 404, ""},
		"out, escaped":      {"GET", "/crl/..%2f..%2fstore.db", "", nil, 404, ""},
		"out, all escaped":  {"GET", "/ca/%2e%2e/crl/" + s.ca.ID().Short() + ".crl", "", nil, 404, ""},
		"another root":      {"GET", "/crl//etc/passwd", "", nil, 404, ""},
		"a byte too many":   {"GET", crl + "%00", "", nil, 404, ""},
		"TRACE":             {"TRACE", crl, "", nil, 405, "GET, HEAD"},
		"OPTIONS":           {"OPTIONS", cer, "", nil, 405, "GET, HEAD"},
		"CRL":               {"GET", crl, "", nil, 200, ""},
		"CRL by HEAD":       {"HEAD", crl, "", nil, 200, ""},
		"CA":                {"GET", cer, "", nil, 200, ""},
	} {
		q := httptest.NewRequestWithContext(t.Context(), c.method, c.path, bytes.NewReader(c.body))
		if c.contentType != "" {
			q.Header.Set("Content-Type", c.contentType)
		}
		w := httptest.NewRecorder()
		s.handler.ServeHTTP(w, q)
		if w.Code != c.code || w.Header().Get("Allow") != c.allow {
			t.Errorf("%s: HTTP %d and Allow %q, want %d and %q: %s", name, w.Code, w.Header().Get("Allow"), c.code, c.allow, w.Body)
		}
		if got := w.Header().Get("Cache-Control"); c.code >= 400 && got != "no-store" {
			t.Errorf("%s: an HTTP error has Cache-Control %q, want no-store", name, got)
		}
	}
	for name, body := range map[string][]byte{"nothing": nil, "zeros": make([]byte, ocsp.MaxRequestSize), "truncated": good[:len(good)-1], "HTTP": []byte("GET / HTTP/1.1\r\n\r\n")} {
		if got, _ := s.read(t, leaf, s.post(t, body)); got != malformed {
			t.Errorf("%s: %s, want %s", name, got, malformed)
		}
	}
}

func TestCacheHeadersFollowStatus(t *testing.T) {
	s := newFixture(t, responder.Config{MaxAge: 30 * time.Second}, revtest.Key(t, "p256"))
	leaf, ref := s.issue(t)
	path := pathOf(request(t, leaf, s.ca.Certificate, crypto.SHA1))
	known := s.clock.now().Truncate(time.Second)
	w := s.get(t, path)
	tag := w.Header().Get("ETag")
	for name, want := range map[string]string{
		"Cache-Control": "public, max-age=30, no-transform, must-revalidate",
		"Last-Modified": known.UTC().Format(http.TimeFormat), "Expires": known.Add(s.validity).UTC().Format(http.TimeFormat),
	} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for header, code := range map[string]int{tag: 304, "*": 304, `"x", W/` + tag: 304, `"x"`: 200, "": 200} {
		w := s.get(t, path, "If-None-Match", header)
		if w.Code != code || (w.Body.Len() == 0) != (code == 304) || w.Header().Get("ETag") != tag {
			t.Errorf("If-None-Match %s: HTTP %d with %d bytes, want %d", header, w.Code, w.Body.Len(), code)
		}
	}
	// Revoke in the same second: a client that revalidates by date must get the new response.
	s.change(t, ref, pki.Revoked, pki.KeyCompromise)
	since := known.UTC().Format(http.TimeFormat)
	if w := s.get(t, path, "If-None-Match", tag, "If-Modified-Since", since); w.Code != http.StatusOK || w.Header().Get("ETag") == tag {
		t.Errorf("after a revocation: HTTP %d with ETag %s", w.Code, w.Header().Get("ETag"))
	}
	if w := s.get(t, path, "If-Modified-Since", since); w.Code != http.StatusOK {
		t.Errorf("If-Modified-Since after a revocation: HTTP %d", w.Code)
	}
	unknown := s.get(t, pathOf(request(t, s.ca.Leaf(t, "stranger"), s.ca.Certificate, crypto.SHA1)))
	if got := unknown.Header().Get("Cache-Control"); got != "no-store" {
		t.Errorf("unknown: Cache-Control %q", got)
	}
	// Near nextUpdate, max-age is shorter.
	s.clock.advance(s.validity - 10*time.Second)
	if got := s.get(t, path).Header().Get("Cache-Control"); !strings.HasPrefix(got, "public, max-age=9,") && !strings.HasPrefix(got, "public, max-age=10,") {
		t.Errorf("ten seconds before nextUpdate: Cache-Control %q", got)
	}
	s.clock.advance(11 * time.Second)
	if w := s.get(t, path); !bytes.Equal(w.Body.Bytes(), ocsp.TryLater.DER()) || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("after nextUpdate: %x with Cache-Control %q, want tryLater and no-store", w.Body, w.Header().Get("Cache-Control"))
	}
}

// publish publishes a CRL whose file contains the text.
func (s *fixture) publish(t testing.TB, c crl.CRL, text string) error {
	t.Helper()
	c.Size, c.SHA256 = int64(len(text)), sha256.Sum256([]byte(text))
	return s.PublishCRL(c, revtest.File(t, "crl", []byte(text)))
}

// TestPartitionCRLsHaveTheirOwnPaths fetches the full CRL, and the CRL and the delta of each partition, by their paths.
func TestPartitionCRLsHaveTheirOwnPaths(t *testing.T) {
	s := newFixture(t, responder.Config{}, revtest.Key(t, "p256"))
	now := s.clock.now().Truncate(time.Second)
	want := map[string]string{}
	for n, c := range []crl.CRL{{}, {Partition: 1}, {Partition: 1, Delta: true}, {Partition: 4096}} {
		c.Issuer, c.Number, c.ThisUpdate, c.NextUpdate = s.ca.ID(), big.NewInt(7), now, now.Add(time.Duration(n+1)*time.Hour)
		text := fmt.Sprintf("list %d", n)
		if err := s.publish(t, c, text); err != nil {
			t.Fatal(err)
		}
		want["/crl/"+c.Scope().Path()] = text
	}
	short := s.ca.ID().Short()
	for _, path := range []string{"/crl/" + short + ".crl", "/crl/" + short + "/1.crl", "/crl/" + short + "/1-delta.crl", "/crl/" + short + "/4096.crl"} {
		w := s.get(t, path)
		if w.Code != http.StatusOK || w.Body.String() != want[path] {
			t.Errorf("%s: HTTP %d %q, want %q", path, w.Code, w.Body, want[path])
		}
	}
	for _, path := range []string{"/1.crl/", "/01.crl", "/2.crl", "/1-delta.crl.crl", "/4096-delta.crl", "/", "/../" + short + ".crl"} {
		if w := s.get(t, "/crl/"+short+path); w.Code != http.StatusNotFound {
			t.Errorf("%s: HTTP %d", path, w.Code)
		}
	}
}

// TestCRLReplacedWhileServedIsServedToItsEnd publishes newer CRLs while a client downloads an older one. The client
// must get all of the older one.
func TestCRLReplacedWhileServedIsServedToItsEnd(t *testing.T) {
	s := newFixture(t, responder.Config{}, revtest.Key(t, "p256"))
	now := s.clock.now().Truncate(time.Second)
	publish := func(n int64, text string) {
		c := crl.CRL{Issuer: s.ca.ID(), Number: big.NewInt(n), ThisUpdate: now, NextUpdate: now.Add(time.Hour)}
		if err := s.publish(t, c, text); err != nil {
			t.Fatal(err)
		}
	}
	old := strings.Repeat("old ", 100_000)
	publish(1, old)
	w := &haltingWriter{ResponseRecorder: httptest.NewRecorder(), first: func() { publish(2, "new"); publish(3, "newer") }}
	s.handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/crl/"+s.ca.ID().Short()+".crl", nil))
	if w.Body.String() != old {
		t.Errorf("the client gets %d bytes of a CRL of %d", w.Body.Len(), len(old))
	}
	if got := s.get(t, "/crl/"+s.ca.ID().Short()+".crl").Body.String(); got != "newer" {
		t.Errorf("after the download %q is served, want newer", got)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// haltingWriter is a ResponseRecorder that calls first before it writes the first bytes of a body.
type haltingWriter struct {
	*httptest.ResponseRecorder
	first func()
}

func (w *haltingWriter) Write(b []byte) (int, error) {
	if w.first != nil {
		w.first()
		w.first = nil
	}
	return w.ResponseRecorder.Write(b)
}

func TestOlderCRLsAndWrongFilesAreRefused(t *testing.T) {
	s := newFixture(t, responder.Config{}, revtest.Key(t, "p256"))
	now := s.clock.now().Truncate(time.Second)
	publish := func(number int64, text string) error {
		return s.publish(t, crl.CRL{Issuer: s.ca.ID(), Number: big.NewInt(number), ThisUpdate: now, NextUpdate: now.Add(time.Hour)}, text)
	}
	path := "/crl/" + s.ca.ID().Short() + ".crl"
	for _, c := range []struct {
		number int64
		text   string
		taken  bool
		serves string
	}{
		{5, "five", true, "five"}, {5, "five", true, "five"}, {4, "four", false, "five"}, {5, "another", false, "five"}, {300, "three hundred", true, "three hundred"},
	} {
		err := publish(c.number, c.text)
		if refusal, refused := pki.AsRefusal(err); refused == c.taken || refused && refusal.Rule != pki.RuleCRL {
			t.Errorf("publish %d: %v", c.number, err)
		}
		w := s.get(t, path)
		if got := w.Body.String(); got != c.serves || w.Header().Get("Content-Type") != "application/pkix-crl" {
			t.Errorf("after %d: serves %q as %s, want %q", c.number, got, w.Header().Get("Content-Type"), c.serves)
		}
	}
	w := s.get(t, path)
	if got := w.Header().Get("Cache-Control"); got != "public, max-age=300, must-revalidate" {
		t.Errorf("Cache-Control %q, want five minutes", got)
	}
	if got := w.Header().Get("Last-Modified"); got != "" {
		t.Errorf("Last-Modified %q, though the CRL before had the same date", got)
	}
	if w := s.get(t, path, "If-None-Match", w.Header().Get("ETag")); w.Code != http.StatusNotModified {
		t.Errorf("If-None-Match: HTTP %d", w.Code)
	}
	if w := s.get(t, path, "If-Modified-Since", now.UTC().Format(http.TimeFormat)); w.Code != http.StatusOK {
		t.Errorf("If-Modified-Since with a date that two CRLs share: HTTP %d", w.Code)
	}
	if w := s.get(t, path, "Range", "bytes=0-4"); w.Code != http.StatusPartialContent || w.Body.String() != "three" {
		t.Errorf("a range: HTTP %d %q", w.Code, w.Body)
	}
	if err := s.publish(t, crl.CRL{Issuer: revtest.NewRoot(t, "Other", "p256").ID(), Number: big.NewInt(1)}, "other"); err == nil {
		t.Error("the CRL of an unknown CA is published")
	}
	for name, err := range map[string]error{
		"a missing file": s.PublishCRL(crl.CRL{Issuer: s.ca.ID(), Number: big.NewInt(301), Size: 1}, filepath.Join(t.TempDir(), "none")),
		"the wrong file": s.PublishCRL(crl.CRL{Issuer: s.ca.ID(), Number: big.NewInt(301), Size: 1}, revtest.File(t, "crl", []byte("two"))),
	} {
		if err == nil || s.get(t, path).Body.String() != "three hundred" {
			t.Errorf("%s is published as a CRL: %v", name, err)
		}
	}
	for _, ca := range []revtest.CA{s.root, s.ca} {
		w := s.get(t, "/ca/"+ca.ID().Short()+".cer")
		if !bytes.Equal(w.Body.Bytes(), ca.Certificate.Raw) || w.Header().Get("Content-Type") != "application/pkix-cert" {
			t.Errorf("the certificate of %s: HTTP %d, %s", ca.Certificate.Subject, w.Code, w.Header().Get("Content-Type"))
		}
	}
}

func FuzzGET(f *testing.F) {
	s := newFixture(f, responder.Config{}, revtest.Key(f, "p256"))
	leaf, _ := s.issue(f)
	der := request(f, leaf, s.ca.Certificate, crypto.SHA1)
	f.Add(pathOf(der))
	f.Add("/ocsp/" + base64.StdEncoding.EncodeToString(der))
	f.Add("/ocsp/" + url.QueryEscape(base64.StdEncoding.EncodeToString(der)))
	f.Add("/ocsp//" + "\x00\xff%")
	f.Add("/crl/" + s.ca.ID().Short() + ".crl")
	f.Add("/ca/../" + s.ca.ID().Short() + ".cer")
	f.Fuzz(func(t *testing.T, path string) {
		q := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: path}, Header: http.Header{}}
		w := httptest.NewRecorder()
		s.handler.ServeHTTP(w, q)
		switch w.Code {
		case http.StatusNotFound, http.StatusRequestURITooLong, http.StatusMethodNotAllowed:
		case http.StatusOK:
			if strings.HasPrefix(path, "/ocsp/") && !bytes.HasPrefix(w.Body.Bytes(), []byte{0x30}) {
				t.Errorf("%q: %x is not an OCSP response", path, w.Body)
			}
		default:
			t.Errorf("%q: HTTP %d", path, w.Code)
		}
	})
}

// TestCRLRevalidationByTagAndDate revalidates CRLs by entity tag and by date. It also checks that max-age does not
// extend beyond nextUpdate.
func TestCRLRevalidationByTagAndDate(t *testing.T) {
	s := newFixture(t, responder.Config{CRLMaxAge: 2 * time.Minute}, revtest.Key(t, "p256"))
	now := s.clock.now().Truncate(time.Second)
	publish := func(number int64, thisUpdate time.Time, life time.Duration) {
		t.Helper()
		c := crl.CRL{Issuer: s.ca.ID(), Number: big.NewInt(number), ThisUpdate: thisUpdate, NextUpdate: now.Add(life)}
		if err := s.publish(t, c, fmt.Sprint("CRL ", number)); err != nil {
			t.Fatal(err)
		}
	}
	path := "/crl/" + s.ca.ID().Short() + ".crl"
	code := func(header ...string) int { return s.get(t, path, header...).Code }
	publish(1, now.Add(-10*time.Second), time.Hour)
	first := s.get(t, path).Header()
	if got := first.Get("Cache-Control"); got != "public, max-age=120, must-revalidate" {
		t.Errorf("Cache-Control %q", got)
	}
	date := first.Get("Last-Modified")
	if date != now.Add(-10*time.Second).UTC().Format(http.TimeFormat) || code("If-Modified-Since", date) != http.StatusNotModified {
		t.Errorf("Last-Modified %q, and If-Modified-Since with it: HTTP %d", date, code("If-Modified-Since", date))
	}
	for _, other := range []string{now.UTC().Format(http.TimeFormat), now.Add(time.Hour).UTC().Format(http.TimeFormat), "yesterday"} {
		if got := code("If-Modified-Since", other); got != http.StatusOK {
			t.Errorf("If-Modified-Since %q, which is not its date: HTTP %d", other, got)
		}
	}
	if got := code("If-Modified-Since", date, "If-None-Match", `"another"`); got != http.StatusOK {
		t.Errorf("If-None-Match with another tag, and its date: HTTP %d", got)
	}
	publish(2, now, 90*time.Second)
	if got := code("If-Modified-Since", date); got != http.StatusOK {
		t.Errorf("If-Modified-Since with the date of the CRL before: HTTP %d", got)
	}
	if got := code("If-None-Match", first.Get("ETag")); got != http.StatusOK {
		t.Errorf("If-None-Match with the tag of the CRL before: HTTP %d", got)
	}
	second := s.get(t, path).Header()
	if got := second.Get("Cache-Control"); got != "public, max-age=90, must-revalidate" && got != "public, max-age=89, must-revalidate" {
		t.Errorf("90 s before nextUpdate: Cache-Control %q", got)
	}
	if got := code("If-None-Match", second.Get("ETag")); got != http.StatusNotModified {
		t.Errorf("If-None-Match with its own tag: HTTP %d", got)
	}
	publish(3, now, time.Hour)
	if got := code("If-Modified-Since", second.Get("Last-Modified")); got != http.StatusOK {
		t.Errorf("If-Modified-Since with a date that two CRLs share: HTTP %d", got)
	}
}
