package server_test

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// TestListCertificatesByFilter lists certificates by each field of the filter, with one certificate per page.
func TestListCertificatesByFilter(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	north := w.Enrolled(t, "device", "device/north", labelled("site", "north"))
	renewed := w.Renewed(t, north, servertest.Key(t))
	south := w.Enrolled(t, "workload", "workload/south", labelled("site", "south"))
	w.Suspend(t, south.ID)
	began := timestamppb.New(time.Now().Add(-time.Hour))
	ends := timestamppb.New(renewed.Certificate.NotAfter.Add(time.Second))
	for name, c := range map[string]struct {
		req  *brevetv1.ListCertificatesRequest
		want []*servertest.Holder // newest first
	}{
		"identity":  {&brevetv1.ListCertificatesRequest{Selection: &brevetv1.CertificateSelection{Identity: "device/north"}}, []*servertest.Holder{renewed, north}},
		"label":     {&brevetv1.ListCertificatesRequest{Selection: &brevetv1.CertificateSelection{Label: &brevetv1.Label{Name: "site", Value: "south"}}}, []*servertest.Holder{south}},
		"profile":   {&brevetv1.ListCertificatesRequest{Selection: &brevetv1.CertificateSelection{Profile: "device"}}, []*servertest.Holder{renewed, north}},
		"lineage":   {&brevetv1.ListCertificatesRequest{Selection: &brevetv1.CertificateSelection{LineageSerial: servertest.SerialBytes(north.Certificate)}}, []*servertest.Holder{renewed, north}},
		"key":       {&brevetv1.ListCertificatesRequest{Selection: &brevetv1.CertificateSelection{KeyHash: servertest.Must(pki.HashKey(south.Key.Public()))(t).Bytes()}}, []*servertest.Holder{south}},
		"issuer":    {&brevetv1.ListCertificatesRequest{Selection: &brevetv1.CertificateSelection{IssuerId: pki.IssuerOf(w.Issuing).Bytes(), Profile: "device"}}, []*servertest.Holder{renewed, north}},
		"time":      {&brevetv1.ListCertificatesRequest{Selection: &brevetv1.CertificateSelection{IssueStartTime: began, Profile: "workload"}}, []*servertest.Holder{south}},
		"no time":   {&brevetv1.ListCertificatesRequest{Selection: &brevetv1.CertificateSelection{IssueEndTime: began}}, nil},
		"state":     {&brevetv1.ListCertificatesRequest{States: []brevetv1.CertificateState{brevetv1.CertificateState_CERTIFICATE_STATE_HOLD}}, []*servertest.Holder{south}},
		"expiry":    {&brevetv1.ListCertificatesRequest{Selection: &brevetv1.CertificateSelection{Profile: "device"}, ExpireEndTime: ends}, []*servertest.Holder{renewed, north}},
		"no expiry": {&brevetv1.ListCertificatesRequest{Selection: &brevetv1.CertificateSelection{Profile: "device"}, ExpireStartTime: ends}, nil},
		"successor": {&brevetv1.ListCertificatesRequest{Selection: &brevetv1.CertificateSelection{Profile: "device"}, WithoutSuccessor: true}, []*servertest.Holder{renewed}},
		"renewals":  {&brevetv1.ListCertificatesRequest{Selection: &brevetv1.CertificateSelection{Identity: south.ID}, NotRenewedSinceTime: timestamppb.Now()}, []*servertest.Holder{south}},
		"renewed":   {&brevetv1.ListCertificatesRequest{NotRenewedSinceTime: began}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var want, got []string
			for _, h := range c.want {
				want = append(want, h.Certificate.SerialNumber.String())
			}
			c.req.PageSize = 1
			for {
				resp := servertest.Must(w.Operator.ListCertificates(t.Context(), c.req))(t)
				for _, found := range resp.GetCertificates() {
					got = append(got, servertest.Must(pki.SerialFromBytes(found.GetSerial()))(t).Int().String())
				}
				if c.req.PageToken = resp.GetNextPageToken(); c.req.GetPageToken() == "" {
					break
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("listed are %v, want %v", got, want)
			}
		})
	}
	_, err := w.Operator.ListCertificates(t.Context(), &brevetv1.ListCertificatesRequest{Selection: &brevetv1.CertificateSelection{Identity: "device/none"}})
	servertest.Refused(t, err, codes.NotFound, pki.RuleIdentity)
	future := timestamppb.New(w.Clock.Now().Add(time.Hour))
	_, err = w.Operator.ListCertificates(t.Context(), &brevetv1.ListCertificatesRequest{NotRenewedSinceTime: future})
	servertest.Refused(t, err, codes.InvalidArgument, pki.RuleRequest)
	_, err = w.Operator.ListIdentities(t.Context(), &brevetv1.ListIdentitiesRequest{NotRenewedSinceTime: future})
	servertest.Refused(t, err, codes.InvalidArgument, pki.RuleRequest)
}

// TestPageTokensServeTheirFilter checks that a page token is valid after a restart of the server, and is refused for
// another filter.
func TestPageTokensServeTheirFilter(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	for _, path := range []string{"device/1", "device/2", "device/3"} {
		w.Token(t, w.Register(t, "device", path), false)
	}
	ctx := t.Context()
	certificates := servertest.Must(w.Operator.ListCertificates(ctx, &brevetv1.ListCertificatesRequest{PageSize: 1}))(t)
	identities := servertest.Must(w.Operator.ListIdentities(ctx, &brevetv1.ListIdentitiesRequest{PageSize: 1}))(t)
	tokens := servertest.Must(w.Operator.ListTokens(ctx, &brevetv1.ListTokensRequest{PageSize: 1}))(t)
	crls := servertest.Must(w.Operator.ListCRLs(ctx, &brevetv1.ListCRLsRequest{PageSize: 1}))(t)
	w.Restart(t, servertest.Options{})
	for name, list := range map[string]func(token string, filtered bool) (int, error){
		certificates.GetNextPageToken(): func(token string, filtered bool) (int, error) {
			resp, err := w.Operator.ListCertificates(ctx, &brevetv1.ListCertificatesRequest{PageToken: token, WithoutSuccessor: filtered})
			return len(resp.GetCertificates()), err
		},
		identities.GetNextPageToken(): func(token string, filtered bool) (int, error) {
			resp, err := w.Operator.ListIdentities(ctx, &brevetv1.ListIdentitiesRequest{PageToken: token, WithoutUnexpiredCertificate: filtered})
			return len(resp.GetIdentities()), err
		},
		tokens.GetNextPageToken(): func(token string, filtered bool) (int, error) {
			req := &brevetv1.ListTokensRequest{PageToken: token}
			if filtered {
				req.States = []brevetv1.TokenState{brevetv1.TokenState_TOKEN_STATE_OPEN}
			}
			resp, err := w.Operator.ListTokens(ctx, req)
			return len(resp.GetTokens()), err
		},
		crls.GetNextPageToken(): func(token string, filtered bool) (int, error) {
			req := &brevetv1.ListCRLsRequest{PageToken: token}
			if filtered {
				req.IssuerId = pki.IssuerOf(w.Issuing).Bytes()
			}
			resp, err := w.Operator.ListCRLs(ctx, req)
			return len(resp.GetCrls()), err
		},
	} {
		if n, err := list(name, false); err != nil || n == 0 {
			t.Errorf("the page after %q has %d records, %v", name, n, err)
		}
		for _, other := range []string{name, "77", name[:10], name + "A", "\x00"} {
			if _, err := list(other, other == name); err == nil {
				t.Errorf("the page token %q is accepted", other)
			} else {
				servertest.Refused(t, err, codes.InvalidArgument, pki.RuleRequest)
			}
		}
	}
}
