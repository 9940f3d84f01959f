package pki

// Guard is what must still hold when a certificate is recorded: the Policy found it true when it decided, and the
// store checks it again, and consumes what can be used only once, in the transaction that records the certificate.
// A zero field guards nothing, except Key, which is always set.
type Guard struct {
	// Identity must exist, in generation Generation and in a state that may hold certificates. Every enrollment,
	// suspension, resumption and retirement starts a new generation, so a decision made before one of them fails after it.
	Identity SPIFFEID
	Revision uint64
	// Enrolls says that this certificate enrolls the identity: its state becomes enrolled, in a new generation.
	Enrolls bool
	// Token must be alive, unspent, and bound to this request; it is spent.
	Token TokenID
	// Predecessor must be recorded and not revoked, and must not have been renewed with another key.
	Predecessor CertRef
	// Renewed says that the predecessor was renewed with this key before the decision. Where it was not, it must still not
	// have been.
	Renewed bool
	// MaxUnexpired is how many certificates of the identity may not have ended, the new one included, whatever their state.
	MaxUnexpired int
	// Supersedes says that the predecessor is revoked, as superseded, in the same transaction. Without one it says nothing.
	Supersedes bool
	// Key must not be known as compromised, belong to a CA, or have been certified for another identity.
	Key KeyHash
}
