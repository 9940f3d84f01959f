package acme

import (
	"crypto/rand"
	"encoding/base64"

	"github.com/brevet-pki/brevet/pki"
)

// ID identifies an account, an order, an authorization or an external key. It is random, and the zero value identifies
// nothing. IDs can be compared with ==.
type ID [16]byte

// idLength is the length of the text form of an ID.
const idLength = 22

// NewID returns a random ID.
func NewID() ID {
	var id ID
	_, _ = rand.Read(id[:]) // never fails
	return id
}

// ParseID parses the format of String. It reports whether the text has this format.
func ParseID(text string) (ID, bool) {
	var id ID
	if len(text) != idLength {
		return id, false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != len(id) {
		return id, false
	}
	id = ID(b)
	return id, !id.IsZero()
}

// String formats the ID in base64url without padding, as 22 characters.
func (id ID) String() string { return base64.RawURLEncoding.EncodeToString(id[:]) }

// IsZero reports whether id is the zero value, which identifies nothing.
func (id ID) IsZero() bool { return id == ID{} }

// Request returns the ID of an order as the ID of the request for its certificate.
func (id ID) Request() pki.RequestID {
	r, _ := pki.RequestIDFromBytes(id[:]) // zero for the zero ID
	return r
}
