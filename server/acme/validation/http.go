package validation

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
)

// challengePath is the path at which a host has its response to http-01 (RFC 8555 §8.3).
const challengePath = "/.well-known/acme-challenge/"

// http validates http-01 (RFC 8555 §8.3).
func (v *Validator) http(ctx context.Context, c Challenge) *pki.Refusal {
	conn, refusal := v.dial(ctx, c.Identifier, v.config.HTTPPort)
	if refusal != nil {
		return refusal
	}
	defer func() { _ = conn.Close() }()
	status, body, err := get(ctx, conn, hostOf(c.Identifier), challengePath+c.Token)
	if err != nil {
		return pki.Refuse(pki.RuleACMEValidationDial, "check that a web server listens at the port, and order again",
			"port %d of %s has no HTTP response of %d KiB at most within %s", v.config.HTTPPort, c.Identifier.Value, maxReceived>>10, Timeout)
	}
	switch {
	case status >= 300 && status < 400:
		return pki.Refuse(pki.RuleACMEValidationAnswer,
			"serve the response itself at port 80: this server follows no redirect, not even one to HTTPS",
			"%s responds with a redirect", c.Identifier.Value)
	case status != http.StatusOK:
		return pki.Refuse(pki.RuleACMEValidationAnswer, "serve the key authorization at "+challengePath+"TOKEN, and order again",
			"%s responds with another status than 200", c.Identifier.Value)
	case !equal(strings.TrimRight(string(body), " \t\r\n"), c.keyAuthorization()):
		return pki.Refuse(pki.RuleACMEValidationAnswer, "serve the key authorization at "+challengePath+"TOKEN, and order again",
			"%s serves another text than the key authorization", c.Identifier.Value)
	}
	return nil
}

// get sends a GET request over a connection, and returns the status of the response. If it is 200, get also returns the
// body. The connection limits the size of the response.
func get(ctx context.Context, conn net.Conn, host, path string) (status int, body []byte, err error) {
	isUsed := false
	transport := &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			if isUsed {
				return nil, errors.New("the connection was used before")
			}
			isUsed = true
			return conn, nil
		},
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 16 << 10,
	}
	defer transport.CloseIdleConnections()
	target := url.URL{Scheme: "http", Host: host, Path: path}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), http.NoBody)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("User-Agent", "brevet-acme-validation")
	resp, err := transport.RoundTrip(req) // follows no redirect
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return resp.StatusCode, nil, nil
	}
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// hostOf returns the Host header for an identifier: a name, or an address, with brackets for IPv6 (RFC 8738 §4).
func hostOf(i acme.Identifier) string {
	if a, err := netip.ParseAddr(i.Value); i.Type == acme.IP && err == nil && a.Is6() {
		return "[" + i.Value + "]"
	}
	return i.Value
}
