package est_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/est"
	"github.com/brevet-pki/brevet/server/frontdoor"
)

func TestBodies(t *testing.T) {
	t.Parallel()
	w := build(t, open{})
	csr, token := newCSR(t), newToken(t)
	crlf := inLines(csr, "\r\n")
	for name, c := range map[string]struct {
		body   []byte
		status int
		rule   pki.Rule
		hint   string
	}{
		"one line":                  {inBase64(csr), 200, "", ""},
		"lines":                     {inLines(csr, "\n"), 200, "", ""},
		"lines with CRLF":           {crlf, 200, "", ""},
		"lines with spaces":         {inLines(csr, " \t\n"), 200, "", ""},
		"empty lines at the end":    {append(slices.Clone(crlf), "\r\n\r\n"...), 200, "", ""},
		"nothing":                   {[]byte{' '}, 400, pki.RuleESTBody, "the body is empty"},
		"garbage after it":          {append(slices.Clone(crlf), "!"...), 400, pki.RuleESTBody, "something follows it"},
		"another text after it":     {append(inBase64(append(csr, make([]byte, 3-len(csr)%3)[1:]...)), "==AAAA"...), 400, pki.RuleESTBody, ""},
		"truncated":                 {inBase64(csr)[:101], 400, pki.RuleESTBody, "it is incomplete"},
		"base64url":                 {[]byte("MIH_MIG-"), 400, pki.RuleESTBody, ""},
		"DER":                       {csr, 400, pki.RuleESTBody, "the body is in DER"},
		"PEM":                       {[]byte("-----BEGIN CERTIFICATE REQUEST-----\n" + string(crlf) + "-----END CERTIFICATE REQUEST-----\n"), 400, pki.RuleESTBody, "the body is in PEM"},
		"a truncated multipart":     {[]byte("--boundary\r\nContent-Type: application/pkcs10\r\n\r\n" + string(crlf[:50])), 400, pki.RuleESTBody, "multipart"},
		"more than may be sent":     {bytes.Repeat([]byte("A"), 40<<10), 413, pki.RuleSize, ""},
		"something other than CSRs": {inBase64([]byte("hello")), 200, "", ""}, // package ra refuses it
	} {
		a := w.send(t, call{path: "simpleenroll", body: c.body, user: token})
		a.check(t, name, c.status, c.rule)
		if !strings.Contains(a.text, c.hint) {
			t.Errorf("%s: %q does not contain %q", name, a.text, c.hint)
		}
		if e := w.registrar.last(); (c.status == 200) != (e.CSR != nil) || c.status == 200 && strings.HasPrefix(name, "lines") && !bytes.Equal(e.CSR, csr) {
			t.Errorf("%s: the CSR is %x", name, e.CSR)
		}
	}
	if n := len(w.registrar.noted); n != 8 {
		t.Errorf("%d refused bodies were noted with their evidence, want 8", n)
	}
}

func TestAuthentication(t *testing.T) {
	t.Parallel()
	w := build(t, open{})
	token, factory := newToken(t), newAuthority(t, "Acme").issue(t, "camera")
	own := w.authorities.issuing.issue(t, "device")
	body := inBase64(newCSR(t))
	for name, c := range map[string]struct {
		call
		status int
		rule   pki.Rule
		kinds  []pki.EvidenceKind
	}{
		"a token":                        {call{user: token}, 200, "", []pki.EvidenceKind{pki.EvidenceToken}},
		"a factory certificate":          {call{device: &factory}, 200, "", []pki.EvidenceKind{pki.EvidenceX5CTLS}},
		"with TLS 1.2":                   {call{device: &factory, version: tls.VersionTLS12}, 200, "", []pki.EvidenceKind{pki.EvidenceX5CTLS}},
		"both":                           {call{user: token, device: &factory}, 200, "", []pki.EvidenceKind{pki.EvidenceToken, pki.EvidenceX5CTLS}},
		"a token and an own certificate": {call{user: token, device: &own}, 200, "", []pki.EvidenceKind{pki.EvidenceToken}},
		"nothing":                        {call{}, 401, "", nil},
		"an own certificate":             {call{device: &own}, 401, pki.RuleUnauthenticated, nil},
		"no token":                       {call{user: "secret"}, 401, pki.RuleToken, nil},
		"a damaged token":                {call{user: token[:len(token)-1]}, 401, pki.RuleToken, nil},
	} {
		c.path, c.body = "simpleenroll", body
		a := w.send(t, c.call)
		a.check(t, name, c.status, c.rule)
		if challenge := a.Header.Get("WWW-Authenticate"); (c.status == 401) != strings.HasPrefix(challenge, "Basic realm=") {
			t.Errorf("%s: %d with the challenge %q", name, c.status, challenge)
		}
		if strings.Contains(a.text, token[20:40]) || strings.Contains(a.text, "secret") {
			t.Errorf("%s: the response contains the secret: %q", name, a.text)
		}
		var kinds []pki.EvidenceKind
		for _, e := range w.registrar.last().Evidence {
			kinds = append(kinds, e.Kind)
			if e.Kind == pki.EvidenceX5CTLS && !bytes.Equal(e.Value, pki.X5CTLSEvidence{Certificates: factory.Certificate}.Encode()) {
				t.Errorf("%s: the evidence is %x", name, e.Value)
			}
		}
		if !slices.Equal(kinds, c.kinds) {
			t.Errorf("%s: the evidence is of the kinds %v, want %v", name, kinds, c.kinds)
		}
	}
	a := w.send(t, call{path: "simplereenroll", body: body})
	a.check(t, "simplereenroll without a certificate", 403, pki.RuleUnauthenticated)
	a = w.send(t, call{path: "simplereenroll", body: body, device: &factory})
	a.check(t, "simplereenroll with a factory certificate", 403, pki.RuleCertificate)
}

// The handshake of an old connection is no evidence. A token on it is.
func TestOldConnections(t *testing.T) {
	t.Parallel()
	issued, factory := newAuthority(t, "Fleet"), newAuthority(t, "Acme").issue(t, "camera")
	by := &registrar{issued: ca.Certificate{DER: issued.issue(t, "device").Certificate[0]}}
	door := est.New(est.Config{Registrar: by, Authorities: authorities{root: issued, issuing: issued}, Labels: labels, MinVersion: tls.VersionTLS12})
	i := slices.IndexFunc(door.Routes, func(r frontdoor.Route) bool { return strings.HasSuffix(r.Path, "/est/simpleenroll") })
	for name, c := range map[string]struct {
		old    bool
		device *tls.Certificate
		rule   pki.Rule
	}{"new": {false, &factory, ""}, "old": {true, &factory, pki.RuleCertificate}, "old, without a certificate": {true, nil, ""}} {
		q := must(http.NewRequestWithContext(t.Context(), http.MethodPost, "https://localhost/.well-known/est/simpleenroll", nil))(t)
		q.TLS = &tls.ConnectionState{}
		q.SetBasicAuth("", newToken(t))
		r := &frontdoor.Request{Request: q, Content: inBase64(newCSR(t)), Old: c.old}
		if c.device != nil {
			r.Chain = c.device.Certificate
		}
		_, err := door.Routes[i].Handle(t.Context(), r)
		if refusal, _ := pki.AsRefusal(err); (c.rule == "") != (err == nil) || err != nil && refusal.Rule != c.rule {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A repeated request has the same ID. A request with another key, token or certificate has another.
func TestRequestIDs(t *testing.T) {
	t.Parallel()
	w := build(t, open{})
	acme := newAuthority(t, "Acme")
	a, b, one, two := newToken(t), newToken(t), acme.issue(t, "1"), acme.issue(t, "2")
	x, y := inBase64(newCSR(t)), inBase64(newCSR(t))
	seen := map[pki.RequestID]bool{}
	for _, c := range []call{
		{body: x, user: a}, {body: y, user: a}, {body: x, user: b}, {body: x, device: &one}, {body: x, device: &two}, {body: x, user: a, device: &one},
	} {
		c.path = "simpleenroll"
		w.send(t, c).check(t, "a request", 200, "")
		id := w.registrar.last().RequestID
		if seen[id] || id.IsZero() {
			t.Errorf("the request ID %s is used for two requests", id)
		}
		seen[id] = true
		c.path = "chain/simpleenroll"
		w.send(t, c).check(t, "its repeat", 200, "")
		if again := w.registrar.last().RequestID; again != id {
			t.Errorf("a repeat has the request ID %s, want %s", again, id)
		}
	}
}

func TestLabels(t *testing.T) {
	t.Parallel()
	w := build(t, open{})
	token, body := newToken(t), inBase64(newCSR(t))
	for path, status := range map[string]int{
		"simpleenroll": 200, "default/simpleenroll": 200, "chain/simpleenroll": 200, "other/simpleenroll": 404, "Default/simpleenroll": 404,
		"default/x/simpleenroll": 404, "default/simpleenrol": 404, "%2e%2e/simpleenroll": 404,
	} {
		a := w.send(t, call{path: path, body: body, user: token})
		if a.StatusCode != status {
			t.Errorf("%s: %s %q, want %d", path, a.Status, a.text, status)
		}
	}
	for _, path := range []string{"cacerts", "csrattrs"} {
		w.send(t, call{path: "other/" + path}).check(t, path, 404, pki.RuleLabel)
	}
	for _, path := range []string{"serverkeygen", "fullcmc", "chain/serverkeygen"} {
		w.send(t, call{path: path, body: body, user: token}).check(t, path, 501, pki.RuleESTOperation)
	}
	if a := w.send(t, call{path: "simpleenroll", user: token}); a.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET simpleenroll: %s", a.Status)
	}
}

// temporary is an error that passes.
type temporary struct{ after time.Duration }

func (temporary) Error() string               { return "the password of the store is 1234" }
func (temporary) Temporary() bool             { return true }
func (e temporary) RetryAfter() time.Duration { return e.after }

func TestErrors(t *testing.T) {
	t.Parallel()
	w := build(t, open{})
	token, body := newToken(t), inBase64(newCSR(t))
	for name, c := range map[string]struct {
		err    error
		status int
		after  string
	}{
		"no rule":              {pki.Refuse(pki.RulePolicy, "ask", "no rule"), 403, ""},
		"a conflict":           {pki.Refuse(pki.RuleAlreadyEnrolled, "ask", "enrolled"), 409, ""},
		"too many":             {pki.Refuse(pki.RuleMaxUnexpired, "wait", "too many"), 429, ""},
		"renewed too early":    {errors.Join(pki.Refuse(pki.RuleRenewalTooEarly, "wait", "too early"), temporary{time.Hour}), 429, "3600"},
		"over a rule's rate":   {errors.Join(pki.Refuse(pki.RulePolicyLimit, "wait", "too often"), temporary{time.Minute}), 429, "60"},
		"above the rate":       {errors.Join(pki.Refuse(pki.RuleRateLimited, "wait", "too often"), temporary{time.Minute}), 202, "60"},
		"no time to repeat":    {pki.Refuse(pki.RuleOverloaded, "wait", "too much work"), 202, "10"},
		"a busy HSM":           {temporary{1500 * time.Millisecond}, 202, "2"},
		"an HSM that is away":  {temporary{}, 202, "10"},
		"a failure":            {errors.New("the password of the store is 1234"), 500, ""},
		"a lack of permission": {pki.Refuse(pki.RuleRevoked, "ask", "revoked"), 403, ""},
	} {
		w.registrar.err = c.err
		a := w.send(t, call{path: "simpleenroll", body: body, user: token})
		a.check(t, name, c.status, "")
		if a.Header.Get("Retry-After") != c.after || a.text == "" || strings.Contains(a.text, "1234") {
			t.Errorf("%s: Retry-After %q, %q", name, a.Header.Get("Retry-After"), a.text)
		}
	}
	shed := build(t, open{refuse: errors.Join(pki.Refuse(pki.RuleOverloaded, "wait", "too many requests"), temporary{time.Second})})
	a := shed.send(t, call{path: "simpleenroll", body: body, user: token})
	a.check(t, "a shed enrollment", 202, pki.RuleOverloaded)
	if a.Header.Get("Retry-After") != "1" {
		t.Errorf("a shed enrollment is to be repeated after %q", a.Header.Get("Retry-After"))
	}
	shed.send(t, call{path: "cacerts"}).check(t, "a shed read", 429, pki.RuleOverloaded)
}

// A connection that exports no keying material, such as one of TLS 1.2 without the extended master secret, has no value of
// tls-unique that identifies it.
func TestBindings(t *testing.T) {
	t.Parallel()
	w := build(t, open{})
	for name, c := range map[string]struct {
		config *tls.Config
		want   int
	}{
		"TLS 1.3":   {&tls.Config{}, 1},
		"TLS 1.2":   {&tls.Config{MaxVersion: tls.VersionTLS12}, 2},
		"no export": {&tls.Config{MaxVersion: tls.VersionTLS12, Renegotiation: tls.RenegotiateOnceAsClient}, 0},
	} {
		c.config.InsecureSkipVerify = true
		dialer := tls.Dialer{Config: c.config}
		conn := must(dialer.DialContext(t.Context(), "tcp", w.host()))(t)
		state := conn.(*tls.Conn).ConnectionState()
		if got := est.Bindings(&state); len(got) != c.want {
			t.Errorf("%s: %d values, want %d", name, len(got), c.want)
		}
		_ = conn.Close()
	}
}

func TestLinking(t *testing.T) {
	t.Parallel()
	w := build(t, open{})
	token := newToken(t)
	for name, c := range map[string]struct {
		version uint16
		value   func(tls.ConnectionState) []byte
		status  int
		linked  bool
	}{
		"tls-unique":          {tls.VersionTLS12, func(s tls.ConnectionState) []byte { return s.TLSUnique }, 200, true},
		"tls-exporter":        {tls.VersionTLS13, exporter, 200, true},
		"tls-exporter of 1.2": {tls.VersionTLS12, exporter, 200, true},
		"of another":          {tls.VersionTLS13, func(tls.ConnectionState) []byte { return make([]byte, 32) }, 403, false},
		"truncated":           {tls.VersionTLS13, func(s tls.ConnectionState) []byte { return exporter(s)[:30] }, 403, false},
		"none":                {tls.VersionTLS13, nil, 200, false},
	} {
		// The connection is opened before the CSR is made, as clients do that link CSRs.
		dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, MaxVersion: c.version}}
		conn := must(dialer.DialContext(t.Context(), "tcp", w.host()))(t)
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
			return conn, nil
		}}}
		der := newCSR(t)
		if c.value != nil {
			state := conn.(*tls.Conn).ConnectionState()
			der = withPassword(t, base64.StdEncoding.EncodeToString(c.value(state)))
		}
		a := sendOn(t, client, w.url, call{path: "linked/simpleenroll", body: inBase64(der), user: token})
		rule := pki.RuleLinking
		if c.status == 200 {
			rule = ""
		}
		a.check(t, name, c.status, rule)
		if e := w.registrar.last(); e.Linked != c.linked || c.status == 200 && e.Label != "linked" {
			t.Errorf("%s: linked is %v, with the label %s", name, e.Linked, e.Label)
		}
	}
}

func exporter(s tls.ConnectionState) []byte {
	b, err := s.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil {
		return nil
	}
	return b
}

// withPassword returns a CSR with the attribute challengePassword.
func withPassword(t testing.TB, password string) []byte {
	t.Helper()
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	openssl(t, nil, "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", key)
	config := filepath.Join(dir, "config")
	write(t, config, "[req]\nprompt=no\ndistinguished_name=dn\nattributes=attributes\n[dn]\nCN=device\n[attributes]\nchallengePassword="+password+"\n")
	return openssl(t, nil, "req", "-new", "-key", key, "-config", config, "-outform", "DER")
}

// openssl runs OpenSSL and returns its output.
func openssl(t testing.TB, input []byte, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	cmd.Stdin = bytes.NewReader(input)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("openssl %v: %v\n%s", args, err, exit.Stderr)
		}
		t.Fatalf("openssl %v: %v (run deploy/setup.sh --test)", args, err)
	}
	return out
}

// OpenSSL reads the responses.
func TestResponses(t *testing.T) {
	t.Parallel()
	w := build(t, open{})
	token, body := newToken(t), inBase64(newCSR(t))
	for path, want := range map[string][]string{
		"simpleenroll": {"CN = device"}, "chain/simpleenroll": {"CN = device", "CN = Fleet Issuing"},
		"cacerts": {"CN = Fleet Root", "CN = Fleet Issuing"}, "chain/cacerts": {"CN = Fleet Root", "CN = Fleet Issuing"},
	} {
		c := call{path: path, body: body, user: token}
		if strings.HasSuffix(path, "cacerts") {
			c = call{path: path}
		}
		a := w.send(t, c)
		a.check(t, path, 200, "")
		if a.Header.Get("Content-Type") != "application/pkcs7-mime; smime-type=certs-only" || a.Header.Get("Content-Transfer-Encoding") != "base64" {
			t.Errorf("%s: the headers are %v", path, a.Header)
		}
		if path == "simpleenroll" && len(a.text) >= 2000 {
			t.Errorf("the response has %d bytes", len(a.text))
		}
		der := openssl(t, []byte(a.text), "base64", "-d", "-A")
		var subjects []string
		for line := range strings.Lines(string(openssl(t, der, "pkcs7", "-inform", "DER", "-print_certs", "-noout"))) {
			if subject, ok := strings.CutPrefix(strings.TrimSpace(line), "subject="); ok {
				subjects = append(subjects, subject)
			}
		}
		if !slices.Equal(subjects, want) {
			t.Errorf("%s has certificates of %q, want %q", path, subjects, want)
		}
	}
}

func TestAttributes(t *testing.T) {
	t.Parallel()
	w := build(t, open{})
	for label, want := range map[string][]string{
		"default":  nil,
		"chain":    {":id-ecPublicKey", ":prime256v1", ":ecdsa-with-SHA256"},
		"linked":   {":challengePassword"},
		"template": {":1.2.840.113549.1.9.16.2.61", "INTEGER", "cont [ 0 ]", ":id-ecPublicKey", ":secp384r1", "cont [ 1 ]", ":challengePassword"},
		"rsa":      {":1.2.840.113549.1.9.16.2.61", "cont [ 0 ]", ":rsaEncryption", "NULL", "BIT STRING", "cont [ 1 ]"},
		"any":      {":1.2.840.113549.1.9.16.2.61", "INTEGER", "cont [ 1 ]"},
	} {
		a := w.send(t, call{path: label + "/csrattrs"})
		if want == nil {
			if a.StatusCode != http.StatusNoContent || a.text != "" {
				t.Errorf("%s: %s %q", label, a.Status, a.text)
			}
			continue
		}
		a.check(t, label, 200, "")
		if a.Header.Get("Content-Type") != "application/csrattrs" {
			t.Errorf("%s: the type is %s", label, a.Header.Get("Content-Type"))
		}
		printed := string(openssl(t, openssl(t, []byte(a.text), "base64", "-d", "-A"), "asn1parse", "-inform", "DER"))
		rest := printed
		for _, part := range want {
			_, after, found := strings.Cut(rest, part)
			if !found {
				t.Errorf("%s: after the parts before it, there is no %q in\n%s", label, part, printed)
			}
			rest = after
		}
	}
}

// strongSwan 5.9.8 reads a response in two pieces: one with the headers, and one with the rest of the body, each of which
// must be in one record of TLS.
func TestLargeResponsesAreInTwoRecords(t *testing.T) {
	t.Parallel()
	var old [][]byte
	for range 20 {
		old = append(old, newAuthority(t, "Old Root").certificate.Raw)
	}
	w := build(t, open{}, old...)
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
	conn := must(dialer.DialContext(t.Context(), "tcp", w.host()))(t)
	defer func() { _ = conn.Close() }()
	must(conn.Write([]byte("GET /.well-known/est/cacerts HTTP/1.1\r\nHost: localhost\r\n\r\n")))(t)
	buffer := make([]byte, 16<<10) // of the size of a record; Read returns at most one
	headers := string(buffer[:must(conn.Read(buffer))(t)])
	body := buffer[:must(conn.Read(buffer))(t)]
	if len(body) < 8<<10 || !strings.HasSuffix(headers, "\r\n\r\n") || !strings.Contains(headers, fmt.Sprintf("Content-Length: %d\r\n", len(body))) {
		t.Errorf("the second record has %d bytes, and the first is %q", len(body), headers)
	}
}
