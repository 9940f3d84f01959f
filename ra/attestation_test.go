package ra_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/enroll/tpm"
	"github.com/brevet-pki/brevet/enroll/tpm/tpmtest"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

// endorsement returns the SHA-256 of the endorsement key, in hexadecimal.
func endorsement(t *testing.T, p *tpmtest.TPM) string {
	t.Helper()
	ek := servertest.Must(tpm.New(p.Path).Endorsement())(t)
	return hex.EncodeToString(ek.Hash[:])
}

// attestationWorld starts a server that gives the TPMs of a manufacturer the identity device/gateway, if they fulfill a
// condition, with a key in hardware.
func attestationWorld(t *testing.T, m *tpmtest.Manufacturer, when string) *servertest.World {
	t.Helper()
	return servertest.New(t, ground, servertest.Options{Policy: attestationPolicy(t, m, when)})
}

// attestationPolicy returns the policy of attestationWorld.
func attestationPolicy(t *testing.T, m *tpmtest.Manufacturer, when string) []byte {
	t.Helper()
	root, intermediate := m.CAs(t)
	return fmt.Appendf(nil, `
tpm:
  acme:
    roots: %q
    intermediates: %q
rules:
- name: tokens
  evidence: [token]
- name: gateways
  evidence: [tpm]
  when: %s
  identity: device/gateway
  register: true
  replace: true
  profile: device
  hardware_key: true
`, pemOf(root), pemOf(intermediate), when)
}

// pemOf returns a certificate in PEM.
func pemOf(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// attestingAgent returns an agent without a token, whose keys are in a TPM.
func attestingAgent(t *testing.T, w *servertest.World, directory, path string) *enroll.Agent {
	t.Helper()
	agent, dir := openAttestingAgent(t, w, directory, path, nil)
	t.Cleanup(func() { _ = dir.Close() })
	return agent
}

// openAttestingAgent is attestingAgent, and also returns the directory, which the caller closes. The authority replaces
// the client, unless it is nil.
func openAttestingAgent(
	t *testing.T, w *servertest.World, directory, path string, authority enroll.Authority,
) (*enroll.Agent, *enroll.Directory) {
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	dir := servertest.Must(enroll.OpenDirectory(directory, log))(t)
	device := tpm.New(path)
	dir.KeepKeysIn(device)
	client := servertest.Must(enroll.NewClient(""))(t)
	if authority == nil {
		authority = client
	}
	return servertest.Must(enroll.NewAgent(enroll.Config{
		Directory: dir, Authority: authority, Bootstrap: bootstrapOf(w), Log: log,
		Evidence: func() ([]enroll.Evidence, error) {
			e, err := enroll.Attestation(device)
			return []enroll.Evidence{e}, err
		},
	}))(t), dir
}

// TestAgentEnrollsWithTPM lets an agent enroll without any secret and renew. Another TPM is refused.
func TestAgentEnrollsWithTPM(t *testing.T) {
	t.Parallel()
	m := tpmtest.NewManufacturer(t)
	first, second := m.Make(t), m.Make(t)
	w := attestationWorld(t, m, `tpm.ek == "`+endorsement(t, first)+`"`)
	directory := filepath.Join(t.TempDir(), "device")
	agent := attestingAgent(t, w, directory, first.Path)
	if err := agent.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	enrolled := agent.Pair()
	if _, ok := enrolled.Key.(*tpm.Key); !ok || enrolled.ID().Path() != "device/gateway" || enrolled.Origin.TPM != first.Path {
		t.Errorf("the credential is for %s, with a %T of the TPM %q", enrolled.ID(), enrolled.Key, enrolled.Origin.TPM)
	}
	w.Status(t, enrolled.Certificate, "good")

	// A program reads the files, and uses the key in the TPM.
	read := servertest.Must(enroll.ReadPair(directory))(t)
	if err := handshake(t, read); err != nil {
		t.Errorf("the key that was read from the files: %v", err)
	}
	client := servertest.Must(enroll.NewClient(""))(t)
	next := servertest.Must(tpm.New(first.Path).NewKey())(t)
	renewed := servertest.Must(client.Renew(t.Context(), enroll.RenewRequest{
		RequestID: servertest.Must(pki.RequestIDFromBytes(servertest.RequestID()))(t), Current: read, CSR: servertest.CSR(t, next),
		Key: next, Evidence: servertest.Must(enroll.Attestation(next.Device()))(t),
	}))(t)
	if renewed.Certificate.Equal(enrolled.Certificate) {
		t.Error("the renewed certificate is the old one")
	}

	other := attestingAgent(t, w, filepath.Join(t.TempDir(), "other"), second.Path)
	err := other.Ensure(t.Context())
	if refusal, _ := pki.AsRefusal(err); refusal == nil || refusal.Rule != pki.RulePolicy {
		t.Errorf("another TPM enrolls: %v, want %s", err, pki.RulePolicy)
	}
	w.Status(t, enrolled.Certificate, "good")
	entries := servertest.Find(w.Entries(t, 0), translog.CertificateIssued, enrolled.ID().String())
	if want := "tpm:" + endorsement(t, first)[:16]; len(entries) == 0 || entries[0].Actor.String() != want {
		t.Errorf("the log has %+v, want a certificate that was issued to %s", entries, want)
	}
}

// TestReplacedTPMIsRefusedUntilIdentityIsRebound gives an enrolled device another TPM.
func TestReplacedTPMIsRefusedUntilIdentityIsRebound(t *testing.T) {
	t.Parallel()
	m := tpmtest.NewManufacturer(t)
	first, second := m.Make(t), m.Make(t)
	w := attestationWorld(t, m, `tpm.certified && tpm.source == "acme"`)
	agent := attestingAgent(t, w, filepath.Join(t.TempDir(), "first"), first.Path)
	if err := agent.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	replaced := attestingAgent(t, w, filepath.Join(t.TempDir(), "second"), second.Path)
	err := replaced.Ensure(t.Context())
	if refusal, _ := pki.AsRefusal(err); refusal == nil || refusal.Rule != pki.RuleEvidenceConflict {
		t.Fatalf("another TPM enrolls as the same identity: %v, want %s", err, pki.RuleEvidenceConflict)
	}
	w.Status(t, agent.Pair().Certificate, "good")
	id := agent.Pair().ID().String()
	before := servertest.Must(w.Operator.GetIdentity(t.Context(), &brevetv1.GetIdentityRequest{Id: id}))(t).GetIdentity()
	if want := "tpm:" + endorsement(t, first); before.GetEvidenceSubject() != want {
		t.Errorf("the identity is tied to %s, want %s", before.GetEvidenceSubject(), want)
	}
	servertest.Must(w.Operator.UpdateIdentity(t.Context(), &brevetv1.UpdateIdentityRequest{
		Id: id, Revision: before.GetRevision(), Spec: &brevetv1.IdentitySpec{EvidenceSubject: "tpm:" + endorsement(t, second)},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"evidence_subject"}},
	}))(t)
	if err := replaced.Ensure(t.Context()); err != nil {
		t.Fatalf("the TPM that the operator named is refused: %v", err)
	}
	w.Status(t, replaced.Pair().Certificate, "good")
	w.Status(t, agent.Pair().Certificate, "superseded")
}

// handshake makes a TLS connection in memory, whose server has the pair.
func handshake(t *testing.T, p *enroll.Pair) error {
	t.Helper()
	listener := servertest.Must(tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*p.TLS()}}))(t)
	defer listener.Close()
	go func() {
		if conn, err := listener.Accept(); err == nil {
			_ = conn.(*tls.Conn).HandshakeContext(context.Background())
			_ = conn.Close()
		}
	}()
	conn, err := tls.Dial("tcp", listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
		_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: p.RootPool(), Intermediates: chainOf(p), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		return err
	}})
	if err != nil {
		return err
	}
	return conn.Close()
}

func chainOf(p *enroll.Pair) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range p.Chain {
		pool.AddCert(c)
	}
	return pool
}
