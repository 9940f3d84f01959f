package grpcapi

import (
	"context"

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
	f, err := s.filterIn(ctx, req)
	if err != nil {
		return nil, err
	}
	after, err := pageAfter(req, certificatePositionIn)
	if err != nil {
		return nil, err
	}
	list, next, err := s.Registrar.Certificates(ctx, f, after, size)
	if err != nil {
		return nil, err
	}
	resp := &brevetv1.ListCertificatesResponse{}
	for _, c := range list {
		resp.Certificates = append(resp.Certificates, certificateOut(c))
	}
	if !next.IsZero() {
		resp.NextPageToken = pageToken(req, append(timeKey(next.IssuedAt), next.Serial.Bytes()...))
	}
	return resp, nil
}

// certificatePositionIn decodes the sort key in a page token of ListCertificates.
func certificatePositionIn(key []byte) (p ra.CertificatePosition, err error) {
	if p.IssuedAt, key, err = cutTime(key); err == nil {
		p.Serial, err = pki.SerialFromBytes(key)
	}
	return p, err
}

// filterIn converts the filter of a request.
func (s *Certificates) filterIn(ctx context.Context, req *brevetv1.ListCertificatesRequest) (ra.CertificateFilter, error) {
	f := ra.CertificateFilter{WithoutSuccessor: req.GetWithoutSuccessor()}
	var err error
	if f.Selection, err = selectionIn(ctx, s.Registrar, req.GetSelection()); err != nil {
		return f, err
	}
	if err := f.Check(); err != nil {
		return f, err
	}
	if f.States, err = statesIn(certificateStates, req.GetStates()); err != nil {
		return f, err
	}
	if f.ExpiresFrom, err = timeIn(req.GetExpireStartTime(), "expire_start_time"); err != nil {
		return f, err
	}
	if f.ExpiresUntil, err = timeIn(req.GetExpireEndTime(), "expire_end_time"); err != nil {
		return f, err
	}
	f.NotRenewedSince, err = timeIn(req.GetNotRenewedSinceTime(), "not_renewed_since_time")
	return f, err
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
