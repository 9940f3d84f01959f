package enroll

import (
	"crypto/ed25519"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// fuzzToken returns a token with an arbitrary secret. It cuts the secret to 32 bytes, or fills it up with zeros.
func fuzzToken(t testing.TB, secret []byte, domain, server string) Token {
	t.Helper()
	b := make([]byte, 32)
	copy(b, secret)
	b[31] |= 1 // ParseToken refuses a secret that is all zero
	s, err := pki.TokenSecretFromBytes(b)
	if err != nil {
		t.Fatal(err)
	}
	return Token{Bootstrap{TrustDomain: domain, Server: server}, s}
}

func FuzzParseToken(f *testing.F) {
	token := fuzzToken(f, nil, testDomain, "ca.example:7443").Text()
	for _, seed := range []string{token, " " + token[:40] + "\r\n" + token[40:], token[:len(token)-1], "brevet1." + strings.Repeat("A", 92), "brevet2.AAAA", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err == nil {
			if again, err := ParseToken(token.Text()); err != nil || again != token {
				t.Fatalf("%q reads as %v, and that as %v, %v", text, token, again, err)
			}
		} else if len(text) > 60 && strings.Contains(err.Error(), text[20:60]) {
			t.Fatalf("the error contains the token: %v", err)
		}
	})
}

// FuzzTokenFields creates tokens from arbitrary fields, with a correct checksum. Random texts almost never have one.
func FuzzTokenFields(f *testing.F) {
	f.Add([]byte{1}, testDomain, "ca.example:7443")
	f.Add([]byte{}, testDomain, "[::1]:65536")
	f.Add([]byte{2}, "Fleet", "a b:1")
	f.Add([]byte{3}, strings.Repeat("a", 256), "%2f/x:1")
	f.Fuzz(func(t *testing.T, secret []byte, domain, server string) {
		made := fuzzToken(t, secret, domain, server)
		text := made.Text()
		if len(domain) > 255 { // too long for the length byte in the token
			if made.Check() == nil {
				t.Fatalf("%q is accepted as a trust domain", domain)
			}
			return
		}
		if len(text) > 2*MaxTokenText {
			return // too long for ParseToken
		}
		token, err := ParseToken(text)
		if token, want := token, made.Check(); (err == nil) != (want == nil) || err == nil && token != made {
			t.Fatalf("%q at %q reads as %v, %v; Check says %v", domain, server, token, err, want)
		}
	})
}

// FuzzCredential parses arbitrary responses of a server. A credential is accepted only if it belongs to the key and
// names an identity.
func FuzzCredential(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)) // every fuzzing process must use the same key
	now := time.Now()
	root := testSign(f, caTemplate("root"), nil, key.Public(), key)
	leaf := testSign(f, leafTemplate("spiffe://"+testDomain+"/device/1", now.Add(-time.Minute), now.Add(time.Hour)), root, key.Public(), key)
	for _, c := range []*brevetv1.Credential{
		{Certificate: leaf.Raw, TrustBundle: &brevetv1.TrustBundle{Roots: [][]byte{root.Raw}}},
		{
			Certificate: leaf.Raw, Chain: &brevetv1.CertificateChain{Certificates: [][]byte{root.Raw, leaf.Raw}},
			TrustBundle:   &brevetv1.TrustBundle{Roots: [][]byte{root.Raw, root.Raw}, Revision: []byte{1}},
			RenewalWindow: &brevetv1.RenewalWindow{StartTime: timestamppb.New(now), EndTime: timestamppb.New(now.Add(time.Minute))},
		},
		{Certificate: root.Raw, TrustBundle: &brevetv1.TrustBundle{Roots: [][]byte{root.Raw}}},
		{},
	} {
		wire, err := proto.Marshal(&brevetv1.EnrollResponse{Credential: c})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		var answer brevetv1.EnrollResponse
		if proto.Unmarshal(wire, &answer) != nil {
			return
		}
		c, err := fromWire("ca.example:7443", answer.GetCredential())
		if err != nil {
			return
		}
		p, err := NewPair(c, key, Origin{}, now)
		if err == nil && (!key.Public().(ed25519.PublicKey).Equal(c.Certificate.PublicKey) || c.Certificate.IsCA || p.ID().IsZero()) {
			t.Fatalf("serial %s is accepted for %q", p.Serial(), p.ID())
		}
	})
}

// FuzzTrustBundle parses arbitrary trust bundles of a server. With each one that is accepted, a credential stays
// complete, and has the root of its certificate.
func FuzzTrustBundle(f *testing.F) {
	ca := newTestCA(f)
	pair := ca.pairFor(f, "device/1")
	for _, seed := range []*brevetv1.TrustBundle{
		{Roots: [][]byte{ca.root.Raw}, Revision: []byte{1}}, {Roots: [][]byte{newRoot(f).Raw, ca.root.Raw}, Revision: make([]byte, 32)},
		{Roots: [][]byte{ca.issuer.Raw}, Revision: []byte{2}}, {Roots: [][]byte{{0x30, 0}}, Revision: []byte{2}}, {Revision: []byte{2}},
	} {
		message, err := proto.Marshal(&brevetv1.GetTrustBundleResponse{TrustBundle: seed})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(message)
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		var response brevetv1.GetTrustBundleResponse
		if proto.Unmarshal(message, &response) != nil {
			return
		}
		bundle, err := ParseTrustBundle(response.GetTrustBundle().GetRoots(), response.GetTrustBundle().GetRevision())
		if err != nil {
			return
		}
		if n := len(bundle.Roots); n == 0 || n > maxRoots || bundle.Revision == "" {
			t.Fatalf("a trust bundle of %d roots is accepted, with the revision %q", n, bundle.Revision)
		}
		next, err := pair.withBundle(bundle, time.Now())
		if err != nil || next.ID() != pair.ID() || !next.Certificate.Equal(pair.Certificate) || next.Root() == nil {
			t.Fatalf("the credential is not complete: %v", err)
		}
	})
}

// FuzzStatus converts arbitrary error statuses of RPCs. The agent's delay after each is neither zero nor unlimited.
func FuzzStatus(f *testing.F) {
	for _, seed := range []error{
		withDetails(codes.PermissionDenied, &brevetv1.Refusal{Rule: "renewal.key_conflict", Detail: "two hold it", Hint: "ask"}),
		withDetails(codes.Unavailable, &errdetails.RetryInfo{RetryDelay: &durationpb.Duration{Seconds: 1 << 62}}),
		withDetails(codes.ResourceExhausted, &errdetails.RetryInfo{RetryDelay: &durationpb.Duration{Seconds: -1, Nanos: 1 << 30}}),
		status.Error(codes.Internal, "\x00"),
	} {
		wire, err := proto.Marshal(status.Convert(seed).Proto())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		var st spb.Status
		if proto.Unmarshal(wire, &st) != nil || st.GetCode() == 0 {
			return
		}
		err := fromStatus("ca:7443", status.ErrorProto(&st))
		if err.Error() == "" {
			t.Error("the error has no text")
		}
		if d := delay(1, err, nil, time.Now()); d <= 0 || d > 2*time.Hour {
			t.Errorf("the next try is after %s", d)
		}
	})
}
