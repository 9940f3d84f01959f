package jws

import (
	"bytes"
	"encoding/base64"
	stdjson "encoding/json"
	"errors"
	"slices"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json" // refuses duplicate members, and compares names with their case

	"github.com/brevet-pki/brevet/pki"
)

// MaxSize is the maximum size of a request in bytes.
const MaxSize = 64 << 10

// maxURL and maxNonce are the maximum sizes of the header's members in bytes.
const (
	maxURL   = 2048
	maxNonce = 512
)

// algorithms are the algorithms of requests (RFC 7518 §3.1, RFC 8037 §3.1).
var algorithms = []jose.SignatureAlgorithm{jose.ES256, jose.ES384, jose.EdDSA, jose.RS256}

// Algorithms returns the names of the algorithms with which requests can be signed.
func Algorithms() []string { return names(algorithms) }

func names(list []jose.SignatureAlgorithm) []string {
	texts := make([]string, len(list))
	for i, a := range list {
		texts[i] = string(a)
	}
	return texts
}

// Message is a request whose signature is not verified yet.
type Message struct {
	URL   string
	Nonce string
	KeyID string // the URL of the account; empty if the request contains its key
	Key   *Key   // the key in the request; nil if KeyID is not empty

	signed signed
}

// Parse parses a request. It refuses a request that is not in the form that the package accepts.
func Parse(body []byte) (*Message, error) {
	s, err := parseSigned(body, algorithms)
	if err != nil {
		return nil, err
	}
	h := s.header
	if h.Nonce == nil || *h.Nonce == "" {
		return nil, pki.Refuse(pki.RuleACMENonce, "get a nonce from newNonce, and send it in the protected header",
			"the request has no nonce")
	}
	if len(*h.Nonce) > maxNonce {
		return nil, malformed("the nonce has %d bytes, and may have %d", len(*h.Nonce), maxNonce)
	}
	if (h.KeyID == nil) == (h.Key == nil) {
		return nil, malformed("the protected header must have exactly one of jwk and kid")
	}
	m := &Message{URL: *h.URL, Nonce: *h.Nonce, signed: s}
	if h.KeyID != nil {
		if *h.KeyID == "" || len(*h.KeyID) > maxURL {
			return nil, malformed("the kid has %d bytes, and may have 1 to %d", len(*h.KeyID), maxURL)
		}
		m.KeyID = *h.KeyID
		return m, nil
	}
	if m.Key, err = ParseKey(h.Key); err != nil {
		return nil, err
	}
	return m, nil
}

// Verify returns the payload if key made the signature of the request.
func (m *Message) Verify(key *Key) ([]byte, error) {
	if !key.fits(m.signed.algorithm) {
		return nil, pki.Refuse(pki.RuleACMEAlgorithm, "sign with the algorithm of the key",
			"the algorithm %s is not for the key of the request, which is %s", m.signed.algorithm, key.kind)
	}
	if !key.isSignature(m.signed.input, m.signed.signature) {
		return nil, pki.Refuse(pki.RuleACMEJWS, "sign the request with the key of the account, and send it unchanged",
			"the signature does not verify")
	}
	return m.signed.payload, nil
}

// header is a protected header. A pointer is nil if the member is missing or null.
type header struct {
	Algorithm *string         `json:"alg"`
	Nonce     *string         `json:"nonce"`
	URL       *string         `json:"url"`
	KeyID     *string         `json:"kid"`
	Key       json.RawMessage `json:"jwk"`
	Critical  json.RawMessage `json:"crit"`
	Unencoded json.RawMessage `json:"b64"`
}

// signed is a JWS with one signature.
type signed struct {
	header    header
	algorithm jose.SignatureAlgorithm
	input     []byte // what is signed: the header and the payload in base64url, with a dot between them (RFC 7515 §5.1)
	payload   []byte
	signature []byte
}

// parseSigned parses a JWS in the flattened JSON serialization that has one of the allowed algorithms, and a url.
func parseSigned(body []byte, allowed []jose.SignatureAlgorithm) (signed, error) {
	if len(body) > MaxSize {
		return signed{}, pki.Refuse(pki.RuleSize, "send a smaller request", "the request has %d bytes, and may have %d",
			len(body), MaxSize)
	}
	var parts struct {
		Protected  *string         `json:"protected"`
		Payload    *string         `json:"payload"`
		Signature  *string         `json:"signature"`
		Header     json.RawMessage `json:"header"`
		Signatures json.RawMessage `json:"signatures"`
	}
	if err := Unmarshal(body, &parts); err != nil {
		return signed{}, malformed("the request is not a JSON object with the members of a JWS")
	}
	if parts.Signatures != nil {
		return signed{}, malformed("the request is in the general serialization, with a list of signatures")
	}
	if parts.Header != nil {
		return signed{}, malformed("the request has an unprotected header")
	}
	if parts.Protected == nil || parts.Payload == nil || parts.Signature == nil {
		return signed{}, malformed("the request lacks one of protected, payload and signature")
	}
	var decoded [3][]byte
	for i, part := range []*string{parts.Protected, parts.Payload, parts.Signature} {
		var err error
		if decoded[i], err = Decode(*part); err != nil {
			return signed{}, malformed("a part of the request is not base64url without padding")
		}
	}
	protected := decoded[0]
	s := signed{input: []byte(*parts.Protected + "." + *parts.Payload), payload: decoded[1], signature: decoded[2]}
	if err := Unmarshal(protected, &s.header); err != nil {
		return signed{}, malformed("the protected header is not a JSON object with the members of RFC 8555 section 6.2")
	}
	err := s.check(allowed)
	return s, err
}

// check refuses a header with extensions, without url, or with an algorithm that is not allowed. It keeps the algorithm.
func (s *signed) check(allowed []jose.SignatureAlgorithm) error {
	if s.header.Critical != nil || s.header.Unencoded != nil {
		return malformed("the protected header has crit or b64, and this server has no critical extension")
	}
	if s.header.Algorithm == nil {
		return malformed("the protected header has no alg")
	}
	s.algorithm = jose.SignatureAlgorithm(*s.header.Algorithm)
	if !slices.Contains(allowed, s.algorithm) {
		return pki.Refuse(pki.RuleACMEAlgorithm, "sign with one of "+join(allowed), "the algorithm is %.32q", s.algorithm)
	}
	if s.header.URL == nil || *s.header.URL == "" || len(*s.header.URL) > maxURL {
		return malformed("the protected header must have a url of %d bytes at most", maxURL)
	}
	return nil
}

var errNotJSON = errors.New("not a JSON object in UTF-8")

// shallow is a number of brackets that cannot be nested too deeply.
const shallow = 1000

// Unmarshal decodes a JSON object. It limits the depth (encoding/json), and refuses duplicate members (go-jose). Null is
// no object, although it can be decoded as one without members.
func Unmarshal(data []byte, into any) error {
	if !utf8.Valid(data) || !bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("{")) {
		return errNotJSON
	}
	if bytes.Count(data, []byte("{"))+bytes.Count(data, []byte("[")) > shallow && !stdjson.Valid(data) {
		return errNotJSON
	}
	return json.Unmarshal(data, into)
}

// Decode decodes base64url without padding. Unlike encoding/base64, it accepts no line breaks.
func Decode(text string) ([]byte, error) {
	for _, c := range []byte(text) {
		if c == '\r' || c == '\n' {
			return nil, base64.CorruptInputError(0)
		}
	}
	return base64.RawURLEncoding.Strict().DecodeString(text)
}

func malformed(detail string, args ...any) *pki.Refusal {
	return pki.Refuse(pki.RuleACMEJWS,
		"send a JWS in the flattened JSON serialization, as RFC 8555 section 6.2 describes", detail, args...)
}
