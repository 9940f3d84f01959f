package validation

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
)

const (
	// Timeout is the maximum duration of a validation.
	Timeout = 10 * time.Second
	// maxReceived is the maximum number of bytes that a validation receives from a host, TLS records included.
	maxReceived = 64 << 10
	// maxDials is the maximum number of addresses of a name to which a validation tries to connect. IPv6 and IPv4 take turns, so
	// that a host with many broken IPv6 addresses is reached over IPv4.
	maxDials = 4
	// dialTimeout is the maximum duration of connecting to one address, so that there is time for all of them and for the response.
	dialTimeout = 2 * time.Second
)

// Config configures a Validator.
type Config struct {
	// Resolvers are the recursive DNS resolvers, in the order in which they are asked.
	Resolvers []netip.AddrPort
	// Networks are the networks to which validations may connect. If it is empty, DefaultAllows decides.
	Networks []netip.Prefix
	HTTPPort uint16 // of http-01
	TLSPort  uint16 // of tls-alpn-01
}

// The ports of the challenges (RFC 8555 §8.3, RFC 8737 §3).
const (
	DefaultHTTPPort = 80
	DefaultTLSPort  = 443
)

// Challenge is what a client has to prove.
type Challenge struct {
	Type       acme.ChallengeType
	Identifier acme.Identifier // without "*."
	Token      string
	Thumbprint [32]byte // of the account's key
}

// keyAuthorization returns the text that binds the challenge to the account (RFC 8555 §8.1).
func (c Challenge) keyAuthorization() string {
	return c.Token + "." + base64.RawURLEncoding.EncodeToString(c.Thumbprint[:])
}

// digest returns the SHA-256 of the key authorization.
func (c Challenge) digest() [sha256.Size]byte { return sha256.Sum256([]byte(c.keyAuthorization())) }

// Validator validates challenges. It is safe for concurrent use.
type Validator struct {
	config   Config
	resolver *resolver
	allows   func(netip.Addr) bool
}

// New returns a Validator.
func New(c Config) *Validator {
	return &Validator{config: c, resolver: &resolver{c.Resolvers}, allows: allows(c.Networks)}
}

// Validate returns nil if the host or zone of the identifier has the response to the challenge, and otherwise why not.
func (v *Validator) Validate(ctx context.Context, c Challenge) *pki.Refusal {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	switch {
	case c.Type == acme.HTTP01:
		return v.http(ctx, c)
	case c.Type == acme.TLSALPN01:
		return v.tlsALPN(ctx, c)
	case c.Type == acme.DNS01 && c.Identifier.Type == acme.DNS:
		return v.dns(ctx, c)
	default:
		return pki.Refuse(pki.RuleACMEValidationAnswer, "respond to a challenge that the authorization offers",
			"a challenge of the type %.32q cannot be used for %s", string(c.Type), c.Identifier)
	}
}

// dns validates dns-01 (RFC 8555 §8.4).
func (v *Validator) dns(ctx context.Context, c Challenge) *pki.Refusal {
	name := "_acme-challenge." + c.Identifier.Value
	texts, err := v.resolver.texts(ctx, name)
	if err != nil {
		return refuseDNS(name, "TXT", err)
	}
	digest := c.digest()
	want := base64.RawURLEncoding.EncodeToString(digest[:])
	for _, text := range texts {
		if equal(text, want) {
			return nil
		}
	}
	return pki.Refuse(pki.RuleACMEValidationAnswer,
		"create the TXT record with the digest of the key authorization, wait until all name servers have it, and order again",
		"no TXT record at %s has the expected value", name)
}

func refuseDNS(name, kind string, err error) *pki.Refusal {
	if errors.Is(err, errNoRecord) {
		return pki.Refuse(pki.RuleACMEValidationDNS, "create the record, wait until all name servers have it, and order again",
			"the name %s has no %s record", name, kind)
	}
	return pki.Refuse(pki.RuleACMEValidationDNS, "check the name servers of the name, and the resolvers in acme.resolvers",
		"the %s records of %s cannot be read: %v", kind, name, err)
}

// dial connects to a port of the host that the identifier names. It resolves a name once, and connects only to an
// address of the result that is allowed.
func (v *Validator) dial(ctx context.Context, i acme.Identifier, port uint16) (net.Conn, *pki.Refusal) {
	targets, refusal := v.targets(ctx, i)
	if refusal != nil {
		return nil, refusal
	}
	for _, a := range targets {
		limited, cancel := context.WithTimeout(ctx, dialTimeout)
		conn, err := (&net.Dialer{}).DialContext(limited, "tcp", netip.AddrPortFrom(a, port).String())
		cancel()
		if err != nil {
			continue
		}
		if deadline, ok := ctx.Deadline(); ok {
			_ = conn.SetDeadline(deadline)
		}
		return &limitedConn{Conn: conn, left: maxReceived}, nil
	}
	return nil, pki.Refuse(pki.RuleACMEValidationDial,
		"let the host accept connections from this server at the port, check the firewalls between them, and order again",
		"there is no connection to port %d of %s: %d addresses were tried", port, i.Value, len(targets))
}

// targets returns the allowed addresses of an identifier, at most maxDials. There is at least one.
func (v *Validator) targets(ctx context.Context, i acme.Identifier) ([]netip.Addr, *pki.Refusal) {
	var all []netip.Addr
	if i.Type == acme.IP {
		a, err := netip.ParseAddr(i.Value)
		if err != nil {
			return nil, pki.Refuse(pki.RuleACMEValidationHost, "order a certificate for an IP address", "%.100q is no IP address", i.Value)
		}
		all = []netip.Addr{a}
	} else {
		var err error
		if all, err = v.resolver.addresses(ctx, i.Value); err != nil {
			return nil, refuseDNS(i.Value, "A or AAAA", err)
		}
	}
	allowed := slices.DeleteFunc(all, func(a netip.Addr) bool { return !v.allows(a) })
	if len(allowed) == 0 {
		return nil, pki.Refuse(pki.RuleACMEValidationHost,
			"use dns-01, or ask the operator to add the network of the host to acme.networks",
			"%s has no address in a network to which this server connects", i.Value)
	}
	allowed = interlaced(allowed)
	return allowed[:min(len(allowed), maxDials)], nil
}

// interlaced returns the addresses with IPv6 and IPv4 in turn, IPv6 first (RFC 8305 section 4). The order within a family stays.
func interlaced(all []netip.Addr) []netip.Addr {
	var v6, v4 []netip.Addr
	for _, a := range all {
		if a.Unmap().Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	mixed := make([]netip.Addr, 0, len(all))
	for i := range max(len(v6), len(v4)) {
		mixed = append(mixed, v6[min(i, len(v6)):min(i+1, len(v6))]...)
		mixed = append(mixed, v4[min(i, len(v4)):min(i+1, len(v4))]...)
	}
	return mixed
}

// equal compares in constant time.
func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

var errTooMuch = errors.New("the host has sent too much")

// limitedConn is a connection that returns errTooMuch if the host sends more than a number of bytes. One goroutine reads
// at a time.
type limitedConn struct {
	net.Conn
	left int
}

// Read implements [io.Reader].
func (c *limitedConn) Read(b []byte) (int, error) {
	if c.left <= 0 {
		return 0, errTooMuch
	}
	n, err := c.Conn.Read(b[:min(len(b), c.left)])
	c.left -= n
	return n, err
}
