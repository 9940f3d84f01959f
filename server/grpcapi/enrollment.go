package grpcapi

import (
	"context"
	"crypto/x509"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra"
)

// Enrollment serves brevet.v1.EnrollmentService.
type Enrollment struct {
	brevetv1.UnimplementedEnrollmentServiceServer
	Registrar *ra.Registrar
	Authority *ca.Authority
	Renewals  Renewals
}

// Renewals computes when certificates should be renewed. It is safe for concurrent use.
type Renewals interface {
	// RenewalInfo returns the renewal window of a certificate, and the time after which to poll again. It reads only
	// memory. It refuses a certificate that is not on record.
	RenewalInfo(ref pki.CertRef) (start, end time.Time, retryAfter time.Duration, err error)
}

// Enroll serves the RPC of that name in brevet.v1.EnrollmentService.
func (e *Enrollment) Enroll(ctx context.Context, req *brevetv1.EnrollRequest) (*brevetv1.EnrollResponse, error) {
	enroll := ra.EnrollRequest{Evidence: evidenceIn(req.GetEvidence()), CSR: req.GetCsr(), From: clientAddress(ctx)}
	var err error
	enroll.RequestID, enroll.Lifetime, err = requestOf(req)
	if err == nil && req.GetIdentity() != "" {
		enroll.Identity, err = e.Registrar.ParseID(req.GetIdentity())
	}
	if err != nil {
		return nil, e.Registrar.NoteEvidence(ctx, enroll, err)
	}
	cert, err := e.Registrar.Enroll(ctx, enroll)
	if err != nil {
		return nil, err
	}
	c, err := e.credential(cert)
	return &brevetv1.EnrollResponse{Credential: c}, err
}

// evidenceIn converts evidence. A piece of a kind that this server does not support gets the zero kind, which the
// registrar refuses.
func evidenceIn(all []*brevetv1.Evidence) []pki.Evidence {
	var out []pki.Evidence
	for _, e := range all {
		switch k := e.GetKind().(type) {
		case *brevetv1.Evidence_Token:
			out = append(out, pki.Evidence{Kind: pki.EvidenceToken, Value: k.Token.GetSecret()})
		case *brevetv1.Evidence_X5C:
			x := pki.X5CEvidence{Certificates: k.X5C.GetCertificates(), Challenge: k.X5C.GetChallenge(), Signature: k.X5C.GetSignature()}
			out = append(out, pki.Evidence{Kind: pki.EvidenceX5C, Value: x.Encode()})
		case *brevetv1.Evidence_Tpm:
			out = append(out, pki.Evidence{Kind: pki.EvidenceTPM, Value: k.Tpm.GetResponse()})
		case *brevetv1.Evidence_Jwt:
			out = append(out, pki.Evidence{Kind: pki.EvidenceJWT, Value: k.Jwt.GetToken()})
		case *brevetv1.Evidence_Recovery:
			r := pki.RecoveryEvidence{
				IssuerID: k.Recovery.GetIssuerId(), Serial: k.Recovery.GetSerial(), PublicKey: k.Recovery.GetPublicKey(),
				Challenge: k.Recovery.GetChallenge(), Signature: k.Recovery.GetSignature(),
			}
			out = append(out, pki.Evidence{Kind: pki.EvidenceRecovery, Value: r.Encode()})
		default:
			out = append(out, pki.Evidence{})
		}
	}
	return out
}

// evidenceKinds maps the kinds of evidence in protobuf to those of package pki.
var evidenceKinds = map[brevetv1.EvidenceKind]pki.EvidenceKind{
	brevetv1.EvidenceKind_EVIDENCE_KIND_TOKEN: pki.EvidenceToken,
	brevetv1.EvidenceKind_EVIDENCE_KIND_X5C:   pki.EvidenceX5C,
	brevetv1.EvidenceKind_EVIDENCE_KIND_TPM:   pki.EvidenceTPM,
	brevetv1.EvidenceKind_EVIDENCE_KIND_JWT:   pki.EvidenceJWT,

	brevetv1.EvidenceKind_EVIDENCE_KIND_RECOVERY: pki.EvidenceRecovery,
}

// CreateChallenge serves the RPC of that name in brevet.v1.EnrollmentService.
func (e *Enrollment) CreateChallenge(ctx context.Context, req *brevetv1.CreateChallengeRequest) (*brevetv1.CreateChallengeResponse, error) {
	id, err := requestIDIn(req.GetRequestId())
	if err != nil {
		return nil, err
	}
	key, err := keyHashIn(req.GetKeyHash())
	if err != nil {
		return nil, err
	}
	challenge, err := e.Registrar.Challenge(ctx, ra.ChallengeRequest{
		Kind: evidenceKinds[req.GetKind()], Request: id, Key: key, Public: req.GetPublicEvidence(),
	})
	if err != nil {
		return nil, err
	}
	return &brevetv1.CreateChallengeResponse{Challenge: challenge}, nil
}

// Renew serves the RPC of that name in brevet.v1.EnrollmentService.
func (e *Enrollment) Renew(ctx context.Context, req *brevetv1.RenewRequest) (*brevetv1.RenewResponse, error) {
	id, lifetime, err := requestOf(req)
	if err != nil {
		return nil, err
	}
	by := callerOf(ctx)
	renew := ra.RenewRequest{
		RequestID: id, Identity: by.ID, Predecessor: by.Certificate, CSR: req.GetCsr(), Lifetime: lifetime, Superseded: by.Past,
		Door: pki.DoorGRPC, From: clientAddress(ctx),
	}
	if e := req.GetEvidence(); e != nil {
		renew.Evidence = evidenceIn([]*brevetv1.Evidence{e})[0]
	}
	cert, err := e.Registrar.Renew(ctx, renew)
	if err != nil {
		return nil, err
	}
	c, err := e.credential(cert)
	return &brevetv1.RenewResponse{Credential: c}, err
}

// GetTrustBundle serves the RPC of that name in brevet.v1.EnrollmentService.
func (e *Enrollment) GetTrustBundle(context.Context, *brevetv1.GetTrustBundleRequest) (*brevetv1.GetTrustBundleResponse, error) {
	trust := e.Authority.Trust()
	return &brevetv1.GetTrustBundleResponse{TrustBundle: bundleOut(trust, trust.Roots())}, nil
}

// GetRenewalInfo serves the RPC of that name in brevet.v1.EnrollmentService.
func (e *Enrollment) GetRenewalInfo(ctx context.Context, _ *brevetv1.GetRenewalInfoRequest) (*brevetv1.GetRenewalInfoResponse, error) {
	start, end, retryAfter, err := e.Renewals.RenewalInfo(callerOf(ctx).Certificate)
	if err != nil {
		return nil, err
	}
	revision := e.Authority.Trust().Revision()
	return &brevetv1.GetRenewalInfoResponse{
		RenewalWindow:       windowOut(pki.RenewalWindow{Start: start, End: end}),
		TrustBundleRevision: revision[:],
		RetryAfter:          durationpb.New(retryAfter),
	}, nil
}

func windowOut(w pki.RenewalWindow) *brevetv1.RenewalWindow {
	return &brevetv1.RenewalWindow{StartTime: timestamppb.New(w.Start), EndTime: timestamppb.New(w.End)}
}

func requestOf(req interface {
	GetRequestId() []byte
	GetLifetime() *durationpb.Duration
}) (pki.RequestID, time.Duration, error) {
	id, err := requestIDIn(req.GetRequestId())
	if err != nil {
		return id, 0, err
	}
	lifetime, err := durationOf(req.GetLifetime(), "lifetime")
	return id, lifetime, err
}

func requestIDIn(b []byte) (pki.RequestID, error) {
	id, err := pki.RequestIDFromBytes(b)
	if err != nil {
		return id, pki.Refuse(pki.RuleRequest, "draw 16 bytes at random and keep them for retries", "the request ID is malformed")
	}
	return id, nil
}

func (e *Enrollment) credential(cert ca.Certificate) (*brevetv1.Credential, error) {
	chain, err := chainOut(e.Authority, cert.Ref.Issuer)
	if err != nil {
		return nil, err
	}
	_, root, err := e.Authority.Chain(cert.Ref.Issuer)
	if err != nil {
		return nil, err
	}
	trust := e.Authority.Trust()
	return &brevetv1.Credential{
		Certificate: cert.DER, Chain: chain, TrustBundle: bundleOut(trust, trust.RootsWith(root)),
		RenewalWindow: windowOut(pki.RenewalWindowOf(cert.Ref.Serial, cert.NotAfter)),
	}, nil
}

func chainOut(a *ca.Authority, issuer pki.IssuerID) (*brevetv1.CertificateChain, error) {
	chain, _, err := a.Chain(issuer)
	if err != nil {
		return nil, err
	}
	out := &brevetv1.CertificateChain{IssuerId: issuer.Bytes()}
	for _, c := range chain {
		out.Certificates = append(out.Certificates, c.Raw)
	}
	return out, nil
}

// bundleOut returns a message with the roots and the revision of the trust bundle.
func bundleOut(trust *ca.Trust, roots []*x509.Certificate) *brevetv1.TrustBundle {
	revision := trust.Revision()
	out := &brevetv1.TrustBundle{Revision: revision[:]}
	for _, root := range roots {
		out.Roots = append(out.Roots, root.Raw)
	}
	return out
}
