package grpcapi

import (
	"context"
	"crypto/x509"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/revocation/crl"
)

// maxImport is the maximum size of a CRL that an operator imports, in bytes. Imported CRLs are small: a root revokes a
// few CA certificates, and no devices.
const maxImport = 192 << 10

// CRLRecords reads the CRLs on record. It is safe for concurrent use.
type CRLRecords interface {
	CRLs(ctx context.Context) ([]crl.CRL, error)
}

// CRLImporter publishes a CRL, in DER, that the server has not signed itself. It is safe for concurrent use.
type CRLImporter interface {
	Import(ctx context.Context, der []byte, by pki.Actor) (crl.CRL, error)
}

// CRLs serves brevet.v1.CRLService.
type CRLs struct {
	brevetv1.UnimplementedCRLServiceServer
	Records     CRLRecords
	Updater     CRLImporter
	Authorities []*x509.Certificate // all installed CA certificates, including roots
}

// ListCRLs serves the RPC of that name in brevet.v1.CRLService.
func (s *CRLs) ListCRLs(ctx context.Context, req *brevetv1.ListCRLsRequest) (*brevetv1.ListCRLsResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	issuer, err := issuerIn(req.GetIssuerId())
	if err != nil {
		return nil, err
	}
	after, err := pageAfter(req, func(key []byte) (string, error) { return string(key), nil })
	if err != nil {
		return nil, err
	}
	list, err := s.Records.CRLs(ctx)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(c crl.CRL) bool {
		return !issuer.IsZero() && c.Issuer != issuer || c.Scope().Path() <= after
	})
	slices.SortFunc(list, func(a, b crl.CRL) int { return strings.Compare(a.Scope().Path(), b.Scope().Path()) })
	resp := &brevetv1.ListCRLsResponse{}
	for _, c := range list[:min(size, len(list))] {
		resp.Crls = append(resp.Crls, s.out(c))
	}
	if len(list) > size {
		resp.NextPageToken = pageToken(req, []byte(list[size-1].Scope().Path()))
	}
	return resp, nil
}

// ImportCRL serves the RPC of that name in brevet.v1.CRLService.
func (s *CRLs) ImportCRL(ctx context.Context, req *brevetv1.ImportCRLRequest) (*brevetv1.ImportCRLResponse, error) {
	if len(req.GetCrl()) == 0 || len(req.GetCrl()) > maxImport {
		return nil, pki.Refuse(pki.RuleCRL, "send one CRL in DER of 192 KiB at most", "the CRL has %d bytes", len(req.GetCrl()))
	}
	c, err := s.Updater.Import(ctx, req.GetCrl(), callerOf(ctx).Actor())
	if err != nil {
		return nil, err
	}
	return &brevetv1.ImportCRLResponse{Crl: s.out(c)}, nil
}

// out converts a CRL. If its CA is no longer installed, the result has no issuer name.
func (s *CRLs) out(c crl.CRL) *brevetv1.CRL {
	out := &brevetv1.CRL{
		IssuerId: c.Issuer.Bytes(), Number: c.Number.String(), Partition: int32(c.Partition), Delta: c.Delta,
		ThisUpdate: timestamppb.New(c.ThisUpdate), NextUpdate: timestamppb.New(c.NextUpdate),
		Path: "/crl/" + c.Scope().Path(), Entries: c.Entries, Size: c.Size, Sha256: c.SHA256[:],
	}
	if c.Delta {
		out.BaseNumber = c.Base.Number.String()
	}
	for _, cert := range s.Authorities {
		if pki.IssuerOf(cert) == c.Issuer {
			out.IssuerName = cert.Subject.String()
		}
	}
	return out
}
