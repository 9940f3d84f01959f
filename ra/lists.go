package ra

import (
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// MaxLooked bounds how many records a store looks at for one page of a list.
const MaxLooked = 10_000

// IdentityFilter matches the identities that satisfy every field that is set. The zero value matches all.
type IdentityFilter struct {
	Kinds   []pki.Kind
	States  []pki.IdentityState
	Profile string
	Label   pki.Label
	// WithoutUnexpired matches identities without a certificate that ends after the time of the list.
	WithoutUnexpired bool
	// NotRenewedSince matches identities that were issued no certificate at this time or later.
	NotRenewedSince time.Time
}

// TokenFilter matches the tokens that satisfy every field that is set. The zero value matches all.
type TokenFilter struct {
	CreatedBy pki.SPIFFEID
	Identity  pki.SPIFFEID // that the token enrolls
	States    []TokenState
	// CreatedFrom and CreatedUntil bound the time of creation, the first included and the second not.
	CreatedFrom, CreatedUntil time.Time
}

// TokenPlace is a place in the list of tokens: that of a token in the order of creation and ID. The zero value is the
// beginning.
type TokenPlace struct {
	CreatedAt time.Time
	ID        pki.TokenID
}

// PlaceOf returns the place of a token.
func PlaceOf(t *Token) TokenPlace { return TokenPlace{t.CreatedAt, t.ID} }

// IsZero reports whether the place is the beginning.
func (p TokenPlace) IsZero() bool { return p.ID.IsZero() }

// CertificateFilter matches the certificates that satisfy every field that is set. The zero value matches all.
type CertificateFilter struct {
	pki.Selection
	States []pki.State
	// ExpiresFrom and ExpiresUntil bound the end of a certificate, the first included and the second not.
	ExpiresFrom, ExpiresUntil time.Time
	// WithoutSuccessor matches delivered certificates that were not renewed.
	WithoutSuccessor bool
	// NotRenewedSince matches certificates whose holder was issued none at this time or later.
	NotRenewedSince time.Time
}

// CertificatePlace is a place in the list of certificates: that of a certificate in the order of issue and serial number.
// The zero value is the beginning.
type CertificatePlace struct {
	IssuedAt time.Time
	Serial   pki.Serial
}

// Place returns the place of the certificate.
func (c *Certificate) Place() CertificatePlace { return CertificatePlace{c.IssuedAt, c.Ref.Serial} }

// IsZero reports whether the place is the beginning.
func (p CertificatePlace) IsZero() bool { return p.Serial.IsZero() }
