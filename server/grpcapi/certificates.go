package grpcapi

import (
	"context"
	"strconv"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra"
)

// Certificates serves brevet.v1.CertificateService.
type Certificates struct {
	brevetv1.UnimplementedCertificateServiceServer
	Registrar *ra.Registrar
	Authority *ca.Authority
	bulk      *bulk // set by New
}

// GetCertificate serves the RPC of that name in brevet.v1.CertificateService.
func (s *Certificates) GetCertificate(ctx context.Context, req *brevetv1.GetCertificateRequest) (*brevetv1.GetCertificateResponse, error) {
	c, err := findCertificate(ctx, s.Registrar, req)
	if err != nil {
		return nil, err
	}
	return &brevetv1.GetCertificateResponse{Certificate: certificateOut(c)}, nil
}

// findCertificate returns the record of the certificate that a request names.
func findCertificate(ctx context.Context, r *ra.Registrar, req interface {
	GetSerial() []byte
	GetIssuerId() []byte
}) (ra.Certificate, error) {
	serial, err := serialIn(req.GetSerial(), "serial")
	if err != nil {
		return ra.Certificate{}, err
	}
	issuer, err := issuerIn(req.GetIssuerId())
	if err != nil {
		return ra.Certificate{}, err
	}
	if issuer.IsZero() {
		return r.Store().CertificateBySerial(ctx, serial)
	}
	return r.Store().Certificate(ctx, pki.CertRef{Issuer: issuer, Serial: serial})
}

// ListCertificates serves the RPC of that name in brevet.v1.CertificateService.
func (s *Certificates) ListCertificates(ctx context.Context, req *brevetv1.ListCertificatesRequest) (*brevetv1.ListCertificatesResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	id, err := s.listedIdentity(ctx, req.GetSelection())
	if err != nil {
		return nil, err
	}
	from, err := cursorIn(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	list, next, err := s.Registrar.Store().Certificates(ctx, id, from, size)
	if err != nil {
		return nil, err
	}
	resp := &brevetv1.ListCertificatesResponse{}
	for _, c := range list {
		resp.Certificates = append(resp.Certificates, certificateOut(c))
	}
	if next != 0 {
		resp.NextPageToken = strconv.FormatInt(int64(next), 10)
	}
	return resp, nil
}

// listedIdentity returns whose certificates a selection matches; the zero value for all. Lists select by identity alone.
func (s *Certificates) listedIdentity(ctx context.Context, sel *brevetv1.CertificateSelection) (pki.SPIFFEID, error) {
	var none pki.SPIFFEID
	if len(sel.GetIssuerId())+len(sel.GetLineageSerial())+len(sel.GetKeyHash())+len(sel.GetProfile()) > 0 ||
		sel.GetLabel() != nil || sel.GetIssueStartTime() != nil || sel.GetIssueEndTime() != nil {
		return none, pki.Refuse(pki.RuleRequest, "set identity alone, or nothing", "lists of certificates select by identity alone")
	}
	if sel.GetIdentity() == "" {
		return none, nil
	}
	id, err := s.Registrar.ParseID(sel.GetIdentity())
	if err != nil {
		return none, err
	}
	_, err = s.Registrar.Store().Identity(ctx, id)
	return id, err
}

// GetCertificateChain serves the RPC of that name in brevet.v1.CertificateService.
func (s *Certificates) GetCertificateChain(_ context.Context, req *brevetv1.GetCertificateChainRequest) (*brevetv1.GetCertificateChainResponse, error) {
	issuer, err := issuerIn(req.GetIssuerId())
	if err != nil {
		return nil, err
	}
	if issuer.IsZero() {
		return nil, pki.Refuse(pki.RuleRequest, "send the issuer_id of a certificate", "issuer_id is missing")
	}
	chain, err := chainOut(s.Authority, issuer)
	return &brevetv1.GetCertificateChainResponse{Chain: chain}, err
}
