package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// rawCodec is a codec for messages that are already encoded. It copies their bytes.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error { *v.(*[]byte) = slices.Clone(data); return nil }
func (rawCodec) Name() string                       { return "proto" }

// FuzzRPC sends arbitrary bytes to every RPC, as an operator or without a certificate. Every error must be a refusal
// with a rule.
func FuzzRPC(f *testing.F) {
	w := servertest.New(f, ground, servertest.Options{})
	nobody := w.Caller(f, nil)
	methods := slices.DeleteFunc(slices.Sorted(maps.Keys(rpcs)), func(name string) bool { return !strings.HasPrefix(name, "brevet.") })
	device := w.Enrolled(f, "device", "device/1")
	seeds := map[string]proto.Message{
		"Enroll":            &brevetv1.EnrollRequest{RequestId: make([]byte, 16), Evidence: servertest.TokenEvidence(make([]byte, 32)), Csr: []byte{0x30, 0}, Lifetime: &durationpb.Duration{Seconds: 1 << 62, Nanos: -1}, Identity: "device/../1"},
		"Renew":             servertest.Renewal(f, device.Key),
		"IssueCertificates": servertest.Order(f, "device/2", servertest.Key(f)),
		"CreateIdentity":    &brevetv1.CreateIdentityRequest{Id: "device/\x00", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE, Labels: map[string]string{"": "\u202e"}, Names: servertest.Names([]string{"xn--a"}, []string{"fe80::1%eth0"})}},
		"GetIdentity":       &brevetv1.GetIdentityRequest{Id: device.ID},
		"ListIdentities":    &brevetv1.ListIdentitiesRequest{PageSize: -1, PageToken: "spiffe://a"},
		"CreateToken":       &brevetv1.CreateTokenRequest{Pattern: "device/[0-9]{1,3}", Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE}, Networks: []string{"10.2.0.0/33"}, KeyHash: make([]byte, 32), Lifetime: durationpb.New(-time.Second), Replace: true},
		"ListTokens":        &brevetv1.ListTokensRequest{CreatedBy: "brevet/operator/alice", Identity: "device/1", States: []brevetv1.TokenState{brevetv1.TokenState_TOKEN_STATE_OPEN}, PageToken: "7"},
		"RevokeToken":       &brevetv1.RevokeTokenRequest{Tokens: &brevetv1.RevokeTokenRequest_TokenId{TokenId: "0123456789abcdef"}, Comment: "lost"},
		"CreateExternalKey": &brevetv1.CreateExternalKeyRequest{Identity: device.ID, Rule: "web", Lifetime: durationpb.New(-time.Second)},
		"ListExternalKeys":  &brevetv1.ListExternalKeysRequest{PageSize: 1, PageToken: "AAAA"},
		"ListAccounts":      &brevetv1.ListAccountsRequest{PageSize: 1, PageToken: "AAAA"},
		"RevokeAccount":     &brevetv1.RevokeAccountRequest{Id: "AAAAAAAAAAAAAAAAAAAAAQ", RevokeCertificates: true, Comment: "\u202e"},
		"RevokeExternalKey": &brevetv1.RevokeExternalKeyRequest{Id: "AAAAAAAAAAAAAAAAAAAAAQ", RevokeCertificates: true, Comment: "\u202e"},
		"GetCertificate":    &brevetv1.GetCertificateRequest{Serial: servertest.SerialBytes(device.Certificate), IssuerId: make([]byte, 32)},
		"ListCertificates":  &brevetv1.ListCertificatesRequest{Selection: &brevetv1.CertificateSelection{Identity: device.ID}, PageToken: "9223372036854775807", PageSize: 1 << 30},
		"RevokeCertificate": &brevetv1.RevokeCertificateRequest{Serial: []byte{1}, Reason: servertest.Reason("certificateHold")},
		"CreateBulkRevocation": &brevetv1.CreateBulkRevocationRequest{DryRun: true, Reason: servertest.Reason("keyCompromise"), InvalidityTime: &timestamppb.Timestamp{Seconds: -1 << 62}, Comment: "\x00",
			Selection: &brevetv1.CertificateSelection{Label: &brevetv1.Label{Name: "site", Value: ""}, LineageSerial: servertest.SerialBytes(device.Certificate), IssueStartTime: &timestamppb.Timestamp{Nanos: -1}}},
		"ListBulkRevocations":  &brevetv1.ListBulkRevocationsRequest{States: []brevetv1.BulkRevocationState{1, 7}, PageToken: "AAAA"},
		"HoldCertificate":      &brevetv1.HoldCertificateRequest{Serial: servertest.SerialBytes(device.Certificate), Comment: "\u202e"},
		"UpdateIdentity":       &brevetv1.UpdateIdentityRequest{Id: device.ID, Revision: 1 << 62, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels", ""}}},
		"GetBulkRevocation":    &brevetv1.GetBulkRevocationRequest{Id: "4611686018427387904"},
		"RevokeCompromisedKey": statementOf(f, device.Key, servertest.TrustDomain),
		"ImportCRL":            &brevetv1.ImportCRLRequest{Crl: w.RootCRL},
		"ApplyPolicy":          &brevetv1.ApplyPolicyRequest{Document: []byte("rules: [{name: a, evidence: [token]}]"), BasedRevision: -1},
		"ExplainPolicy":        &brevetv1.ExplainPolicyRequest{Facts: []byte("evidence: [token]\nfacts: {token.identity: a}")},
		"ListEntries":          &brevetv1.ListEntriesRequest{Start: &brevetv1.LogPosition{Epoch: []byte("old"), Index: 1<<63 - 1}, Limit: -1},
		"CreateChallenge":      &brevetv1.CreateChallengeRequest{Kind: brevetv1.EvidenceKind_EVIDENCE_KIND_TOKEN, RequestId: make([]byte, 16), KeyHash: make([]byte, 32), PublicEvidence: []byte{0}},
		"GetCertificateChain":  &brevetv1.GetCertificateChainRequest{IssuerId: make([]byte, 32)},
	}
	for i, method := range methods {
		_, name, _ := strings.Cut(strings.TrimPrefix(method, "brevet.v1."), ".")
		if seed, ok := seeds[name]; ok {
			f.Add(uint8(i), true, servertest.Must(proto.Marshal(seed))(f))
		}
		f.Add(uint8(i), false, []byte{0xff})
	}
	f.Fuzz(func(t *testing.T, method uint8, operator bool, message []byte) {
		conn := nobody.Conn
		if operator {
			conn = w.Operator.Conn
		}
		name := methods[int(method)%len(methods)]
		err := send(t.Context(), conn, name, message)
		switch st := status.Convert(err); st.Code() {
		case codes.OK:
		case codes.Internal, codes.Unknown, codes.Unavailable, codes.DeadlineExceeded:
			t.Fatalf("%s of %x: %v", name, message, err)
		default:
			if servertest.RuleOf(err) == "" {
				t.Fatalf("%s of %x: %v names no rule", name, message, err)
			}
		}
	})
}

// times returns how many times send sends its message to an RPC: twice on a stream, else once.
func times(name string) int {
	if strings.HasSuffix(name, ".IssueCertificates") {
		return 2
	}
	return 1
}

// send calls an RPC with an encoded message, and reads the first response. It returns the error of the RPC, or the
// failure in the response to an issue request.
func send(ctx context.Context, conn *grpc.ClientConn, name string, message []byte) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	at := strings.LastIndex(name, ".")
	path := fmt.Sprintf("/%s/%s", name[:at], name[at+1:])
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, path, grpc.ForceCodec(rawCodec{}))
	if err != nil {
		return err
	}
	for range times(name) {
		if err := stream.SendMsg(&message); err != nil && !errors.Is(err, io.EOF) { // EOF means that a response is available
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	var answer []byte
	switch err := stream.RecvMsg(&answer); {
	case errors.Is(err, io.EOF):
		return nil // the RPC has succeeded, with no response on its stream
	case err != nil || times(name) == 1:
		return err
	}
	var issued brevetv1.IssueCertificatesResponse
	if err := proto.Unmarshal(answer, &issued); err != nil {
		return err
	}
	return servertest.FailureOf(&issued)
}
