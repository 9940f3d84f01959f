package ra_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra/nonce"
	"github.com/brevet-pki/brevet/ra/x5c"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

// manufacturer makes a root with OpenSSL, and a camera with a certificate of it.
func manufacturer(t *testing.T) (root *x509.Certificate, camera tls.Certificate) {
	t.Helper()
	root, cameras := cameraFactory(t, "SN-0042")
	return root, cameras[0]
}

// cameraFactory makes a root with OpenSSL, and a camera with a certificate of it for each serial number. The serial number
// is in the subject.
func cameraFactory(t *testing.T, serials ...string) (root *x509.Certificate, cameras []tls.Certificate) {
	t.Helper()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	request := func(name, subject, constraints string, more ...string) tls.Certificate {
		args := append([]string{
			"req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", in(name + ".key"), "-out", in(name + ".pem"),
			"-subj", subject, "-days", "3650", "-config", "/dev/null", "-addext", "basicConstraints=critical," + constraints,
		}, more...)
		if out, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput(); err != nil {
			t.Fatalf("openssl: %v (run deploy/setup.sh --test)\n%s", err, out)
		}
		return servertest.Must(tls.LoadX509KeyPair(in(name+".pem"), in(name+".key")))(t)
	}
	authority := request("root", "/O=Acme/CN=Acme Root", "CA:true")
	for _, serial := range serials {
		cameras = append(cameras, request(serial, "/O=Acme/serialNumber="+serial+"/CN=Camera", "CA:false", "-CA", in("root.pem"), "-CAkey", in("root.key")))
	}
	return authority.Leaf, cameras
}

// factoryWorld starts a server that enrolls the devices of a manufacturer, each as the identity with its serial number.
func factoryWorld(t *testing.T, root *x509.Certificate) *servertest.World {
	t.Helper()
	return servertest.New(t, ground, servertest.Options{Policy: fmt.Appendf(nil, `
x5c:
  cameras:
    roots: %q
rules:
- name: tokens
  evidence: [token]
- name: cameras
  evidence: [x5c]
  when: x5c.source == "cameras"
  identity: device/{x5c.serial}
  register: true
  profile: device
`, pemOf(root))})
}

// bootstrapOf returns what a device without a token knows of the server.
func bootstrapOf(w *servertest.World) enroll.Bootstrap {
	return enroll.Bootstrap{RootFingerprint: sha256.Sum256(w.Root.Raw), TrustDomain: servertest.TrustDomain, Server: w.GRPC}
}

// factoryRequest returns a new request of a device that knows the server and its root.
func factoryRequest(t *testing.T, w *servertest.World, csr []byte, evidence ...enroll.Evidence) enroll.EnrollRequest {
	t.Helper()
	return enroll.EnrollRequest{
		RequestID: servertest.Must(pki.RequestIDFromBytes(servertest.RequestID()))(t), CSR: csr, Bootstrap: bootstrapOf(w), Evidence: evidence,
	}
}

func TestDeviceEnrollsWithFactoryCertificate(t *testing.T) {
	t.Parallel()
	root, camera := manufacturer(t)
	w := factoryWorld(t, root)
	client := servertest.Must(enroll.NewClient(""))(t)
	evidence := servertest.Must(enroll.FactoryCertificate(camera))(t)
	key := servertest.Key(t)
	request := factoryRequest(t, w, servertest.CSR(t, key), evidence)
	credential := servertest.Must(client.Enroll(t.Context(), request))(t)
	const id = "spiffe://" + servertest.TrustDomain + "/device/SN-0042"
	if got := credential.Certificate.URIs[0].String(); got != id || !key.PublicKey.Equal(credential.Certificate.PublicKey) {
		t.Errorf("the certificate names %s, want %s, or has another key", got, id)
	}
	w.Status(t, credential.Certificate, "good")
	again := servertest.Must(client.Enroll(t.Context(), request))(t)
	if !bytes.Equal(again.Certificate.Raw, credential.Certificate.Raw) {
		t.Error("the repeated request returned another certificate")
	}
	w.Clock.Advance(2 * nonce.Lifetime)
	again = servertest.Must(client.Enroll(t.Context(), request))(t)
	if !bytes.Equal(again.Certificate.Raw, credential.Certificate.Raw) {
		t.Error("the request repeated after the first challenge has expired returned another certificate")
	}
	entries := servertest.Find(w.Entries(t, 0), translog.CertificateIssued, id)
	want := "x5c:" + strings.TrimPrefix(x5c.SubjectOf(camera.Leaf, root).String(), "x5c:")[:16]
	if len(entries) != 1 || entries[0].Actor.String() != want {
		t.Errorf("the log has %+v, want one certificate that was issued to %s", entries, want)
	}
	_, err := client.Enroll(t.Context(), factoryRequest(t, w, servertest.CSR(t, servertest.Key(t)), evidence))
	if refusal, _ := pki.AsRefusal(err); refusal == nil || refusal.Rule != pki.RuleAlreadyEnrolled {
		t.Errorf("a second enrollment: %v, want %s", err, pki.RuleAlreadyEnrolled)
	} else if !strings.HasPrefix(refusal.Hint, "set replace: true in rule cameras, or give the agent a token made with --replace alone") {
		t.Errorf("the hint of a second enrollment without a token is %q", refusal.Hint)
	}
	w.Renewed(t, w.Holder(t, credential.Certificate.Raw, key), servertest.Key(t))
}

// stolen is what a party presents that another one presented with another request.
type stolen struct {
	enroll.Evidence
	presented pki.Evidence
}

func (s stolen) Present(context.Context, enroll.Presentation) (pki.Evidence, error) {
	return s.presented, nil
}

// kept is evidence that keeps what it presents.
type kept struct {
	enroll.Evidence
	presented *pki.Evidence
}

func (k kept) Present(ctx context.Context, p enroll.Presentation) (pki.Evidence, error) {
	e, err := k.Evidence.Present(ctx, p)
	*k.presented = e
	return e, err
}

func TestFactoryCertificatesAreRefused(t *testing.T) {
	t.Parallel()
	root, camera := manufacturer(t)
	_, foreign := manufacturer(t)
	w := factoryWorld(t, root)
	client := servertest.Must(enroll.NewClient(""))(t)
	own := servertest.Must(enroll.FactoryCertificate(camera))(t)
	var made pki.Evidence
	servertest.Must(client.Enroll(t.Context(), factoryRequest(t, w, servertest.CSR(t, servertest.Key(t)), kept{own, &made})))(t)
	before := rows(t, w, "certificates") + rows(t, w, "identities")
	for name, c := range map[string]struct {
		evidence enroll.Evidence
		rule     pki.Rule
	}{
		"of another manufacturer": {servertest.Must(enroll.FactoryCertificate(foreign))(t), pki.RuleEvidenceUntrusted},
		"with a stolen signature": {stolen{own, made}, pki.RuleEvidenceKey},
	} {
		_, err := client.Enroll(t.Context(), factoryRequest(t, w, servertest.CSR(t, servertest.Key(t)), c.evidence))
		if refusal, _ := pki.AsRefusal(err); refusal == nil || refusal.Rule != c.rule {
			t.Errorf("%s: %v, want %s", name, err, c.rule)
		}
	}
	if after := rows(t, w, "certificates") + rows(t, w, "identities"); after != before {
		t.Errorf("%d rows were added", after-before)
	}
	unconfigured := servertest.New(t, ground, servertest.Options{})
	_, err := unconfigured.Caller(t, nil).CreateChallenge(t.Context(), &brevetv1.CreateChallengeRequest{
		Kind: brevetv1.EvidenceKind_EVIDENCE_KIND_X5C, RequestId: servertest.RequestID(), KeyHash: make([]byte, 32),
	})
	servertest.Refused(t, err, codes.InvalidArgument, pki.RuleEvidenceKind)
}
