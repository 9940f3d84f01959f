package ra

import (
	"context"
	"crypto/sha256"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// maxDerived is the maximum number of requests with the same derived ID that the store remembers. The store forgets a
// request some time after its certificate has expired.
const maxDerived = 4096

// stateOf reads the state for a request with read. If the ID of the request is derived and its prior certificate is no
// longer of use, the request is a new one: stateOf changes q to the ID that follows, and reads the state again.
func (r *Registrar) stateOf(
	ctx context.Context, derived bool, q *IssuanceQuery, read func(q IssuanceQuery) (IssuanceState, error),
) (IssuanceState, error) {
	for range maxDerived {
		st, err := read(*q)
		if err != nil || !derived || st.Prior == nil || st.Prior.Key != q.Key {
			return st, err
		}
		used, err := r.isOfUse(ctx, st.Prior.Certificate, q.At)
		if err != nil || used {
			return st, err
		}
		q.Request = following(q.Request, st.Prior.Certificate.Ref)
	}
	return IssuanceState{}, pki.Refuse(pki.RuleRequestIDReused, "generate a new key",
		"%d certificates for this key have expired or were revoked", maxDerived)
}

// isOfUse reports whether a certificate is unexpired and good.
func (r *Registrar) isOfUse(ctx context.Context, cert ca.Certificate, at time.Time) (bool, error) {
	if at.After(cert.NotAfter) {
		return false, nil
	}
	have, err := r.store.Certificate(ctx, cert.Ref)
	return have.Status.State == pki.Good, err
}

// following returns the ID of the request that follows the one for which a certificate was issued.
func following(id pki.RequestID, cert pki.CertRef) pki.RequestID {
	h := sha256.New()
	h.Write([]byte("brevet: request after another\n"))
	for _, part := range [][]byte{id.Bytes(), cert.Issuer.Bytes(), cert.Serial.Bytes()} {
		h.Write(part)
	}
	next, err := pki.RequestIDFromBytes(h.Sum(nil)[:16])
	if err != nil {
		return id // the digest is all zeros, which does not happen
	}
	return next
}
