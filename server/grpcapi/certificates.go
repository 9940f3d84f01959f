package grpcapi

import (
	"context"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
)

// Certificates serves brevet.v1.CertificateService.
type Certificates struct {
	brevetv1.UnimplementedCertificateServiceServer
	Registrar   *ra.Registrar
	Revocations *revocation.Authority
	TrustDomain string
}

// GetCertificate serves the RPC of that name in brevet.v1.CertificateService.
func (s *Certificates) GetCertificate(ctx context.Context, req *brevetv1.GetCertificateRequest) (*brevetv1.GetCertificateResponse, error) {
	c, err := s.find(ctx, req.GetSerial(), req.GetIssuer())
	if err != nil {
		return nil, err
	}
	return &brevetv1.GetCertificateResponse{Certificate: certificateOut(c)}, nil
}

func (s *Certificates) find(ctx context.Context, serialText, issuerText string) (ra.Certificate, error) {
	none := ra.Certificate{}
	serial, err := pki.ParseSerial(serialText)
	if err != nil {
		return none, pki.Refuse(pki.RuleRequest, "give the hexadecimal serial that openssl x509 -serial prints", "%.64q is not a serial number", serialText)
	}
	if issuerText == "" {
		return s.Registrar.Records().CertificateBySerial(ctx, serial)
	}
	issuer, err := pki.ParseIssuerID(issuerText)
	if err != nil {
		return none, pki.Refuse(pki.RuleRequest, "give 64 hexadecimal digits, or leave it out", "%.80q is not an issuer ID", issuerText)
	}
	return s.Registrar.Records().Certificate(ctx, pki.CertRef{Issuer: issuer, Serial: serial})
}

// ListCertificates serves the RPC of that name in brevet.v1.CertificateService.
func (s *Certificates) ListCertificates(ctx context.Context, req *brevetv1.ListCertificatesRequest) (*brevetv1.ListCertificatesResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	var id pki.SPIFFEID
	if req.GetIdentity() != "" {
		if id, err = s.Registrar.ParseID(req.GetIdentity()); err != nil {
			return nil, err
		}
		if _, err := s.Registrar.Records().Identity(ctx, id); err != nil {
			return nil, err
		}
	}
	from, err := cursorIn(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	list, next, err := s.Registrar.Records().Certificates(ctx, id, from, size)
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

// RevokeCertificate serves the RPC of that name in brevet.v1.CertificateService.
func (s *Certificates) RevokeCertificate(ctx context.Context, req *brevetv1.RevokeCertificateRequest) (*brevetv1.RevokeCertificateResponse, error) {
	reason, since, err := groundsIn(req)
	if err != nil {
		return nil, err
	}
	c, err := s.find(ctx, req.GetSerial(), req.GetIssuer())
	if err != nil {
		return nil, err
	}
	order := revocation.Order{
		Action: revocation.Revoke, Reason: reason, Certificate: c.Ref, InvalidSince: since, By: callerOf(ctx).Actor(), Why: req.GetComment(),
	}
	out, err := s.Revocations.Apply(ctx, order)
	if err != nil {
		return nil, err
	}
	if c, err = s.Registrar.Records().Certificate(ctx, c.Ref); err != nil {
		return nil, err
	}
	return &brevetv1.RevokeCertificateResponse{Certificate: certificateOut(c), Changed: reachedOut(out.Affected)}, nil
}

// groundsIn reads the reason and the invalidity date of a request to revoke.
func groundsIn(req interface {
	GetReason() string
	GetInvalidSince() *timestamppb.Timestamp
}) (pki.Reason, time.Time, error) {
	reason := pki.Unspecified
	if req.GetReason() != "" {
		var err error
		if reason, err = pki.ParseReason(req.GetReason()); err != nil {
			return 0, time.Time{}, pki.Refuse(pki.RuleReason, "use a name of RFC 5280 section 5.3.1, such as keyCompromise", "%.64q is not a reason", req.GetReason())
		}
	}
	since, err := timeIn(req.GetInvalidSince(), "invalid_since")
	return reason, since, err
}
