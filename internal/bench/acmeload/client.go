package acmeload

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"
)

const (
	maxResponse = 1 << 20              // bytes
	pollPause   = 2 * time.Millisecond // between two reads of an object that is pending
)

// Client is an ACME client with an account. It is for one goroutine.
type Client struct {
	http      *http.Client
	directory directory
	key       *ecdsa.PrivateKey
	account   string // its URL; empty before it is created
	nonce     string
	address   netip.Addr // that is certified
	port      int        // of challenges
	ordered   int        // certificates
	responder *http.Server
	pending   string   // URL of the order of CreateOrder
	issued    []string // URLs of renewalInfo, of up to maxIssued certificates
}

// certificatesEach is the number of certificates of one address. The bench allows an identity, which the address is, 1,000.
const certificatesEach = 500

type directory struct {
	NewNonce    string `json:"newNonce"`
	NewAccount  string `json:"newAccount"`
	NewOrder    string `json:"newOrder"`
	RenewalInfo string `json:"renewalInfo"` // RFC 9773 §3; empty if the server has none
}

// Open creates an account. The client orders certificates for an IPv4 address of this machine in 127.0.0.0/16, and responds
// to challenges at a port of that address. After some hundred certificates it takes the address with the next number in the
// second byte.
func Open(ctx context.Context, c *http.Client, directoryURL string, address netip.Addr, port int) (*Client, error) {
	a := &Client{http: c, address: address, port: port}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	if err := a.get(ctx, directoryURL, &a.directory); err != nil {
		return nil, fmt.Errorf("read the directory: %w", err)
	}
	if err := a.respond(ctx); err != nil {
		return nil, err
	}
	if err := a.get(ctx, a.directory.NewNonce, nil); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	header, err := a.post(ctx, a.directory.NewAccount, map[string]any{"termsOfServiceAgreed": true}, nil)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create an account: %w", err), a.Close())
	}
	a.account = header.Get("Location")
	return a, nil
}

// respond serves the responses to http-01 challenges (RFC 8555 §8.3).
func (a *Client) respond(ctx context.Context) error {
	const path = "/.well-known/acme-challenge/"
	sum := Thumbprint(a.key)
	thumbprint := encode(sum[:])
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+path+"{token}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, r.PathValue("token")+"."+thumbprint) //nolint:gosec // a key authorization, for the CA alone
	})
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(a.address.String(), fmt.Sprint(a.port)))
	if err != nil {
		return fmt.Errorf("respond to challenges: %w", err)
	}
	a.responder = &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	go func(s *http.Server) { _ = s.Serve(l) }(a.responder) // ends with Close
	return nil
}

// move takes the next address.
func (a *Client) move(ctx context.Context) error {
	if err := a.responder.Close(); err != nil {
		return err
	}
	next := a.address.As4()
	next[1]++
	a.address = netip.AddrFrom4(next)
	return a.respond(ctx)
}

// Close stops the responder. The account stays.
func (a *Client) Close() error {
	a.http.CloseIdleConnections()
	return a.responder.Close()
}

// object is an order, an authorization or a challenge.
type object struct {
	Type           string          `json:"type"`
	Status         string          `json:"status"`
	URL            string          `json:"url"`
	Authorizations []string        `json:"authorizations"`
	Challenges     []object        `json:"challenges"`
	Finalize       string          `json:"finalize"`
	Certificate    string          `json:"certificate"`
	Error          json.RawMessage `json:"error"`
}

// Certificate gets one certificate, and returns how long that took. The key and the CSR are made before.
func (a *Client) Certificate(ctx context.Context) (time.Duration, error) {
	if a.ordered++; a.ordered%certificatesEach == 0 {
		if err := a.move(ctx); err != nil {
			return 0, err
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return 0, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{IPAddresses: []net.IP{a.address.AsSlice()}}, key)
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	chain, err := a.order(ctx, csr)
	took := time.Since(begin)
	if err != nil {
		return 0, err
	}
	block, _ := pem.Decode(chain)
	if block == nil {
		return 0, errors.New("the server responded without a certificate")
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err == nil {
		a.remember(certificate)
	}
	return took, err
}

// order makes an order, fulfills its challenge, finalizes it, and returns the chain in PEM.
func (a *Client) order(ctx context.Context, csr []byte) ([]byte, error) {
	var o, authorization object
	location, err := a.newOrder(ctx, &o)
	if err != nil {
		return nil, err
	}
	if len(o.Authorizations) != 1 {
		return nil, fmt.Errorf("the order has %d authorizations", len(o.Authorizations))
	}
	if _, err := a.post(ctx, o.Authorizations[0], nil, &authorization); err != nil {
		return nil, fmt.Errorf("authorization: %w", err)
	}
	if authorization.Status == "pending" {
		if err := a.fulfill(ctx, o.Authorizations[0], authorization.Challenges); err != nil {
			return nil, err
		}
	}
	if _, err := a.post(ctx, o.Finalize, map[string]string{"csr": encode(csr)}, &o); err != nil {
		return nil, fmt.Errorf("finalize: %w", err)
	}
	if err := a.await(ctx, location, &o); err != nil {
		return nil, err
	}
	var chain []byte
	if _, err := a.post(ctx, o.Certificate, nil, &chain); err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	return chain, nil
}

// newOrder makes an order, and returns its URL.
func (a *Client) newOrder(ctx context.Context, o *object) (string, error) {
	header, err := a.post(ctx, a.directory.NewOrder, map[string]any{"identifiers": []map[string]string{{"type": "ip", "value": a.address.String()}}}, o)
	if err != nil {
		return "", fmt.Errorf("new order: %w", err)
	}
	return header.Get("Location"), nil
}

// fulfill lets the server validate the http-01 challenge, and waits for the result.
func (a *Client) fulfill(ctx context.Context, authorization string, challenges []object) error {
	for _, c := range challenges {
		if c.Type != "http-01" {
			continue
		}
		if _, err := a.post(ctx, c.URL, map[string]any{}, nil); err != nil {
			return fmt.Errorf("challenge: %w", err)
		}
		return a.await(ctx, authorization, &object{Status: "pending"})
	}
	return errors.New("the server has no challenge http-01")
}

// await reads an object until it is valid.
func (a *Client) await(ctx context.Context, url string, o *object) error {
	for o.Status != "valid" {
		if o.Status != "pending" && o.Status != "processing" && o.Status != "ready" {
			return fmt.Errorf("%s is %s: %s", url, o.Status, o.Error)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pollPause):
		}
		if _, err := a.post(ctx, url, nil, o); err != nil {
			return err
		}
	}
	return nil
}

func (a *Client) get(ctx context.Context, url string, into any) error {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	_, err = a.send(q, into)
	return err
}

// post sends a signed request (RFC 8555 §6.2). A nil payload is a POST-as-GET. It returns the headers of the response,
// and decodes the body into a pointer to a value for JSON, or to a byte slice.
func (a *Client) post(ctx context.Context, url string, payload, into any) (http.Header, error) {
	text := []byte{}
	if payload != nil {
		var err error
		if text, err = json.Marshal(payload); err != nil {
			return nil, err
		}
	}
	body, err := a.sign(url, text)
	if err != nil {
		return nil, err
	}
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	q.Header.Set("Content-Type", "application/jose+json")
	return a.send(q, into)
}

func (a *Client) send(q *http.Request, into any) (http.Header, error) {
	r, err := a.http.Do(q)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(r.Body, maxResponse))
	if err != nil {
		return nil, err
	}
	if nonce := r.Header.Get("Replay-Nonce"); nonce != "" {
		a.nonce = nonce
	}
	if r.StatusCode >= http.StatusMultipleChoices {
		return nil, fmt.Errorf("%s: %s", r.Status, text)
	}
	switch into := into.(type) {
	case nil:
	case *[]byte:
		*into = text
	default:
		err = json.Unmarshal(text, into)
	}
	return r.Header, err
}

// sign returns a JWS with ES256 in flattened JSON (RFC 7515 §7.2.2, RFC 7518 §3.4).
func (a *Client) sign(url string, payload []byte) ([]byte, error) {
	header := map[string]any{"alg": "ES256", "nonce": a.nonce, "url": url}
	if a.account == "" {
		header["jwk"] = jwk(a.key)
	} else {
		header["kid"] = a.account
	}
	protected, err := json.Marshal(header)
	if err != nil {
		return nil, err
	}
	signed := encode(protected) + "." + encode(payload)
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, a.key, digest[:])
	if err != nil {
		return nil, err
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return json.Marshal(map[string]string{"protected": encode(protected), "payload": encode(payload), "signature": encode(signature)})
}

// jwk returns the public key as a JWK with the members of its thumbprint only (RFC 7638 §3.2).
func jwk(key *ecdsa.PrivateKey) map[string]string {
	public, err := key.PublicKey.Bytes() // 4, x and y
	if err != nil {
		return nil // impossible for a key on P-256
	}
	return map[string]string{"crv": "P-256", "kty": "EC", "x": encode(public[1:33]), "y": encode(public[33:])}
}

// Thumbprint returns the thumbprint of an account's key, which is on P-256 (RFC 7638 §3).
func Thumbprint(key *ecdsa.PrivateKey) [sha256.Size]byte {
	text, err := json.Marshal(jwk(key)) // with sorted keys and without spaces
	if err != nil {
		return [sha256.Size]byte{} // impossible for a map of strings
	}
	return sha256.Sum256(text)
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
