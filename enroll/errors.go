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

// ErrNoToken says that there is no token to enroll with.
var ErrNoToken = errors.New("there is no enrollment token")

// ErrNoCredential says that a directory holds no credential yet.
var ErrNoCredential = errors.New("there is no credential yet")

// longestAfter bounds how long a server can send its callers away, unless they renew too early.
const longestAfter = time.Hour

// callError is an error status of a server.
type callError struct {
	server  string
	code    codes.Code
	message string
	after   time.Duration
	refusal *pki.Refusal // nil where the server sent none
}

// CallError turns the error of any call to a Brevet server into what a person can read: a *pki.Refusal in the chain, and
// Temporary and RetryAfter. Nil stays nil.
func CallError(server string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); !ok {
		return err
	}
	return fromStatus(server, err)
}

// fromStatus turns the error of a call into what callers of an Authority look for: a *pki.Refusal in the chain,
// Temporary and RetryAfter.
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
	if e.refusal == nil || e.refusal.Rule != pki.RuleRenewalTooEarly { // that one ends with half of the certificate's life
		e.after = min(e.after, longestAfter)
	}
	return e
}

func (e *callError) Error() string {
	if e.refusal != nil {
		return fmt.Sprintf("enroll: %s refuses: %s", e.server, e.refusal)
	}
	for _, sign := range foreign {
		if strings.Contains(e.message, sign) {
			return fmt.Sprintf("enroll: something other than a Brevet server answers at %s (%s): "+
				"check the address and its port, and whether the network has a login page or a proxy in between", via(e.server), sign)
		}
	}
	return fmt.Sprintf("enroll: %s answers %s: %s", via(e.server), e.code, e.message)
}

// foreign lists what crypto/tls and gRPC say of an answer that is not TLS, not TLS 1.3, or not for HTTP/2. gRPC hands on
// the texts of these errors, and not the errors.
var foreign = []string{
	"first record does not look like a TLS handshake", "tls: protocol version not supported", "tls: no application protocol", "missing selected ALPN property",
}

// via names a server, and the proxy that leads to it if the environment has one, which gRPC goes through.
func via(server string) string {
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: "https", Host: server}})
	if err != nil {
		return fmt.Sprintf("%s (HTTPS_PROXY is not a proxy's URL)", server) // without the cause, which may quote a password
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

// Temporary reports whether the same call is worth repeating. A lack of resources passes only if the server says when.
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

// RetryAfter returns how long the server asked to wait before that, or zero.
func (e *callError) RetryAfter() time.Duration { return e.after }

// final reports whether asking again soon is pointless: the Authority refused, and did not say when the same request
// would pass. Everything else, a full disk and an unknown certificate on the other side included, may be over at the next try.
func final(err error) bool {
	_, refused := pki.AsRefusal(err)
	return refused && !pki.IsTemporary(err) && pki.RetryAfter(err) == 0
}
