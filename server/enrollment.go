package server

import (
	"context"
	"crypto/x509"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra"
)

// enrollment serves brevet.v1.EnrollmentService.
type enrollment struct {
	brevetv1.UnimplementedEnrollmentServiceServer
	registrar *ra.Registrar
	authority *ca.Authority
	bulk      bulk
}

// Enroll serves the RPC of that name in brevet.v1.EnrollmentService.
func (e *enrollment) Enroll(ctx context.Context, req *brevetv1.EnrollRequest) (*brevetv1.EnrollResponse, error) {
	id, lifetime, err := requestOf(req)
	if err != nil {
		return nil, e.registrar.NoteEvidence(ctx, req.GetToken(), err)
	}
	cert, err := e.registrar.Enroll(ctx, ra.EnrollRequest{RequestID: id, Evidence: req.GetToken(), CSR: req.GetCsr(), Lifetime: lifetime})
	if err != nil {
		return nil, err
	}
	c, err := e.credential(cert)
	return &brevetv1.EnrollResponse{Credential: c}, err
}

// Renew serves the RPC of that name in brevet.v1.EnrollmentService.
func (e *enrollment) Renew(ctx context.Context, req *brevetv1.RenewRequest) (*brevetv1.RenewResponse, error) {
	id, lifetime, err := requestOf(req)
	if err != nil {
		return nil, err
	}
	by := callerOf(ctx)
	cert, err := e.registrar.Renew(ctx, ra.RenewRequest{
		RequestID: id, Identity: by.id, Predecessor: by.ref, CSR: req.GetCsr(), Lifetime: lifetime, Superseded: by.past,
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

func (e *enrollment) credential(cert ca.Certificate) (*brevetv1.Credential, error) {
	chain, root, err := chainOf(e.authority, cert.Ref.Issuer)
	if err != nil {
		return nil, err
	}
	c := &brevetv1.Credential{Certificate: cert.DER, Roots: [][]byte{root.Raw}}
	for _, ca := range chain {
		c.Chain = append(c.Chain, ca.Raw)
	}
	return c, nil
}

func chainOf(a *ca.Authority, issuer pki.IssuerID) ([]*x509.Certificate, *x509.Certificate, error) {
	iss, ok := a.IssuingCA(issuer)
	if !ok {
		return nil, nil, pki.Refuse(pki.RuleNotFound, "renew or enroll anew", "the certificate's CA %s is not served here any more", issuer.Short())
	}
	return iss.Chain, iss.Root, nil
}
