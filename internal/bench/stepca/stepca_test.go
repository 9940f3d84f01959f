package stepca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeStepCA responds as step-ca does to sign and renew. It checks what step-ca checks.
type fakeStepCA struct {
	t   *testing.T
	key *ecdsa.PrivateKey // of the provisioner

	mu     sync.Mutex
	used   map[string]bool // one-time tokens
	signed int
	renews int
}

func (f *fakeStepCA) sign(w http.ResponseWriter, q *http.Request) {
	var req struct{ CSR, OTT string }
	if err := json.NewDecoder(q.Body).Decode(&req); err != nil {
		f.t.Error(err)
	}
	f.checkToken(req.OTT, "https://"+q.Host+"/1.0/sign")
	block, _ := pem.Decode([]byte(req.CSR))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || csr.CheckSignature() != nil || csr.DNSNames[0] != device {
		f.t.Errorf("the CSR is wrong: %v", err)
	}
	f.mu.Lock()
	f.signed++
	f.mu.Unlock()
	f.respond(w, csr.PublicKey)
}

func (f *fakeStepCA) checkToken(token, audience string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.used[token] {
		f.t.Error("a one-time token was used twice")
	}
	f.used[token] = true
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		f.t.Fatalf("%q is not a JWT", token)
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if err != nil || len(signature) != 64 ||
		!ecdsa.Verify(&f.key.PublicKey, digest[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])) {
		f.t.Errorf("the token's signature is wrong: %v", err)
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		f.t.Fatal(err)
	}
	var claims struct{ Aud, Sub string }
	if err := json.Unmarshal(text, &claims); err != nil || claims.Aud != audience || claims.Sub != device {
		f.t.Errorf("the token's claims are %s, %v", text, err)
	}
}

func (f *fakeStepCA) renew(w http.ResponseWriter, q *http.Request) {
	if len(q.TLS.PeerCertificates) == 0 {
		f.t.Fatal("a renewal without a client certificate")
	}
	f.mu.Lock()
	f.renews++
	f.mu.Unlock()
	f.respond(w, q.TLS.PeerCertificates[0].PublicKey)
}

// respond returns a certificate for the key.
func (f *fakeStepCA) respond(w http.ResponseWriter, key any) {
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key, f.key)
	if err != nil {
		f.t.Error(err)
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(map[string]string{"crt": text, "ca": text})
}

func TestStepCACallers(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	fake := &fakeStepCA{t: t, key: key, used: map[string]bool{}}
	handler := http.NewServeMux()
	handler.HandleFunc("POST /1.0/sign", fake.sign)
	handler.HandleFunc("POST /1.0/renew", fake.renew)
	server := httptest.NewUnstartedServer(handler)
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	s := &Server{URL: server.URL, Roots: x509.NewCertPool(), key: key, tokens: make(chan string, maxTokens)}
	s.Roots.AddCert(server.Certificate())
	if err := s.MakeTokens(0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c, err := s.newCaller(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.close)
		s.Callers = append(s.Callers, c)
	}
	signed, renewed := fake.signed, fake.renews
	for _, c := range s.Callers {
		if _, err := c.Sign(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := c.Renew(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if fake.signed != signed+2 || fake.renews != renewed+2 {
		t.Errorf("the server has signed %d and renewed %d certificates of 2 callers", fake.signed-signed, fake.renews-renewed)
	}
	for len(s.tokens) > 0 {
		<-s.tokens
	}
	if _, err := s.Callers[0].Sign(t.Context()); err == nil || !strings.Contains(err.Error(), "one-time tokens") {
		t.Errorf("without a token: %v", err)
	}
}
