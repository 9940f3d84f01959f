package servertest

import (
	"crypto"
	"errors"
	"io"
	"testing"

	"google.golang.org/grpc/status"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// Order is a new request for a certificate of a device, which is registered with it. Sent again, it is the same request.
func Order(t testing.TB, id string, key crypto.Signer) *brevetv1.IssueCertificatesRequest {
	t.Helper()
	return &brevetv1.IssueCertificatesRequest{
		RequestId: RequestID(), Identity: id, Csr: CSR(t, key), Registration: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE},
	}
}

// Answers is what came of orders, by their request IDs.
type Answers map[string]*brevetv1.IssueCertificatesResponse

// Of returns the certificate that answered a request, or the failure as the error of a call.
func (a Answers) Of(req *brevetv1.IssueCertificatesRequest) ([]byte, error) {
	return a[string(req.GetRequestId())].GetCertificate(), FailureOf(a[string(req.GetRequestId())])
}

// FailureOf is the error that a call would have ended with where it had this answer.
func FailureOf(a *brevetv1.IssueCertificatesResponse) error {
	if a.GetError() == nil {
		return nil
	}
	return status.ErrorProto(a.GetError())
}

// Orders sends requests on one stream, and returns the answers, one to each, once the stream has ended well.
func (c *Caller) Orders(t testing.TB, reqs ...*brevetv1.IssueCertificatesRequest) Answers {
	t.Helper()
	answers, err := Deliver(t, Must(c.IssueCertificates(t.Context()))(t), reqs...)
	check(t, err)
	if len(answers) != len(reqs) {
		t.Errorf("%d answers to %d requests", len(answers), len(reqs))
	}
	return answers
}

// Deliver sends requests, reads all answers meanwhile, and returns the error that the stream ended with.
func Deliver(t testing.TB, stream brevetv1.CertificateService_IssueCertificatesClient, reqs ...*brevetv1.IssueCertificatesRequest) (Answers, error) {
	t.Helper()
	go func() {
		for _, req := range reqs {
			if stream.Send(req) != nil {
				return // Recv says why
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

// Take notes an answer, which has to be the only one to its request.
func (a Answers) Take(t testing.TB, answer *brevetv1.IssueCertificatesResponse) {
	t.Helper()
	id := string(answer.GetRequestId())
	if a[id] != nil {
		t.Errorf("request %x is answered twice", id)
	}
	a[id] = answer
}
