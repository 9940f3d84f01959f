package jws

import (
	"crypto/hmac"

	"github.com/go-jose/go-jose/v4"

	"github.com/brevet-pki/brevet/pki"
)

// macs are the algorithms of external account bindings (RFC 8555 §7.3.4).
var macs = []jose.SignatureAlgorithm{jose.HS256, jose.HS384, jose.HS512}

// Binding is an external account binding whose MAC is not verified yet.
type Binding struct {
	KeyID  string
	signed signed
}

// ParseBinding parses the external account binding in a request to url with a new account's key. The payload of the
// binding must be that key.
func ParseBinding(raw []byte, url string, account *Key) (*Binding, error) {
	refuse := func(detail string) (*Binding, error) {
		return nil, pki.Refuse(pki.RuleACMEJWS, "make the binding as RFC 8555 section 7.3.4 describes", "%s", detail)
	}
	s, err := parseSigned(raw, macs)
	if err != nil {
		return nil, err
	}
	if s.header.Nonce != nil || s.header.Key != nil {
		return refuse("the external account binding has a nonce or a jwk in its header")
	}
	if s.header.KeyID == nil || *s.header.KeyID == "" || len(*s.header.KeyID) > maxURL {
		return refuse("the external account binding has no kid, or a kid that is too long")
	}
	if *s.header.URL != url {
		return refuse("the external account binding is for another url than the request")
	}
	// The MAC is verified later. What is compared here is part of what it protects.
	bound, err := ParseKey(s.payload)
	if err != nil {
		return refuse("the payload of the external account binding is not a public key that can be used")
	}
	if !bound.Equal(account) {
		return refuse("the external account binding is for the key of another account")
	}
	return &Binding{*s.header.KeyID, s}, nil
}

// Verify reports whether the binding was made with a secret, which must not be shorter than the hash (RFC 7518 §3.2). It
// compares in constant time.
func (b *Binding) Verify(secret []byte) bool {
	h := hmac.New(hashOf(b.signed.algorithm).New, secret)
	_, _ = h.Write(b.signed.input) // never fails
	return len(secret) >= h.Size() && hmac.Equal(h.Sum(nil), b.signed.signature)
}

// ParseChange parses the inner JWS of a change of keys (RFC 8555 §7.3.5) in a request to url. It returns the new key
// and the payload, whose signature by the new key it has verified.
func ParseChange(raw []byte, url string) (*Key, []byte, error) {
	refuse := func(detail string) (*Key, []byte, error) {
		return nil, nil, pki.Refuse(pki.RuleACMEJWS, "make the inner JWS as RFC 8555 section 7.3.5 describes", "%s", detail)
	}
	s, err := parseSigned(raw, algorithms)
	if err != nil {
		return nil, nil, err
	}
	if s.header.Nonce != nil || s.header.KeyID != nil || s.header.Key == nil {
		return refuse("the inner JWS must have a jwk, and neither nonce nor kid")
	}
	if *s.header.URL != url {
		return refuse("the inner JWS is for another url than the request")
	}
	key, err := ParseKey(s.header.Key)
	if err != nil {
		return nil, nil, err
	}
	m := Message{signed: s}
	payload, err := m.Verify(key)
	return key, payload, err
}
