package ra

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Claim is what evidence proved: which identity the caller may enroll.
type Claim struct {
	Identity pki.SPIFFEID
	// Token is set where the evidence is a one-time token; the certificate's guard spends it.
	Token pki.TokenID
	// Revision is that of the identity when the evidence was made: whatever changed the identity since, an enrollment,
	// a suspension or an update, voids the evidence.
	Revision uint64
	// Profile is the one that the evidence was made for.
	Profile string
	// Replace allows enrolling an identity that is enrolled already.
	Replace bool
	// Actor is who the log says it was.
	Actor pki.Actor
}

// Binding is the one request that single-use evidence serves.
type Binding struct {
	Request pki.RequestID
	Key     pki.KeyHash
	At      time.Time
}

// Authenticator turns one kind of evidence into a Claim. Methods are safe for concurrent use; they return a
// *pki.Refusal for evidence that proves nothing.
type Authenticator interface {
	// Identify says whom the evidence speaks for. It changes nothing. A Claim beside a refusal names the identity that
	// the evidence would have spoken for, for the log.
	Identify(ctx context.Context, evidence []byte, at time.Time) (Claim, error)
	// Bind ties single-use evidence to one request, durably, before anything is signed for it. Evidence that is tied to
	// another request already is refused.
	Bind(ctx context.Context, evidence []byte, b Binding) error
}
