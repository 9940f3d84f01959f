package servertest

import (
	"crypto"
	"errors"
	"io"
	"testing"

	"google.golang.org/grpc/status"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// Order returns a new issue request for a device, which it also registers. A client can send it repeatedly.
func Order(t testing.TB, id string, key crypto.Signer) *brevetv1.IssueCertificatesRequest {
	t.Helper()
	return &brevetv1.IssueCertificatesRequest{
		RequestId: RequestID(), Identity: id, Csr: CSR(t, key), Registration: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE},
	}
}

// Answers holds the responses to issue requests by request ID.
type Answers map[string]*brevetv1.IssueCertificatesResponse

// Of returns the certificate in the response to a request, or its failure as an error.
func (a Answers) Of(req *brevetv1.IssueCertificatesRequest) ([]byte, error) {
	return a[string(req.GetRequestId())].GetCertificate(), FailureOf(a[string(req.GetRequestId())])
}

// FailureOf returns the failure in a response as the error of an RPC.
func FailureOf(a *brevetv1.IssueCertificatesResponse) error {
	if a.GetError() == nil {
		return nil
	}
	return status.ErrorProto(a.GetError())
}

// Orders sends requests on one stream and returns the responses, one for each, once the stream has ended without an
// error.
func (c *Caller) Orders(t testing.TB, reqs ...*brevetv1.IssueCertificatesRequest) Answers {
	t.Helper()
	answers, err := Deliver(t, Must(c.IssueCertificates(t.Context()))(t), reqs...)
	check(t, err)
	if len(answers) != len(reqs) {
		t.Errorf("%d responses to %d requests", len(answers), len(reqs))
	}
	return answers
}

// Deliver sends requests and reads all responses in parallel. It returns the error that the stream ended with.
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

// Take stores a response, which must be the only one to its request.
func (a Answers) Take(t testing.TB, answer *brevetv1.IssueCertificatesResponse) {
	t.Helper()
	id := string(answer.GetRequestId())
	if a[id] != nil {
		t.Errorf("request %x has two responses", id)
	}
	a[id] = answer
}
