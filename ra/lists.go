package ra

import (
	"context"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// MaxLooked is the maximum number of records that a store reads for one page of a list.
const MaxLooked = 10_000

// IdentityFilter matches the identities that satisfy every field that is set. The zero value matches all.
type IdentityFilter struct {
	Kinds   []pki.Kind
	States  []pki.IdentityState
	Profile string
	Label   pki.Label
	// WithoutUnexpired matches identities that have no certificate with a NotAfter later than the time of the list.
	WithoutUnexpired bool
	// NotRenewedSince matches identities whose certificates were all issued before this time.
	NotRenewedSince time.Time
}

// TokenFilter matches the tokens that satisfy every field that is set. The zero value matches all.
type TokenFilter struct {
	CreatedBy pki.SPIFFEID
	Identity  pki.SPIFFEID // the identity that the token enrolls
	States    []TokenState
	// CreatedFrom (inclusive) and CreatedUntil (exclusive) bound the time of creation.
	CreatedFrom, CreatedUntil time.Time
}

// TokenPosition is a position in the list of tokens, which is ordered by creation time and ID. The zero value is the start of
// the list.
type TokenPosition struct {
	CreatedAt time.Time
	ID        pki.TokenID
}

// PositionOf returns the position of t in the list of tokens.
func PositionOf(t *Token) TokenPosition { return TokenPosition{t.CreatedAt, t.ID} }

// IsZero reports whether p is the start of the list.
func (p TokenPosition) IsZero() bool { return p.ID.IsZero() }

// CertificateFilter matches the certificates that satisfy every field that is set. The zero value matches all.
type CertificateFilter struct {
	pki.Selection
	States []pki.State
	// ExpiresFrom (inclusive) and ExpiresUntil (exclusive) bound the NotAfter of the certificate.
	ExpiresFrom, ExpiresUntil time.Time
	// WithoutSuccessor matches delivered certificates that were not renewed.
	WithoutSuccessor bool
	// NotRenewedSince matches certificates whose identity has been issued no certificate at or after this time.
	NotRenewedSince time.Time
}

// CertificatePosition is a position in the list of certificates, which is ordered by issue time and serial number. The zero
// value is the start of the list.
type CertificatePosition struct {
	IssuedAt time.Time
	Serial   pki.Serial
}

// Position returns the position of c in the list of certificates.
func (c *Certificate) Position() CertificatePosition {
	return CertificatePosition{c.IssuedAt, c.Ref.Serial}
}

// IsZero reports whether p is the start of the list.
func (p CertificatePosition) IsZero() bool { return p.Serial.IsZero() }

// Certificates returns a page of certificates, as [CertificateStore] has it. It refuses a NotRenewedSince in the future.
func (r *Registrar) Certificates(
	ctx context.Context, f CertificateFilter, after CertificatePosition, limit int,
) ([]Certificate, CertificatePosition, error) {
	if err := checkNotRenewedSince(f.NotRenewedSince, r.clock()); err != nil {
		return nil, CertificatePosition{}, err
	}
	return r.store.Certificates(ctx, f, after, limit)
}

// checkNotRenewedSince refuses a time in the future. Every certificate was issued before it, so the store would read all
// unexpired certificates of an identity for each record that it looks at.
func checkNotRenewedSince(since, now time.Time) error {
	if !since.After(now) {
		return nil
	}
	return pki.Refuse(pki.RuleRequest, "send a time that has passed", "not_renewed_since_time %s is in the future (server time is %s)",
		since.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
}
