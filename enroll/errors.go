package enroll

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// ErrNoToken means that there is no token to enroll with.
var ErrNoToken = errors.New("there is no enrollment token")

// ErrNoCredential means that a directory contains no credential yet.
var ErrNoCredential = errors.New("there is no credential yet")

// maxRetryAfter is the maximum delay that the agent accepts from a server, except after a renewal that was too early.
const maxRetryAfter = time.Hour

// callError is an error status that a server returned.
type callError struct {
	server  string
	code    codes.Code
	message string
	after   time.Duration
	refusal *pki.Refusal // nil if the server sent no refusal
}

// CallError converts the error of an RPC to a Brevet server. The result's text is meant for operators. It wraps a
// [*pki.Refusal] if the server sent one, and implements Temporary and RetryAfter. CallError returns nil for nil.
func CallError(server string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); !ok {
		return err
	}
	return fromStatus(server, err)
}

// fromStatus converts the error of an RPC into one that wraps a [*pki.Refusal] and implements Temporary and RetryAfter.
func fromStatus(server string, err error) error {
	s := status.Convert(err)
	e := &callError{server: server, code: s.Code(), message: s.Message()}
	for _, detail := range s.Details() {
		switch d := detail.(type) {
		case *brevetv1.Refusal:
			e.refusal = &pki.Refusal{Rule: pki.Rule(d.GetRule()), Detail: d.GetDetail(), Hint: d.GetHint()}
		case *errdetails.RetryInfo:
			e.after = max(0, d.GetRetryDelay().AsDuration())
		}
	}
	// After a renewal that was too early, the delay may be as long as half of the certificate's lifetime.
	if e.refusal == nil || e.refusal.Rule != pki.RuleRenewalTooEarly {
		e.after = min(e.after, maxRetryAfter)
	}
	return e
}

func (e *callError) Error() string {
	if e.refusal != nil {
		return fmt.Sprintf("%s refuses: %s", e.server, e.refusal)
	}
	for _, sign := range foreign {
		if strings.Contains(e.message, sign) {
			return fmt.Sprintf("something other than a Brevet server answers at %s (%s): "+
				"check the address and its port, and whether the network has a login page or a proxy in between", via(e.server), sign)
		}
	}
	return fmt.Sprintf("%s answers %s: %s", via(e.server), e.code, e.message)
}

// foreign lists texts in the errors of crypto/tls and gRPC. Each of them means that the peer does not support TLS 1.3
// or HTTP/2. gRPC returns only the text of such an error.
var foreign = []string{
	"first record does not look like a TLS handshake", "tls: protocol version not supported", "tls: no application protocol", "missing selected ALPN property",
}

// via returns the server's address. If the environment sets a proxy for it, via adds the proxy.
func via(server string) string {
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: "https", Host: server}})
	if err != nil {
		return fmt.Sprintf("%s (HTTPS_PROXY is not a URL)", server) // without the cause, which may contain a password
	}
	if proxy == nil {
		return server
	}
	return fmt.Sprintf("%s (through the proxy %s, from HTTPS_PROXY)", server, proxy.Host)
}

func (e *callError) Unwrap() error {
	if e.refusal == nil {
		return nil
	}
	return e.refusal
}

// Temporary reports whether the same RPC may succeed later. For ResourceExhausted it may only if the server sent a
// delay.
func (e *callError) Temporary() bool {
	switch e.code {
	case codes.Unavailable, codes.DeadlineExceeded:
		return true
	case codes.ResourceExhausted:
		return e.after > 0
	default:
		return false
	}
}

// RetryAfter returns the delay before a retry that the server requested, or zero.
func (e *callError) RetryAfter() time.Duration { return e.after }

// final reports whether the agent should retry only at long intervals: the Authority refused the request without a
// delay. Other errors may be gone at the next try, for instance that a disk is full or that the server's certificate is
// unknown.
func final(err error) bool {
	_, refused := pki.AsRefusal(err)
	return refused && !pki.IsTemporary(err) && pki.RetryAfter(err) == 0
}
