package enroll

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

func TestClientSendsEveryKindOfEvidence(t *testing.T) {
	for _, kind := range pki.EvidenceKinds() {
		if kind == pki.EvidenceX5CTLS || kind == pki.EvidenceACME {
			continue // a server makes them itself, of a connection or an order
		}
		value := pki.X5CEvidence{}.Encode() // most kinds are sent unread
		if kind == pki.EvidenceRecovery {
			value = pki.RecoveryEvidence{}.Encode()
		}
		if wire, err := wireEvidence([]pki.Evidence{{Kind: kind, Value: value}}); err != nil || len(wire) != 1 || wire[0].GetKind() == nil {
			t.Errorf("evidence of the kind %s is sent as %v, %v: add a case to wireEvidence", kind, wire, err)
		}
	}
}

// The hash of a factory certificate in the agent's log is not the one that the server's log has.
func TestLoggedEvidence(t *testing.T) {
	o := offer{evidence: []Evidence{factory{chain: [][]byte{{1}}}, presented{pki.Evidence{Kind: pki.EvidenceTPM}}}}
	const want = "x5c certificate SHA-256 4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a and tpm "
	if got := o.logged(); got != want {
		t.Errorf("the log has %q, want %q", got, want)
	}
}

// presented is Evidence that another party has presented.
type presented struct{ evidence pki.Evidence }

func (p presented) Kind() pki.EvidenceKind { return p.evidence.Kind }
func (presented) Subject() string          { return "" }
func (p presented) Present(context.Context, Presentation) (pki.Evidence, error) {
	return p.evidence, nil
}

// CreateChallenge returns a challenge that names everything in the request.
func (s *testService) CreateChallenge(_ context.Context, r *brevetv1.CreateChallengeRequest) (*brevetv1.CreateChallengeResponse, error) {
	challenge := fmt.Sprintf("%s for %s, request %x, key %x", r.GetKind(), r.GetPublicEvidence(), r.GetRequestId(), r.GetKeyHash())
	return &brevetv1.CreateChallengeResponse{Challenge: []byte(challenge)}, s.fail
}

// challenged is Evidence that keeps its challenge, and then fails.
type challenged struct {
	got  *string
	fail error
}

func (challenged) Kind() pki.EvidenceKind { return pki.EvidenceTPM }
func (challenged) Subject() string        { return "" }

func (c challenged) Present(ctx context.Context, p Presentation) (pki.Evidence, error) {
	challenge, err := p.Challenge(ctx, pki.EvidenceTPM, []byte("device"))
	if err != nil {
		return pki.Evidence{}, err
	}
	*c.got = string(challenge)
	return pki.Evidence{}, c.fail
}

// A challenge is requested for the request that the evidence is presented with. If the device cannot respond, the error is
// that of the device, and not of the server.
func TestChallengeIsForTheRequest(t *testing.T) {
	ca := newTestCA(t)
	service := &testService{ca: ca}
	address := serve(t, service, ca.config(t, nil))
	client, request := newTestClient(t, address), enrollRequest(t, ca.token(t, "device/1"))
	broken, got := errors.New("the secure element does not respond"), ""
	request.Evidence = []Evidence{challenged{&got, broken}}
	if _, err := client.Enroll(t.Context(), request); !errors.Is(err, broken) || strings.Contains(err.Error(), address) {
		t.Errorf("got %v, want the error of the device", err)
	}
	key, err := pki.HashKey(request.Key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("EVIDENCE_KIND_TPM for device, request %s, key %s", request.RequestID, key); got != want {
		t.Errorf("the challenge is %s, want %s", got, want)
	}
	service.fail = withDetails(codes.InvalidArgument, &brevetv1.Refusal{Rule: string(pki.RuleEvidenceKind), Detail: "no TPMs", Hint: "use a token"})
	_, err = client.Enroll(t.Context(), request)
	if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != pki.RuleEvidenceKind || refusal.Hint != "use a token" {
		t.Errorf("a challenge that the server refuses: %v", err)
	}
	request.CSR = nil
	if _, err := client.Enroll(t.Context(), request); err == nil || !strings.Contains(err.Error(), "certification request") {
		t.Errorf("without a CSR: %v", err)
	}
}
