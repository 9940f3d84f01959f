package ra_test

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/enroll/tpm"
	"github.com/brevet-pki/brevet/enroll/tpm/tpmtest"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/servertest"
)

// site is a server that accepts every kind of evidence, and some pairs of them.
type site struct {
	*cluster
	root    *x509.Certificate // of the cameras
	rootKey crypto.Signer
	maker   *tpmtest.Manufacturer // of TPMs
	tpm     *tpmtest.TPM
}

// siteRules has a rule for each kind of evidence and each pair that the tests use.
const siteRules = `
rules:
- {name: tokens, evidence: [token]}
- {name: cameras, evidence: [x5c], when: 'x5c.source == "cameras"', identity: "camera/{x5c.serial}", register: true}
- {name: gateways, evidence: [tpm], when: tpm.certified, identity: "gateway/{tpm.ek}", register: true, hardware_key: true}
- {name: pods, evidence: [jwt], identity: "pod/{jwt.kubernetes.service_account}", register: true, kind: workload, when: 'jwt.source == "berlin" && jwt.kubernetes.namespace == "prod"'}
- {name: on-board, evidence: [x5c, jwt], when: 'x5c.source == "cameras" && jwt.source == "berlin"', identity: "on-board/{x5c.serial}", register: true}
- {name: sealed, evidence: [x5c, tpm], when: 'x5c.source == "cameras" && tpm.certified', identity: "sealed/{x5c.serial}", register: true, hardware_key: true}
- {name: claimed, evidence: [token, jwt]}
`

func newSite(t *testing.T) *site {
	t.Helper()
	root, rootKey := newFactoryCA(t, nil, nil)
	m := tpmtest.NewManufacturer(t)
	first := m.Make(t)
	tpmRoot, intermediate := m.CAs(t)
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	keys := servertest.Must(json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: public, KeyID: "key"}}}))(t)
	document := fmt.Sprintf("x5c: {cameras: {roots: %q}}\n", pemOf(root)) +
		fmt.Sprintf("tpm: {acme: {roots: %q, intermediates: %q}}\n", pemOf(tpmRoot), pemOf(intermediate)) +
		fmt.Sprintf("jwt: {berlin: {issuer: %q, audience: %q, algorithms: [EdDSA], jwks: %q, kubernetes: {}}}\n", clusterIssuer, servertest.TrustDomain, keys) +
		siteRules
	w := servertest.New(t, ground, servertest.Options{Policy: []byte(document)})
	return &site{&cluster{World: w, key: private}, root, rootKey, m, first}
}

// camera returns a function that reads the certificate and the key of a camera from files.
func camera(t *testing.T, c tls.Certificate) func() (enroll.Evidence, error) {
	t.Helper()
	dir := t.TempDir()
	certificate, key := filepath.Join(dir, "idevid.pem"), filepath.Join(dir, "idevid.key")
	block, device := &pem.Block{Type: "PRIVATE KEY"}, (*tpm.Device)(nil)
	if k, ok := c.PrivateKey.(*tpm.Key); ok {
		block.Type, block.Bytes, device = tpm.PEMType, servertest.Must(k.Marshal())(t), tpm.New(k.Device().Path())
	} else {
		block.Bytes = servertest.Must(x509.MarshalPKCS8PrivateKey(c.PrivateKey))(t)
	}
	var chain []byte
	for _, der := range c.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	for path, text := range map[string][]byte{certificate: chain, key: pem.EncodeToMemory(block)} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return func() (enroll.Evidence, error) {
		pair, err := enroll.ReadFactoryCertificate(certificate, key, device)
		if err != nil {
			return nil, err
		}
		return enroll.FactoryCertificate(pair)
	}
}

// pod returns a function that reads the token of a service account. A new token is in the file each time.
func (s *site) pod(t *testing.T, account string) func() (enroll.Evidence, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	return func() (enroll.Evidence, error) {
		if err := os.WriteFile(path, []byte(s.token(t, "prod", account, servertest.TrustDomain)+"\n"), 0o600); err != nil {
			return nil, err
		}
		return enroll.ReadJWT(path)
	}
}

// A machine is what an agent needs to start again after it was killed.
type machine struct {
	directory string
	token     func() (enroll.Token, error)
	evidence  []func() (enroll.Evidence, error)
	device    *tpm.Device // where the keys are, or nil
}

// start starts the agent of a machine, and returns a function that ends it without letting it finish anything.
func (m machine) start(t *testing.T, s *site, server string) (agent *enroll.Agent, kill func()) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	dir := servertest.Must(enroll.OpenDirectory(m.directory, log))(t)
	if m.device != nil {
		dir.KeepKeysIn(m.device)
	}
	c := enroll.Config{
		Directory: dir, Authority: servertest.Must(enroll.NewClient(server))(t), Token: m.token, Bootstrap: bootstrapOf(s.World), Log: log,
	}
	if len(m.evidence) > 0 {
		c.Evidence = func() ([]enroll.Evidence, error) {
			var all []enroll.Evidence
			for _, read := range m.evidence {
				e, err := read()
				if err != nil {
					return nil, err
				}
				all = append(all, e)
			}
			return all, nil
		}
	}
	return servertest.Must(enroll.NewAgent(c))(t), func() { _ = dir.Close() }
}

// machines returns the n-th machine of each kind, and the path of its identity. No two have the same evidence.
func (s *site) machines(t *testing.T, n int) map[string]struct {
	machine
	path string
} {
	t.Helper()
	device := tpm.New(s.maker.Make(t).Path)
	attested := func() (enroll.Evidence, error) { return enroll.Attestation(device) }
	at := func() string { return filepath.Join(t.TempDir(), "agent") }
	serial := func(kind string) string { return fmt.Sprintf("%s-%d", kind, n) }
	factory := func(kind string) func() (enroll.Evidence, error) {
		return camera(t, newCamera(t, serial(kind), servertest.Key(t), s.root, s.rootKey, time.Now().Add(time.Hour)))
	}
	type evidence = []func() (enroll.Evidence, error)
	withToken := func(path string) func() (enroll.Token, error) {
		token := s.tokenFor(t, path)
		return func() (enroll.Token, error) { return token, nil }
	}
	return map[string]struct {
		machine
		path string
	}{
		"x5c": {machine{at(), nil, evidence{factory("a")}, nil}, "camera/" + serial("a")},
		"jwt": {machine{at(), nil, evidence{s.pod(t, serial("b"))}, nil}, "pod/" + serial("b")},
		"jwt that is not replaced": {
			machine{at(), nil, evidence{sync.OnceValues(s.pod(t, serial("f")))}, nil}, "pod/" + serial("f"),
		},
		"x5c and jwt": {machine{at(), nil, evidence{factory("c"), s.pod(t, serial("c"))}, nil}, "on-board/" + serial("c")},
		"x5c and tpm": {machine{at(), nil, evidence{factory("d"), attested}, device}, "sealed/" + serial("d")},
		"token and jwt": {
			machine{at(), withToken("claimed/" + serial("e")), evidence{s.pod(t, serial("e"))}, nil}, "claimed/" + serial("e"),
		},
	}
}

// tokenFor returns an enrollment token for a new identity.
func (s *site) tokenFor(t *testing.T, path string) enroll.Token {
	t.Helper()
	secret := servertest.Must(pki.TokenSecretFromBytes(s.Token(t, s.Register(t, "device", path), false)))(t)
	return enroll.Token{Bootstrap: bootstrapOf(s.World), Secret: secret}
}

func TestAgentEnrollsWithEvidence(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	machines := s.machines(t, 0)
	// The factory key is in the TPM, and the key of the credential in a file.
	key := servertest.Must(tpm.New(s.tpm.Path).NewKey())(t)
	inTPM := machines["x5c"]
	inTPM.directory, inTPM.path = filepath.Join(t.TempDir(), "agent"), "camera/in-tpm"
	inTPM.evidence = []func() (enroll.Evidence, error){camera(t, newCamera(t, "in-tpm", key, s.root, s.rootKey, time.Now().Add(time.Hour)))}
	machines["x5c in a TPM"] = inTPM
	for name, m := range machines {
		t.Run(name, func(t *testing.T) {
			agent, kill := m.start(t, s, "")
			defer kill()
			if err := agent.Ensure(t.Context()); err != nil {
				t.Fatal(err)
			}
			p := agent.Pair()
			if p.ID().Path() != m.path {
				t.Errorf("the identity is %s, want %s", p.ID().Path(), m.path)
			}
			s.Status(t, p.Certificate, "good")
			if _, inTPM := p.Key.(*tpm.Key); inTPM != (m.device != nil) || p.Origin.Attested != inTPM {
				t.Errorf("the key is a %T, and the origin %+v", p.Key, p.Origin)
			}
			if m.device == nil {
				return
			}
			// The rule also required a factory certificate, and a renewal needs only the attestation.
			next := servertest.Must(m.device.NewKey())(t)
			servertest.Must(servertest.Must(enroll.NewClient(""))(t).Renew(t.Context(), enroll.RenewRequest{
				RequestID: servertest.Must(pki.RequestIDFromBytes(servertest.RequestID()))(t), Current: p,
				CSR: servertest.CSR(t, next), Key: next, Evidence: servertest.Must(enroll.Attestation(m.device))(t),
			}))(t)
		})
	}
}

// TestAgentRecoversFromEveryCut cuts the connection after each TLS record from the server, kills the agent, and starts it
// again with new evidence. There is exactly one certificate afterwards, also if the server had issued it before the cut.
func TestAgentRecoversFromEveryCut(t *testing.T) {
	t.Parallel()
	const most = 40
	s := newSite(t)
	cuts, lost := map[string]int{}, map[string]int{} // lost counts cuts after which the server had issued the certificate
	issued := func(path string) (n int) {
		for _, c := range s.Inventory(t) {
			if c.Identity.Path() == path {
				n++
			}
		}
		return n
	}
	for n, cut := 0, true; cut && n < most; n++ {
		cut = false
		for name, m := range s.machines(t, n) {
			if cuts[name] < n {
				continue // this kind needs fewer records
			}
			proxy := newCutter(t, s.GRPC, n)
			agent, kill := m.start(t, s, proxy.address)
			if err := agent.Ensure(t.Context()); err == nil {
				kill()
				continue
			}
			kill()
			cuts[name], cut = n+1, true
			lost[name] += issued(m.path)
			agent, kill = m.start(t, s, s.GRPC)
			if err := agent.Ensure(t.Context()); err != nil {
				t.Fatalf("%s, cut after %d records: %v", name, n, err)
			}
			kill()
			if id := agent.Pair().ID(); id.Path() != m.path || issued(m.path) != 1 {
				t.Errorf("%s, cut after %d records: %d certificates, want 1, and the identity is %s", name, n, issued(m.path), id)
			}
		}
	}
	answers := 0 // that were lost; whether a kind has one depends on how the server's messages share TLS records
	for name, n := range cuts {
		if answers += lost[name]; n < 3 || n == most {
			t.Errorf("%s was cut %d times", name, n)
		}
	}
	if answers == 0 {
		t.Error("no connection was cut after a certificate was issued")
	}
	t.Logf("cuts: %v, of which after the issuance: %v", cuts, lost)
}

// cutter forwards connections to a server. It forwards a number of TLS records from the server, over all connections, and
// then ends each connection at the next record, which it drops.
type cutter struct {
	address string
	mu      sync.Mutex
	left    int
}

func newCutter(t *testing.T, server string, records int) *cutter {
	t.Helper()
	listener := servertest.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	c := &cutter{address: listener.Addr().String(), left: records}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() { c.forward(conn, server) })
		}
	})
	t.Cleanup(func() { _ = listener.Close(); all.Wait() })
	return c
}

func (c *cutter) forward(client net.Conn, address string) {
	defer func() { _ = client.Close() }()
	server, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	go func() { _, _ = io.Copy(server, client) }()
	header := make([]byte, 5) // RFC 8446 section 5.1
	for {
		if _, err := io.ReadFull(server, header); err != nil {
			return
		}
		record := make([]byte, binary.BigEndian.Uint16(header[3:]))
		if _, err := io.ReadFull(server, record); err != nil {
			return
		}
		c.mu.Lock()
		cut := c.left == 0
		c.left = max(0, c.left-1)
		c.mu.Unlock()
		if cut {
			return
		}
		if _, err := client.Write(append(header, record...)); err != nil {
			return
		}
	}
}

// TestRefusedEvidenceIsShown checks that the status of an agent has the rule and the hint of a refusal.
func TestRefusedEvidenceIsShown(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	issuer, issuerKey := newFactoryCA(t, s.root, s.rootKey)
	used := s.pod(t, "web")
	usedToken := servertest.Must(used())(t)
	first, kill := machine{filepath.Join(t.TempDir(), "agent"), nil, []func() (enroll.Evidence, error){func() (enroll.Evidence, error) { return usedToken, nil }}, nil}.start(t, s, "")
	if err := first.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	kill()
	chained := newCamera(t, "chained", servertest.Key(t), issuer, issuerKey, time.Now().Add(time.Hour))
	complete := chained
	complete.Certificate = append(complete.Certificate[:1:1], issuer.Raw)
	own := camera(t, newCamera(t, "own", servertest.Key(t), s.root, s.rootKey, time.Now().Add(time.Hour)))
	device := tpm.New(s.tpm.Path)
	attested := func() (enroll.Evidence, error) { return enroll.Attestation(device) }
	account := func(audience string) func() (enroll.Evidence, error) {
		return func() (enroll.Evidence, error) { return enroll.ParseJWT([]byte(s.token(t, "prod", "db", audience))) }
	}
	for name, c := range map[string]struct {
		evidence []func() (enroll.Evidence, error)
		rule     pki.Rule // empty if the server accepts the evidence
	}{
		"a complete chain":       {[]func() (enroll.Evidence, error){camera(t, complete)}, ""},
		"a chain without issuer": {[]func() (enroll.Evidence, error){camera(t, chained)}, pki.RuleEvidenceUntrusted},
		"an expired certificate": {
			[]func() (enroll.Evidence, error){camera(t, newCamera(t, "expired", servertest.Key(t), s.root, s.rootKey, time.Now().Add(-time.Minute)))}, pki.RuleEvidenceExpired,
		},
		"a JWT for another service": {[]func() (enroll.Evidence, error){account("other.example")}, pki.RuleEvidenceAudience},
		"a JWT that was used":       {[]func() (enroll.Evidence, error){func() (enroll.Evidence, error) { return usedToken, nil }}, pki.RuleAlreadyEnrolled},
		"a pair in another order":   {[]func() (enroll.Evidence, error){account(servertest.TrustDomain), own}, ""},
		"a pair without a rule":     {[]func() (enroll.Evidence, error){account(servertest.TrustDomain), attested}, pki.RulePolicy},
		"two of one kind":           {[]func() (enroll.Evidence, error){account(servertest.TrustDomain), account(servertest.TrustDomain)}, pki.RuleRequest},
	} {
		directory := filepath.Join(t.TempDir(), "agent")
		agent, kill := machine{directory, nil, c.evidence, device}.start(t, s, "")
		err := agent.Ensure(t.Context())
		kill()
		if c.rule == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		failure := servertest.Must(enroll.ReadStatus(directory))(t).Failure
		if refusal, _ := pki.AsRefusal(err); refusal == nil || refusal.Rule != c.rule || failure == nil || failure.Rule != c.rule || failure.Hint == "" || !failure.Final {
			t.Errorf("%s: %v, want %s; the status has %+v", name, err, c.rule, failure)
		}
	}
}

// newFactoryCA returns a CA of a manufacturer: a root if parent is nil.
func newFactoryCA(t *testing.T, parent *x509.Certificate, parentKey crypto.Signer) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key := servertest.Key(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-24 * time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if parent == nil {
		parent, parentKey = template, key
	} else {
		template.Subject.CommonName = "issuer"
	}
	der := servertest.Must(x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey))(t)
	return servertest.Must(x509.ParseCertificate(der))(t), key
}

// newCamera returns a camera with a serial number and a key.
func newCamera(t *testing.T, serial string, key crypto.Signer, issuer *x509.Certificate, issuerKey crypto.Signer, notAfter time.Time) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(servertest.RequestID()), Subject: pkix.Name{CommonName: "camera", SerialNumber: serial}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: notAfter, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der := servertest.Must(x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), issuerKey))(t)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// A context that ends is not a failure of the evidence.
func TestCanceledEnrollment(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	agent, kill := machine{filepath.Join(t.TempDir(), "agent"), nil, []func() (enroll.Evidence, error){s.pod(t, "web")}, nil}.start(t, s, "")
	defer kill()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := agent.Ensure(ctx); err == nil || errors.Is(err, enroll.ErrNoToken) {
		t.Errorf("got %v", err)
	}
	if err := agent.Ensure(t.Context()); err != nil {
		t.Error(err)
	}
}
