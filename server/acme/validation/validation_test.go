package validation_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	xacme "golang.org/x/crypto/acme"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/server/acme/validation"
	"github.com/brevet-pki/brevet/server/acme/validation/validationtest"
)

const (
	name  = "host.fleet.example"
	token = "dG9rZW4tb2YtYS1jaGFsbGVuZ2U"
)

var (
	thumbprint = sha256.Sum256([]byte("the key of the account"))
	keyAuth    = token + "." + base64.RawURLEncoding.EncodeToString(thumbprint[:])
	digest     = sha256.Sum256([]byte(keyAuth))
	loopback   = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
)

func challenge(kind acme.ChallengeType, value string) validation.Challenge {
	c := validation.Challenge{Type: kind, Identifier: acme.Identifier{Type: acme.DNS, Value: value}, Token: token, Thumbprint: thumbprint}
	if _, err := netip.ParseAddr(value); err == nil {
		c.Identifier.Type = acme.IP
	}
	return c
}

func wantRule(t *testing.T, what string, got *pki.Refusal, want pki.Rule) {
	t.Helper()
	switch {
	case want == "" && got != nil:
		t.Errorf("%s: refused: %v", what, got)
	case want != "" && (got == nil || got.Rule != want || got.Hint == "" || got.Detail == ""):
		t.Errorf("%s: got %v, want a refusal by %s", what, got, want)
	}
}

// secret is in every response of a hostile host, and must be in no refusal.
const secret = "s3cr3t-of-the-internal-host"

// web returns the port of an HTTP server.
func web(t *testing.T, h http.HandlerFunc) uint16 {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return portOf(t, s.Listener.Addr())
}

func portOf(t *testing.T, a net.Addr) uint16 {
	t.Helper()
	return netip.MustParseAddrPort(a.String()).Port()
}

func TestHTTP(t *testing.T) {
	z := validationtest.NewZone(t)
	z.Address(t, name, "127.0.0.1")
	respond := func(status int, header, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if name, value, ok := strings.Cut(header, ": "); ok {
				w.Header().Set(name, value)
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	for what, c := range map[string]struct {
		handler http.HandlerFunc
		rule    pki.Rule
	}{
		"the key authorization": {respond(200, "", keyAuth), ""},
		"a line break after it": {respond(200, "", keyAuth+"\r\n\n"), ""},
		"the right request": {func(w http.ResponseWriter, r *http.Request) {
			if r.Host == name && r.URL.Path == "/.well-known/acme-challenge/"+token && r.Method == http.MethodGet {
				_, _ = io.WriteString(w, keyAuth)
			}
		}, ""},
		"a space before it":    {respond(200, "", " "+keyAuth), pki.RuleACMEValidationAnswer},
		"nothing":              {respond(200, "", ""), pki.RuleACMEValidationAnswer},
		"another text":         {respond(200, "", secret), pki.RuleACMEValidationAnswer},
		"the token alone":      {respond(200, "", token), pki.RuleACMEValidationAnswer},
		"not found":            {respond(404, "", keyAuth), pki.RuleACMEValidationAnswer},
		"another success":      {respond(201, "", keyAuth), pki.RuleACMEValidationAnswer},
		"a redirect":           {respond(302, "Location: http://169.254.169.254/"+secret, keyAuth), pki.RuleACMEValidationAnswer},
		"a redirect to HTTPS":  {respond(301, "Location: https://"+name+"/", keyAuth), pki.RuleACMEValidationAnswer},
		"a megabyte":           {respond(200, "", strings.Repeat(secret, 1<<20/len(secret))), pki.RuleACMEValidationDial},
		"headers without end":  {respond(200, "X: "+strings.Repeat("x", 30<<10), keyAuth), pki.RuleACMEValidationDial},
		"compression":          {respond(200, "Content-Encoding: gzip", secret), pki.RuleACMEValidationAnswer},
		"an aborted response":  {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, pki.RuleACMEValidationDial},
		"switching protocols":  {respond(101, "Upgrade: "+secret, ""), pki.RuleACMEValidationAnswer},
		"a key of another one": {respond(200, "", token+"."+strings.Repeat("A", 43)), pki.RuleACMEValidationAnswer},
	} {
		v := validation.New(validation.Config{Resolvers: []netip.AddrPort{z.Addr}, Networks: loopback, HTTPPort: web(t, c.handler)})
		got := v.Validate(t.Context(), challenge(acme.HTTP01, name))
		wantRule(t, what, got, c.rule)
		if got != nil && strings.Contains(got.Error(), secret) {
			t.Errorf("%s: the refusal repeats the response: %v", what, got)
		}
	}
	v := validation.New(validation.Config{Networks: loopback, HTTPPort: web(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, keyAuth)
		if r.Host != "127.0.0.1" {
			t.Errorf("the Host header is %q", r.Host)
		}
	})})
	wantRule(t, "an IP address", v.Validate(t.Context(), challenge(acme.HTTP01, "127.0.0.1")), "")
}

func TestHostsThatDoNotAnswer(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	for what, l := range map[string]net.Listener{"silent": silent, "closed": closed} {
		port := portOf(t, l.Addr())
		v := validation.New(validation.Config{Networks: loopback, HTTPPort: port, TLSPort: port})
		wantRule(t, what, v.Validate(ctx, challenge(acme.HTTP01, "127.0.0.1")), pki.RuleACMEValidationDial)
		got := v.Validate(ctx, challenge(acme.TLSALPN01, "127.0.0.1"))
		if got == nil || got.Rule != pki.RuleACMEValidationDial && got.Rule != pki.RuleACMEValidationTLS {
			t.Errorf("%s: tls-alpn-01: %v", what, got)
		}
	}
}

func TestNetworks(t *testing.T) {
	for addr, want := range map[string]bool{
		"192.0.2.1": true, "10.0.0.1": true, "192.168.1.1": true, "100.64.0.1": true, "2001:db8::1": true, "fd00::1": true,
		"64:ff9b::c000:201": true, "::ffff:10.0.0.1": true,
		"127.0.0.1": false, "127.255.255.254": false, "::1": false, "::": false, "0.0.0.0": false, "0.1.2.3": false,
		"169.254.169.254": false, "169.254.0.1": false, "fe80::1": false, "224.0.0.1": false, "ff02::1": false,
		"255.255.255.255": false, "240.0.0.1": false, "100.100.100.200": false, "168.63.129.16": false, "192.0.0.192": false,
		"fd00:ec2::254": false, "fd20:ce::254": false, "::ffff:127.0.0.1": false, "::ffff:169.254.169.254": false,
		"64:ff9b::7f00:1": false, "64:ff9b::a9fe:a9fe": false, "64:ff9b:1::1": false, "2002:7f00:1::": false, "::127.0.0.1": false,
		"2001::1": false, "fec0::1": false,
	} {
		if got := validation.DefaultAllows(netip.MustParseAddr(addr)); got != want {
			t.Errorf("DefaultAllows(%s) = %t", addr, got)
		}
	}
}

// A name that resolves to forbidden addresses is refused without a connection. Of several addresses, only allowed ones
// are used.
func TestForbiddenAddresses(t *testing.T) {
	z := validationtest.NewZone(t)
	connected := 0
	port := web(t, func(w http.ResponseWriter, _ *http.Request) {
		connected++
		_, _ = io.WriteString(w, keyAuth)
	})
	config := validation.Config{Resolvers: []netip.AddrPort{z.Addr}, HTTPPort: port, TLSPort: port}
	z.Address(t, name, "127.0.0.1")
	z.Address(t, name, "::1")
	z.Address(t, name, "169.254.169.254")
	v := validation.New(config)
	for _, kind := range []acme.ChallengeType{acme.HTTP01, acme.TLSALPN01} {
		wantRule(t, string(kind), v.Validate(t.Context(), challenge(kind, name)), pki.RuleACMEValidationHost)
		wantRule(t, string(kind), v.Validate(t.Context(), challenge(kind, "127.0.0.1")), pki.RuleACMEValidationHost)
	}
	if connected != 0 {
		t.Errorf("the forbidden host got %d requests", connected)
	}
	config.Networks = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	v = validation.New(config)
	wantRule(t, "one of three", v.Validate(t.Context(), challenge(acme.HTTP01, name)), "")
}

// Names below localhost have the loopback addresses. By default, these are forbidden as any other loopback address.
func TestNamesBelowLocalhost(t *testing.T) {
	z := validationtest.NewZone(t)
	port := web(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, keyAuth) })
	config := validation.Config{Resolvers: []netip.AddrPort{z.Addr}, HTTPPort: port}
	v := validation.New(config)
	config.Networks = loopback
	dev := validation.New(config)
	for _, local := range []string{"localhost", "web.localhost", "a.b.localhost"} {
		wantRule(t, local+", by default", v.Validate(t.Context(), challenge(acme.HTTP01, local)), pki.RuleACMEValidationHost)
		wantRule(t, local, dev.Validate(t.Context(), challenge(acme.HTTP01, local)), "")
	}
	if n := z.Count("udp"); n != 0 {
		t.Errorf("the resolver got %d queries, want none", n)
	}
	wantRule(t, "another name", dev.Validate(t.Context(), challenge(acme.HTTP01, "notlocalhost")), pki.RuleACMEValidationDNS)
}

// TestBrokenIPv6 checks that a host with many broken IPv6 addresses is reached over IPv4.
func TestBrokenIPv6(t *testing.T) {
	z := validationtest.NewZone(t)
	for n := range 6 {
		z.Address(t, name, fmt.Sprintf("fd00::%d", n+1))
	}
	z.Address(t, name, "127.0.0.1")
	port := web(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, keyAuth) })
	networks := append([]netip.Prefix{netip.MustParsePrefix("fd00::/8")}, loopback...)
	v := validation.New(validation.Config{Resolvers: []netip.AddrPort{z.Addr}, Networks: networks, HTTPPort: port})
	wantRule(t, "http-01", v.Validate(t.Context(), challenge(acme.HTTP01, name)), "")

	var all []netip.Addr
	for _, a := range []string{"fd00::1", "fd00::2", "fd00::3", "192.0.2.1", "192.0.2.2"} {
		all = append(all, netip.MustParseAddr(a))
	}
	if got := fmt.Sprint(validation.Interlaced(all)); got != "[fd00::1 192.0.2.1 fd00::2 192.0.2.2 fd00::3]" {
		t.Errorf("the addresses are tried as %s", got)
	}
}

// A name that changes its address between the check and the connection does not lead elsewhere, because it is resolved
// once.
func TestNamesAreResolvedOnce(t *testing.T) {
	z := validationtest.NewZone(t)
	z.Address(t, name, "127.0.0.1")
	port := web(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, keyAuth) })
	v := validation.New(validation.Config{Resolvers: []netip.AddrPort{z.Addr}, Networks: loopback, HTTPPort: port})
	wantRule(t, "http-01", v.Validate(t.Context(), challenge(acme.HTTP01, name)), "")
	if n := z.Count("udp"); n != 2 {
		t.Errorf("the resolver got %d queries, want one for AAAA and one for A", n)
	}
}

func TestDNS(t *testing.T) {
	want := base64.RawURLEncoding.EncodeToString(digest[:])
	text := func(parts ...string) dnsmessage.ResourceBody { return &dnsmessage.TXTResource{TXT: parts} }
	validate := func(z *validationtest.Zone) *pki.Refusal {
		return validation.New(validation.Config{Resolvers: []netip.AddrPort{z.Addr}}).Validate(t.Context(), challenge(acme.DNS01, name))
	}
	const at = "_acme-challenge." + name
	for what, c := range map[string]struct {
		zone func(z *validationtest.Zone)
		rule pki.Rule
	}{
		"the digest":        {func(z *validationtest.Zone) { z.Add(t, at, text(want)) }, ""},
		"in two strings":    {func(z *validationtest.Zone) { z.Add(t, at, text(want[:10], want[10:])) }, ""},
		"the second record": {func(z *validationtest.Zone) { z.Add(t, at, text("other")); z.Add(t, at, text(want)) }, ""},
		"over TCP": {func(z *validationtest.Zone) {
			z.Add(t, at, text(strings.Repeat("x", 255), strings.Repeat("y", 255), strings.Repeat("z", 255)))
			z.Add(t, at, text(want))
		}, ""},
		"no name":             {func(*validationtest.Zone) {}, pki.RuleACMEValidationDNS},
		"no TXT":              {func(z *validationtest.Zone) { z.Address(t, at, "127.0.0.1") }, pki.RuleACMEValidationDNS},
		"another text":        {func(z *validationtest.Zone) { z.Add(t, at, text(secret)) }, pki.RuleACMEValidationAnswer},
		"at the name itself":  {func(z *validationtest.Zone) { z.Add(t, name, text(want)) }, pki.RuleACMEValidationDNS},
		"SERVFAIL":            {func(z *validationtest.Zone) { z.Fail(dnsmessage.RCodeServerFailure) }, pki.RuleACMEValidationDNS},
		"an alias":            {func(z *validationtest.Zone) { z.Alias(t, at, "a.example"); z.Add(t, "a.example", text(want)) }, ""},
		"an alias to nothing": {func(z *validationtest.Zone) { z.Alias(t, at, "a.example") }, pki.RuleACMEValidationDNS},
		"an alias to itself":  {func(z *validationtest.Zone) { z.Alias(t, at, at) }, pki.RuleACMEValidationDNS},
		"eight aliases":       {func(z *validationtest.Zone) { chain(t, z, at, 8); z.Add(t, "a8.example", text(want)) }, ""},
		"nine aliases":        {func(z *validationtest.Zone) { chain(t, z, at, 9); z.Add(t, "a9.example", text(want)) }, pki.RuleACMEValidationDNS},
		"a record of a stranger": {func(z *validationtest.Zone) {
			z.Add(t, at, text("other"))
			z.Change(func(m *dnsmessage.Message) {
				for i := range m.Answers {
					m.Answers[i].Header.Name = dnsmessage.MustNewName("other.example.")
					m.Answers[i].Body = text(want)
				}
			})
		}, pki.RuleACMEValidationDNS},
		"another question": {func(z *validationtest.Zone) {
			z.Add(t, at, text(want))
			z.Change(func(m *dnsmessage.Message) { m.Questions[0].Name = dnsmessage.MustNewName("other.example.") })
		}, pki.RuleACMEValidationDNS},
		"another ID": {func(z *validationtest.Zone) {
			z.Add(t, at, text(want))
			z.Change(func(m *dnsmessage.Message) { m.ID++ })
		}, pki.RuleACMEValidationDNS},
		"no response bit": {func(z *validationtest.Zone) {
			z.Add(t, at, text(want))
			z.Change(func(m *dnsmessage.Message) { m.Response = false })
		}, pki.RuleACMEValidationDNS},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			z := validationtest.NewZone(t)
			c.zone(z)
			got := validate(z)
			wantRule(t, what, got, c.rule)
			if got != nil && strings.Contains(got.Error(), secret) {
				t.Errorf("%s: the refusal repeats the response: %v", what, got)
			}
			if what == "over TCP" && z.Count("tcp") != 1 {
				t.Error("the truncated response was not asked for over TCP")
			}
		})
	}
	v := validation.New(validation.Config{})
	wantRule(t, "no resolver", v.Validate(t.Context(), challenge(acme.DNS01, name)), pki.RuleACMEValidationDNS)
	wantRule(t, "an IP address", v.Validate(t.Context(), challenge(acme.DNS01, "127.0.0.1")), pki.RuleACMEValidationAnswer)
	wantRule(t, "another type", v.Validate(t.Context(), challenge("tls-sni-01", name)), pki.RuleACMEValidationAnswer)
}

// chain adds n aliases, the last one to aN.example.
func chain(t *testing.T, z *validationtest.Zone, from string, n int) {
	t.Helper()
	for i := 1; i <= n; i++ {
		to := fmt.Sprintf("a%d.example", i)
		z.Alias(t, from, to)
		from = to
	}
}

// If the first resolver does not respond, the second one is asked.
func TestSecondResolver(t *testing.T) {
	z := validationtest.NewZone(t)
	z.Add(t, "_acme-challenge."+name, &dnsmessage.TXTResource{TXT: []string{base64.RawURLEncoding.EncodeToString(digest[:])}})
	closed, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := netip.MustParseAddrPort(closed.LocalAddr().String())
	_ = closed.Close()
	v := validation.New(validation.Config{Resolvers: []netip.AddrPort{dead, z.Addr}})
	wantRule(t, "the second resolver", v.Validate(t.Context(), challenge(acme.DNS01, name)), "")
}

// certificate returns a certificate for tls-alpn-01, which edit changes before it is signed.
func certificate(t testing.TB, edit func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	response, err := asn1.Marshal(digest[:])
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "challenge"}, NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{name}, ExtraExtensions: []pkix.Extension{{Id: oidACME, Critical: true, Value: response}},
	}
	if edit != nil {
		edit(c)
	}
	parent := &x509.Certificate{Subject: c.Subject}
	if c.Issuer.CommonName != "" {
		parent.Subject = c.Issuer
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

var oidACME = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 31}

// serveTLS returns the port of a TLS server.
func serveTLS(t *testing.T, config *tls.Config) uint16 {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_ = conn.(*tls.Conn).Handshake()
				_, _ = io.Copy(io.Discard, conn)
				_ = conn.Close()
			}()
		}
	}()
	return portOf(t, l.Addr())
}

func TestTLSALPN(t *testing.T) {
	z := validationtest.NewZone(t)
	z.Address(t, name, "127.0.0.1")
	alpn := []string{"acme-tls/1"}
	extension := func(value []byte, critical bool) func(c *x509.Certificate) {
		return func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: oidACME, Critical: critical, Value: value}}
		}
	}
	good, _ := asn1.Marshal(digest[:])
	other, _ := asn1.Marshal(make([]byte, 32))
	long, _ := asn1.Marshal(make([]byte, 33))
	for what, c := range map[string]struct {
		edit   func(c *x509.Certificate)
		protos []string
		rule   pki.Rule
	}{
		"the certificate":              {nil, alpn, ""},
		"another case":                 {func(c *x509.Certificate) { c.DNSNames = []string{strings.ToUpper(name)} }, alpn, ""},
		"no ALPN":                      {nil, nil, pki.RuleACMEValidationTLS},
		"another protocol":             {nil, []string{"h2"}, pki.RuleACMEValidationTLS},
		"another name":                 {func(c *x509.Certificate) { c.DNSNames = []string{"other.fleet.example"} }, alpn, pki.RuleACMEValidationAnswer},
		"two names":                    {func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "other.fleet.example") }, alpn, pki.RuleACMEValidationAnswer},
		"no name":                      {func(c *x509.Certificate) { c.DNSNames = nil }, alpn, pki.RuleACMEValidationAnswer},
		"an address beside the name":   {func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} }, alpn, pki.RuleACMEValidationAnswer},
		"an address instead":           {func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, []net.IP{net.IPv4(127, 0, 0, 1)} }, alpn, pki.RuleACMEValidationAnswer},
		"a mail address with the name": {func(c *x509.Certificate) { c.DNSNames, c.EmailAddresses = nil, []string{name} }, alpn, pki.RuleACMEValidationAnswer},
		"no response":                  {func(c *x509.Certificate) { c.ExtraExtensions = nil }, alpn, pki.RuleACMEValidationAnswer},
		"not critical":                 {extension(good, false), alpn, pki.RuleACMEValidationAnswer},
		"another response":             {extension(other, true), alpn, pki.RuleACMEValidationAnswer},
		"the digest without its tag":   {extension(digest[:], true), alpn, pki.RuleACMEValidationAnswer},
		"data after the digest":        {extension(append(good[:len(good):len(good)], 0), true), alpn, pki.RuleACMEValidationAnswer},
		"a long response":              {extension(long, true), alpn, pki.RuleACMEValidationAnswer},
		"not self-signed":              {func(c *x509.Certificate) { c.Issuer.CommonName = "a CA" }, alpn, pki.RuleACMEValidationAnswer},
		"a huge certificate": {func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: make([]byte, 100<<10)})
		}, alpn, pki.RuleACMEValidationTLS},
	} {
		config := &tls.Config{Certificates: []tls.Certificate{certificate(t, c.edit)}, NextProtos: c.protos}
		v := validation.New(validation.Config{Resolvers: []netip.AddrPort{z.Addr}, Networks: loopback, TLSPort: serveTLS(t, config)})
		wantRule(t, what, v.Validate(t.Context(), challenge(acme.TLSALPN01, name)), c.rule)
	}
	old := &tls.Config{Certificates: []tls.Certificate{certificate(t, nil)}, NextProtos: alpn, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
	v := validation.New(validation.Config{Resolvers: []netip.AddrPort{z.Addr}, Networks: loopback, TLSPort: serveTLS(t, old)})
	wantRule(t, "TLS 1.1", v.Validate(t.Context(), challenge(acme.TLSALPN01, name)), pki.RuleACMEValidationTLS)
}

// For an IP address, the handshake has the name of the reverse lookup (RFC 8738 §6).
func TestTLSALPNOfAddresses(t *testing.T) {
	offered := make(chan string, 1)
	config := &tls.Config{
		NextProtos: []string{"acme-tls/1"},
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			offered <- h.ServerName + " " + strings.Join(h.SupportedProtos, ",")
			c := certificate(t, func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, []net.IP{net.IPv4(127, 0, 0, 1)} })
			return &c, nil
		},
	}
	v := validation.New(validation.Config{Networks: loopback, TLSPort: serveTLS(t, config)})
	wantRule(t, "an address", v.Validate(t.Context(), challenge(acme.TLSALPN01, "127.0.0.1")), "")
	if got, want := <-offered, "1.0.0.127.in-addr.arpa acme-tls/1"; got != want {
		t.Errorf("the handshake offers %q, want %q", got, want)
	}
	got := validation.ServerName(acme.Identifier{Type: acme.IP, Value: "2001:db8::1"})
	if want := "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"; got != want {
		t.Errorf("the name for 2001:db8::1 is %q, want %q", got, want)
	}
}

// The certificate that a real client presents is accepted.
func TestTLSALPNOfAClient(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	client := &xacme.Client{Key: key}
	for _, value := range []string{name, "127.0.0.1"} {
		c, err := client.TLSALPN01ChallengeCert(token, value)
		if err != nil {
			t.Fatal(err)
		}
		z := validationtest.NewZone(t)
		z.Address(t, name, "127.0.0.1")
		port := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{c}, NextProtos: []string{xacme.ALPNProto}})
		v := validation.New(validation.Config{Resolvers: []netip.AddrPort{z.Addr}, Networks: loopback, TLSPort: port})
		ch := challenge(acme.TLSALPN01, value)
		thumbprint, err := xacme.JWKThumbprint(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		decoded, err := base64.RawURLEncoding.DecodeString(thumbprint)
		if err != nil {
			t.Fatal(err)
		}
		ch.Thumbprint = [32]byte(decoded)
		wantRule(t, value, v.Validate(t.Context(), ch), "")
	}
}
