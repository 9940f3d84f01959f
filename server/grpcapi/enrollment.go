package grpcapi

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

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
	bulk      *bulk // set by New
}

// Enroll serves the RPC of that name in brevet.v1.EnrollmentService.
func (e *Enrollment) Enroll(ctx context.Context, req *brevetv1.EnrollRequest) (*brevetv1.EnrollResponse, error) {
	id, lifetime, err := requestOf(req)
	if err != nil {
		return nil, e.Registrar.NoteEvidence(ctx, req.GetToken(), err)
	}
	cert, err := e.Registrar.Enroll(ctx, ra.Enrollment{RequestID: id, Evidence: req.GetToken(), CSR: req.GetCsr(), Lifetime: lifetime})
	if err != nil {
		return nil, err
	}
	c, err := e.credential(cert)
	return &brevetv1.EnrollResponse{Credential: c}, err
}

// Renew serves the RPC of that name in brevet.v1.EnrollmentService.
func (e *Enrollment) Renew(ctx context.Context, req *brevetv1.RenewRequest) (*brevetv1.RenewResponse, error) {
	id, lifetime, err := requestOf(req)
	if err != nil {
		return nil, err
	}
	by := callerOf(ctx)
	cert, err := e.Registrar.Renew(ctx, ra.Renewal{
		RequestID: id, Identity: by.ID, Predecessor: by.Certificate, CSR: req.GetCsr(), Lifetime: lifetime, Superseded: by.Past,
	})
	if err != nil {
		return nil, err
	}
	c, err := e.credential(cert)
	return &brevetv1.RenewResponse{Credential: c}, err
}

func requestOf(req interface {
	GetRequestId() []byte
	GetLifetime() *durationpb.Duration
}) (pki.RequestID, time.Duration, error) {
	id, err := pki.RequestIDFromBytes(req.GetRequestId())
	if err != nil {
		return id, 0, pki.Refuse(pki.RuleRequest, "draw 16 octets at random and keep them for retries", "the request ID is not of its form")
	}
	lifetime, err := durationOf(req.GetLifetime(), "lifetime")
	return id, lifetime, err
}

func (e *Enrollment) credential(cert ca.Certificate) (*brevetv1.Credential, error) {
	chain, root, err := e.Authority.Chain(cert.Ref.Issuer)
	if err != nil {
		return nil, err
	}
	c := &brevetv1.Credential{Certificate: cert.DER, Roots: [][]byte{root.Raw}}
	for _, issuer := range chain {
		c.Chain = append(c.Chain, issuer.Raw)
	}
	return c, nil
}
