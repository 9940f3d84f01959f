package stepca

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Timeout is the timeout of a request.
const Timeout = 30 * time.Second

const (
	device     = "device.bench.internal"
	maxBody    = 1 << 20 // bytes
	tokenTime  = time.Hour
	tokensEach = 4000 // tokens made for each second of a measurement: more than step-ca can use
	maxTokens  = 1 << 20
	warmUp     = 1024 // tokens for the first requests of callers
)

// Caller requests certificates of step-ca without pause, each over a kept connection. It uses HTTP/1.1, which
// costs less than HTTP/2 with one request at a time.
type Caller struct {
	s       *Server
	csr     string // PEM
	signer  *http.Client
	renewer *http.Client // authenticates with a certificate
}

// client returns an HTTP client with one connection, which may authenticate with certificates.
func (s *Server) client(certificates []tls.Certificate) *http.Client {
	return &http.Client{Timeout: Timeout, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: s.Roots, Certificates: certificates},
		MaxConnsPerHost: 1, IdleConnTimeout: tokenTime,
	}}
}

// newCaller gets the certificate of a caller, and connects it twice: to sign, and to renew.
func (s *Server) newCaller(ctx context.Context) (*Caller, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: device}, DNSNames: []string{device},
	}, key)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})
	c := &Caller{s: s, csr: string(text), signer: s.client(nil)}
	got, _, err := c.requestSigned(ctx)
	if err != nil {
		return nil, err
	}
	pair := tls.Certificate{PrivateKey: key}
	for _, text := range []string{got.Certificate, got.Issuer} {
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			return nil, errors.New("step-ca responded without a certificate and its issuer")
		}
		pair.Certificate = append(pair.Certificate, block.Bytes)
	}
	c.renewer = s.client([]tls.Certificate{pair})
	_, err = c.Renew(ctx)
	return c, err
}

func (c *Caller) close() {
	c.signer.CloseIdleConnections()
	c.renewer.CloseIdleConnections()
}

// response is the response to sign and renew.
type response struct {
	Certificate string `json:"crt"` // PEM
	Issuer      string `json:"ca"`  // PEM
}

// Sign requests a certificate for a CSR and a one-time token, and returns how long that took.
func (c *Caller) Sign(ctx context.Context) (time.Duration, error) {
	_, took, err := c.requestSigned(ctx)
	return took, err
}

func (c *Caller) requestSigned(ctx context.Context) (*response, time.Duration, error) {
	var token string
	select {
	case token = <-c.s.tokens:
	default:
		return nil, 0, fmt.Errorf("step-ca used more than %d one-time tokens a second", tokensEach)
	}
	body, err := json.Marshal(map[string]string{"csr": c.csr, "ott": token})
	if err != nil {
		return nil, 0, err
	}
	return c.post(ctx, c.signer, "/1.0/sign", body)
}

// Renew renews the caller's certificate, and returns how long that took.
func (c *Caller) Renew(ctx context.Context) (time.Duration, error) {
	_, took, err := c.post(ctx, c.renewer, "/1.0/renew", nil)
	return took, err
}

func (c *Caller) post(
	ctx context.Context, client *http.Client, path string, body []byte,
) (*response, time.Duration, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.s.URL+path, bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	begin := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	took := time.Since(begin)
	if err != nil {
		return nil, 0, err
	}
	if resp.StatusCode != http.StatusCreated {
		return nil, 0, fmt.Errorf("step-ca responded to %s with HTTP %s: %s", path, resp.Status, text)
	}
	var got response
	if err := json.Unmarshal(text, &got); err != nil {
		return nil, 0, fmt.Errorf("step-ca responded to %s: %w", path, err)
	}
	if got.Certificate == "" {
		return nil, 0, fmt.Errorf("step-ca responded to %s without a certificate", path)
	}
	return &got, took, nil
}

// MakeTokens makes the one-time tokens that step-ca can use in d, and in the requests of the callers before.
func (s *Server) MakeTokens(d time.Duration) error {
	wanted := min(maxTokens, warmUp+int(tokensEach*d.Seconds()))
	for len(s.tokens) > 0 { // they expire
		<-s.tokens
	}
	for range wanted {
		token, err := s.token(time.Now())
		if err != nil {
			return err
		}
		s.tokens <- token
	}
	return nil
}

// token returns a one-time token of the provisioner: a JWT (RFC 7519) that is signed with ES256 (RFC 7518 section 3.4).
func (s *Server) token(now time.Time) (string, error) {
	header, err := json.Marshal(map[string]string{"alg": "ES256", "kid": provisioner, "typ": "JWT"})
	if err != nil {
		return "", err
	}
	claims, err := json.Marshal(map[string]any{
		"iss": provisioner, "aud": s.URL + "/1.0/sign", "sub": device, "sans": []string{device},
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(tokenTime).Unix(), "jti": rand.Text(),
	})
	if err != nil {
		return "", err
	}
	text := base64.RawURLEncoding.AppendEncode(nil, header)
	text = base64.RawURLEncoding.AppendEncode(append(text, '.'), claims)
	digest := sha256.Sum256(text)
	r, v, err := ecdsa.Sign(rand.Reader, s.key, digest[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	v.FillBytes(signature[32:])
	return string(base64.RawURLEncoding.AppendEncode(append(text, '.'), signature)), nil
}
