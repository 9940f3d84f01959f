package ra_test

import (
	"crypto"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/servertest"
)

// Each request has a valid proof of possession. It is refused only because its key must not be certified for this identity.
func TestKeysInUseAreRefused(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	other, stolen := w.Enrolled(t, "device", "device/other"), w.Enrolled(t, "device", "device/stolen")
	w.Revoke(t, stolen.Certificate, "keyCompromise")
	moved := w.Enrolled(t, "device", "device/moved")
	w.Retire(t, moved.ID)
	renewing := w.Enrolled(t, "device", "device/renewing")
	for i, c := range []struct {
		name string
		key  crypto.Signer
		rule pki.Rule
	}{
		{"the issuing CA's", ground.Issuing, pki.RuleKeyReserved},
		{"the root's", ground.Root, pki.RuleKeyReserved},
		{"the OCSP delegate's", w.OwnPair(t, w.DelegateDir()).Key, pki.RuleKeyInUse},
		{"the server's", w.OwnPair(t, "server").Key, pki.RuleKeyInUse},
		{"the operator's", w.Operator.Key, pki.RuleKeyInUse},
		{"another identity's", other.Key, pki.RuleKeyInUse},
		{"a retired identity's", moved.Key, pki.RuleKeyInUse},
		{"one that is compromised", stolen.Key, pki.RuleKeyCompromised},
	} {
		t.Run(c.name, func(t *testing.T) {
			token := w.Token(t, w.Register(t, "device", fmt.Sprintf("device/%d", i)), false)
			certificates := rows(t, w, "certificates")
			_, err := w.Caller(t, nil).Enroll(t.Context(), servertest.Enrollment(t, token, c.key))
			servertest.Refused(t, err, codes.PermissionDenied, c.rule)
			_, err = renewing.Renew(t.Context(), servertest.Renewal(t, c.key))
			servertest.Refused(t, err, codes.PermissionDenied, c.rule)
			refusedIssue(t, w, servertest.Order(t, fmt.Sprintf("device/%d", i), c.key), codes.PermissionDenied, c.rule)
			if n := rows(t, w, "certificates"); n != certificates || rows(t, w, "intents") != 0 {
				t.Errorf("%d certificates were added, and %d intents are left", n-certificates, rows(t, w, "intents"))
			}
			w.Enroll(t, token, servertest.Key(t)) // the token has not been spent
		})
	}
	w.Renewed(t, renewing, servertest.Key(t))
}

func TestCompromisedKeyStaysRefused(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	h := w.Enrolled(t, "device", "device/1")
	// An identity can enroll its own key again until the key is compromised. That also holds if the certificate was first revoked
	// for another reason.
	h = w.Enroll(t, w.Token(t, h.ID, true), h.Key)
	w.Revoke(t, h.Certificate, "superseded")
	w.Revoke(t, h.Certificate, "keyCompromise")
	w.Status(t, h.Certificate, "keyCompromise")
	_, err := w.Caller(t, nil).Enroll(t.Context(), servertest.Enrollment(t, w.Token(t, h.ID, true), h.Key))
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleKeyCompromised)
}
