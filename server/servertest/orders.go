package servertest

import (
	"crypto"
	"errors"
	"io"
	"testing"

	"google.golang.org/grpc/status"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// Order returns a new issue request for a device. The request also registers the device. It may be sent again as a
// retry.
func Order(t testing.TB, id string, key crypto.Signer) *brevetv1.IssueCertificatesRequest {
	t.Helper()
	return &brevetv1.IssueCertificatesRequest{
		RequestId: RequestID(), Identity: id, Csr: CSR(t, key), Registration: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE},
	}
}

// Answers holds the responses to issue requests, keyed by request ID.
type Answers map[string]*brevetv1.IssueCertificatesResponse

// Of returns the certificate in DER from the response to a request, or the failure in that response as an error.
func (a Answers) Of(req *brevetv1.IssueCertificatesRequest) ([]byte, error) {
	return a[string(req.GetRequestId())].GetCertificate(), FailureOf(a[string(req.GetRequestId())])
}

// FailureOf returns the failure in a response in the form of an RPC's error, or nil if there is none.
func FailureOf(a *brevetv1.IssueCertificatesResponse) error {
	if a.GetError() == nil {
		return nil
	}
	return status.ErrorProto(a.GetError())
}

// Orders sends requests on one stream and returns the responses. The stream must end without an error, with one
// response to each request.
func (c *Caller) Orders(t testing.TB, reqs ...*brevetv1.IssueCertificatesRequest) Answers {
	t.Helper()
	answers, err := Deliver(t, Must(c.IssueCertificates(t.Context()))(t), reqs...)
	check(t, err)
	if len(answers) != len(reqs) {
		t.Errorf("%d responses to %d requests", len(answers), len(reqs))
	}
	return answers
}

// Deliver sends requests, and concurrently reads responses until the stream ends. It returns the error with which the
// stream ended, or nil.
func Deliver(t testing.TB, stream brevetv1.CertificateService_IssueCertificatesClient, reqs ...*brevetv1.IssueCertificatesRequest) (Answers, error) {
	t.Helper()
	go func() {
		for _, req := range reqs {
			if stream.Send(req) != nil {
				return // Recv returns the reason
			}
		}
		_ = stream.CloseSend()
	}()
	answers := Answers{}
	for {
		switch a, err := stream.Recv(); {
		case errors.Is(err, io.EOF):
			return answers, nil
		case err != nil:
			return answers, err
		default:
			answers.Take(t, a)
		}
	}
}

// Take stores a response. It must be the only response to its request.
func (a Answers) Take(t testing.TB, answer *brevetv1.IssueCertificatesResponse) {
	t.Helper()
	id := string(answer.GetRequestId())
	if a[id] != nil {
		t.Errorf("request %x has two responses", id)
	}
	a[id] = answer
}
