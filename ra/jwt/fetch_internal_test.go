package jwt

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// public is a connection to an address of the Internet.
type public struct{ net.Conn }

func (public) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort("93.184.215.14:443"))
}

const oneKey = `{"keys":[{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",` +
	`"y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM","kid":"1"}]}`

// TestKeysAtAnotherHost checks where an issuer can place its keys. The issuer example.com seems to be on the Internet.
func TestKeysAtAnotherHost(t *testing.T) {
	var issuer, location string
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/keys" {
			_, _ = w.Write([]byte(oneKey))
			return
		}
		_, _ = fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, issuer, location)
	}))
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	inside := s.Listener.Addr().String()
	for _, c := range []struct{ issuer, location, want string }{
		{"https://example.com", "https://example.com/keys", ""},
		{"https://example.com", "https://" + inside + "/keys", "127.0.0.1:"},
		{"https://example.com", "http://" + inside + "/keys", "does not use HTTPS"},
		{"https://example.com", "https://169.254.169.254/keys", "169.254.169.254:443 is not an address of the Internet"},
		{"https://" + inside, "https://" + inside + "/keys", ""},
		{"https://" + inside, "https://example.com/keys", ""},
	} {
		issuer, location = c.issuer, c.location
		client := newClient(roots)
		client.http.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			if address != "example.com:443" {
				return new(net.Dialer).DialContext(ctx, network, address)
			}
			conn, err := new(net.Dialer).DialContext(ctx, network, inside)
			return public{conn}, err
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		set, err := discover(ctx, client, issuer)
		cancel()
		client.close()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) || err == nil && len(set.keys) != 1 {
			t.Errorf("keys of %s at %s: %v, want %q", c.issuer, c.location, err, c.want)
		}
	}
}

func TestPublicAddresses(t *testing.T) {
	for text, want := range map[string]bool{
		"93.184.215.14": true, "2606:4700::1": true, "::ffff:93.184.215.14": true,
		"127.0.0.1": false, "10.0.0.1": false, "172.16.0.1": false, "192.168.0.1": false, "169.254.169.254": false,
		"100.64.0.1": false, "0.0.0.0": false, "0.1.2.3": false, "255.255.255.255": false, "224.0.0.1": false, "198.18.0.1": false,
		"::": false, "::1": false, "fe80::1": false, "fc00::1": false, "ff02::1": false, "::ffff:10.0.0.1": false,
		"::ffff:127.0.0.1": false, "64:ff9b::a00:1": false, "2002:a00:1::": false,
	} {
		if got := isPublic(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s is public: %t, want %t", text, got, want)
		}
	}
	if isPublic(netip.Addr{}) {
		t.Error("no address is public")
	}
}

// TestReviewLimitsAreBounded refuses tokens from many networks.
func TestReviewLimitsAreBounded(t *testing.T) {
	l := newReviewLimits(true)
	at := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	for i := range 3 * maxRefused {
		from := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		l.refused(&token{raw: fmt.Sprint(i)}, from, at)
		if !l.refusedBefore(&token{raw: fmt.Sprint(i)}, at) {
			t.Fatalf("token %d is not remembered", i)
		}
	}
	if len(l.tokens) != maxRefused || len(l.networks) != maxRefused {
		t.Errorf("%d tokens and %d networks are remembered, want %d", len(l.tokens), len(l.networks), maxRefused)
	}
	at = at.Add(refusedBurst * refusedInterval)
	l.refused(&token{raw: "late"}, netip.MustParseAddr("10.1.0.0"), at)
	if len(l.tokens) != 1 || len(l.networks) != 1 {
		t.Errorf("%d tokens and %d networks are remembered after they are over, want 1", len(l.tokens), len(l.networks))
	}
	if a, b := networkOf(netip.MustParseAddr("2001:db8::1")), networkOf(netip.MustParseAddr("2001:db8::2")); a != b {
		t.Errorf("two addresses of a host are the networks %s and %s", a, b)
	}
}
