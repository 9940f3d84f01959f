package jwt

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	fetchTimeout  = 10 * time.Second // of one fetch of keys with its discovery, and of one TokenReview
	maxResponse   = 1 << 20          // maximum bytes of the body of a response
	maxHeader     = 64 << 10         // maximum bytes of the headers of a response
	maxRedirects  = 3                // maximum number of redirects, which must stay on the host
	maxURL        = 2048             // maximum bytes of a URL
	maxCredential = 64 << 10         // maximum bytes of a file with a credential
)

// client sends bounded HTTP requests to one issuer or cluster.
type client struct {
	http   http.Client
	public http.Client // connects to addresses of the Internet only, see isPublic
}

// newClient returns a client that verifies servers with roots, or with the roots of the system if roots is nil.
func newClient(roots *x509.CertPool) *client {
	direct := newTransport(roots)
	direct.DialContext = (&net.Dialer{Control: checkPublic}).DialContext
	proxied := newTransport(roots)
	proxied.Proxy = http.ProxyFromEnvironment
	return &client{
		http.Client{Transport: proxied, CheckRedirect: checkRedirect},
		http.Client{Transport: direct, CheckRedirect: checkRedirect},
	}
}

func newTransport(roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
		MaxIdleConns: 2, MaxConnsPerHost: maxReviews, IdleConnTimeout: time.Minute,
		TLSHandshakeTimeout: fetchTimeout, MaxResponseHeaderBytes: maxHeader, DisableCompression: true,
	}
}

func (c *client) close() {
	c.http.CloseIdleConnections()
	c.public.CloseIdleConnections()
}

// checkRedirect allows redirects that stay on the host, so that an issuer cannot send requests into other networks.
func checkRedirect(req *http.Request, via []*http.Request) error {
	from := via[0]
	switch {
	case from.Method != http.MethodGet:
		return errors.New("a redirect, which is not allowed here")
	case req.URL.Scheme != from.URL.Scheme || req.URL.Host != from.URL.Host:
		return errors.New("a redirect to another host")
	case len(via) > maxRedirects:
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	return nil
}

// get returns the body of a resource. If credential is not empty, it is the path of a file with a bearer token, which
// need not exist.
func (c *client) get(ctx context.Context, url, credential string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	return do(&c.http, req, credential)
}

// post sends a JSON body, and returns the body of the response.
func (c *client) post(ctx context.Context, url, credential string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	return do(&c.http, req, credential)
}

// do sends a request, and returns the body of the response. Its errors contain the URL, but neither the credential nor
// the bodies.
func do(by *http.Client, req *http.Request, credential string) ([]byte, error) {
	req.Header.Set("Accept", "application/json")
	if credential != "" {
		secret, err := readCredential(credential)
		if err != nil {
			return nil, err
		}
		if secret != "" {
			req.Header.Set("Authorization", "Bearer "+secret)
		}
	}
	resp, err := by.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	switch resp.StatusCode {
	case http.StatusOK, http.StatusCreated:
	case http.StatusUnauthorized, http.StatusForbidden:
		if credential != "" {
			return nil, fmt.Errorf("%s %s: the status of the response is %d: check the credential in %s",
				req.Method, req.URL.Redacted(), resp.StatusCode, credential)
		}
		fallthrough
	default:
		return nil, fmt.Errorf("%s %s: the status of the response is %d", req.Method, req.URL.Redacted(), resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse+1))
	if err != nil {
		return nil, fmt.Errorf("%s %s: read the response: %w", req.Method, req.URL.Redacted(), err)
	}
	if len(body) > maxResponse {
		return nil, fmt.Errorf("%s %s: the response is over 1 MiB", req.Method, req.URL.Redacted())
	}
	return body, nil
}

// readCredential reads a bearer token. Kubernetes replaces the file from time to time, so it is read for each request.
// If there is no file, readCredential returns an empty token: some clusters publish their keys without authentication.
func readCredential(path string) (string, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the credential for the cluster: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxCredential {
		return "", fmt.Errorf("the credential for the cluster, %s, is not a file of 64 KiB at most", path)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read the credential for the cluster: %w", err)
	}
	secret := strings.TrimSpace(string(content))
	if secret == "" || strings.ContainsFunc(secret, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("the credential for the cluster, %s, is not a bearer token in one line", path)
	}
	return secret, nil
}

// parseURL parses the URL of a server. It must use HTTPS. HTTP is allowed for loopback addresses, on which no other
// host can listen.
func parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || len(text) > maxURL || u.Host == "" || u.User != nil || u.Fragment != "" {
		return nil, fmt.Errorf("%.200q is not a URL of a server: use https://, a host and a path", text)
	}
	if u.Scheme == "https" || u.Scheme == "http" && isLoopback(u) {
		return u, nil
	}
	return nil, fmt.Errorf("%.200q does not use HTTPS: use https://, or http:// with 127.0.0.1 or [::1]", text)
}

func isLoopback(u *url.URL) bool {
	a, err := netip.ParseAddr(u.Hostname())
	return err == nil && a.Unmap().IsLoopback()
}

// parseBase parses a URL to which paths are added.
func parseBase(text string) (*url.URL, error) {
	u, err := parseURL(text)
	if err == nil && (u.RawQuery != "" || u.ForceQuery) {
		return nil, fmt.Errorf("%.200q has a query: use the URL without it", text)
	}
	return u, err
}

var hostName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)

// hostOf returns the host of a server: its name in lower case, or its address, and its port.
func hostOf(server string) (string, error) {
	u, err := parseBase(server)
	if err != nil {
		return "", err
	}
	host, port := strings.ToLower(u.Hostname()), u.Port()
	if a, err := netip.ParseAddr(host); err == nil && a.Zone() == "" {
		host = a.String()
	} else if !hostName.MatchString(host) {
		return "", fmt.Errorf("%.200q has no name or address of a host: use one, such as https://10.20.0.1:6443", server)
	}
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(host, port), nil
}

// discover fetches the keys of an issuer, as OpenID Connect Discovery 1.0 §4 describes. The keys can be at another host,
// as those of Google are, but only on the Internet: an issuer on the Internet must not send requests into the server's
// own network.
func discover(ctx context.Context, c *client, issuer string) (*keySet, error) {
	base, err := parseBase(issuer)
	if err != nil {
		return nil, err
	}
	var inside atomic.Bool // whether the issuer itself is in a network that is not public
	found := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(g httptrace.GotConnInfo) {
		inside.Store(checkPublic("", g.Conn.RemoteAddr().String(), nil) != nil)
	}})
	body, err := c.get(found, strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration", "")
	if err != nil {
		return nil, err
	}
	document, err := parseObject(body)
	if err != nil {
		return nil, fmt.Errorf("the OpenID configuration of %s %w", issuer, err)
	}
	if got, _ := document.text("issuer"); got != issuer {
		return nil, fmt.Errorf("the OpenID configuration of %s is that of the issuer %.200q", issuer, got)
	}
	location, _ := document.text("jwks_uri")
	keys, err := parseURL(location)
	if err != nil {
		return nil, fmt.Errorf("the jwks_uri of %s: %w", issuer, err)
	}
	if keys.Scheme != "https" && base.Scheme == "https" {
		return nil, fmt.Errorf("the jwks_uri of %s does not use HTTPS", issuer)
	}
	if keys.Host == base.Host || inside.Load() && !isProxied(base) || isProxied(keys) {
		return fetchKeys(ctx, c, location, "")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, location, http.NoBody)
	if err != nil {
		return nil, err
	}
	if body, err = do(&c.public, req, ""); err != nil {
		return nil, fmt.Errorf("the jwks_uri of %s: %w", issuer, err)
	}
	return keysOf(location, body)
}

// isProxied reports whether requests to a URL go to the proxy in the environment, which decides where they may go.
func isProxied(u *url.URL) bool {
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: u})
	return err == nil && proxy != nil
}

// special are the networks that are not a part of the Internet, beside those that package netip knows (RFC 6890).
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("64:ff9b::/96"),
	netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("2002::/16"), netip.MustParsePrefix("fec0::/10"),
}

// isPublic reports whether an address is one of the Internet.
func isPublic(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsGlobalUnicast() && !a.IsPrivate() &&
		!slices.ContainsFunc(special, func(p netip.Prefix) bool { return p.Contains(a) })
}

// checkPublic implements net.Dialer.Control: it refuses connections to addresses that are not public. The name of the
// host was resolved before.
func checkPublic(_, address string, _ syscall.RawConn) error {
	a, err := netip.ParseAddrPort(address)
	if err != nil || !isPublic(a.Addr()) {
		return fmt.Errorf("%s is not an address of the Internet, as that of the issuer is", address)
	}
	return nil
}

func fetchKeys(ctx context.Context, c *client, url, credential string) (*keySet, error) {
	body, err := c.get(ctx, url, credential)
	if err != nil {
		return nil, err
	}
	return keysOf(url, body)
}

// keysOf parses the keys in the response of a server.
func keysOf(url string, body []byte) (*keySet, error) {
	set, err := parseKeySet(body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	return set, nil
}

// decodeJSON decodes a response of a cluster.
func decodeJSON(body []byte, into any) error {
	if err := json.Unmarshal(body, into); err != nil {
		return errors.New("the response is not the JSON that was expected")
	}
	return nil
}
