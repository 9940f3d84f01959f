package jwt

import (
	"encoding/base64"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/brevet-pki/brevet/pki"
)

const (
	maxToken = 16 << 10 // maximum bytes of a token
	maxKeyID = 256      // maximum bytes of a key ID, which is only compared
)

// algorithms are the algorithms that a source can allow (RFC 7518 §3.1, RFC 8037 §3.1). They have public keys.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// token is a JWT that was parsed. Nothing in it is verified.
type token struct {
	raw       string
	signed    string // the part of raw that is signed: header and payload
	algorithm jose.SignatureAlgorithm
	keyID     string // "" if the header names no key
	claims    claims
}

const compactHint = "send one JWT in compact serialization: header, payload and signature in base64url, joined by dots"

// parseToken parses a JWT, and checks everything that does not depend on its source.
func parseToken(evidence []byte) (*token, error) {
	if len(evidence) > maxToken {
		return nil, pki.Refuse(pki.RuleEvidenceSize, "send a token of 16 KiB at most", "the token has %d bytes",
			len(evidence))
	}
	t := &token{raw: string(evidence)}
	if strings.HasPrefix(strings.TrimLeft(t.raw, " \t\r\n"), "{") {
		return nil, pki.Refuse(pki.RuleEvidenceMalformed, compactHint,
			"the token is in JSON serialization, which can have several signatures")
	}
	parts := strings.Split(t.raw, ".")
	if len(parts) == 5 {
		return nil, pki.Refuse(pki.RuleEvidenceMalformed, "send a token that is signed and not encrypted",
			"the token is encrypted (JWE)")
	}
	if len(parts) != 3 {
		return nil, pki.Refuse(pki.RuleEvidenceMalformed, compactHint, "the token has %d parts", len(parts))
	}
	t.signed = t.raw[:len(parts[0])+1+len(parts[1])]
	header, err := decodeObject("header", parts[0])
	if err != nil {
		return nil, err
	}
	if err := t.readHeader(header); err != nil {
		return nil, err
	}
	payload, err := decodeObject("payload", parts[1])
	if err != nil {
		return nil, err
	}
	if _, err := decode("signature", parts[2]); err != nil {
		return nil, err
	}
	t.claims, err = readClaims(payload)
	return t, err
}

// decode decodes one part of a token. It accepts one encoding of each value only, so that a token cannot be written in
// two ways.
func decode(name, part string) ([]byte, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(part)
	if err != nil || part == "" || strings.ContainsAny(part, "\r\n") { // DecodeString ignores line breaks
		return nil, pki.Refuse(pki.RuleEvidenceMalformed, compactHint, "the %s of the token is not in base64url", name)
	}
	return b, nil
}

func decodeObject(name, part string) (object, error) {
	b, err := decode(name, part)
	if err != nil {
		return nil, err
	}
	o, err := parseObject(b)
	if err != nil {
		return nil, pki.Refuse(pki.RuleEvidenceMalformed, "send the token as its issuer made it", "the %s of the token %s",
			name, err)
	}
	return o, nil
}

// typesOfTokens are the values of the header typ, in lower case and without "application/". Tokens with another type
// are made for other purposes, such as the logout of a user.
var typesOfTokens = []string{"", "jwt", "at+jwt"}

// readHeader reads the members of the header (RFC 7515 §4.1). It refuses members that would change where the key comes
// from, or what is signed. It ignores other members, as the RFC requires.
func (t *token) readHeader(header object) error {
	for _, name := range []string{"jwk", "jku", "x5c", "x5u"} {
		if _, ok := header[name]; ok {
			return pki.Refuse(pki.RuleEvidenceUntrusted, "send a token that names its key with kid only",
				"the header of the token brings or locates its own key (%s)", name)
		}
	}
	for _, name := range []string{"crit", "cty"} {
		if _, ok := header[name]; ok {
			return pki.Refuse(pki.RuleEvidenceMalformed, "send a token without "+name+" in its header",
				"the header of the token has %s, which is not supported", name)
		}
	}
	algorithm, okAlgorithm := header.text("alg")
	keyID, okKeyID := header.text("kid")
	kind, okKind := header.text("typ")
	if !okAlgorithm || !okKeyID || !okKind || len(keyID) > maxKeyID {
		return pki.Refuse(pki.RuleEvidenceMalformed, "send a token whose alg, kid and typ are short texts",
			"alg, kid or typ in the header of the token is not a text, or is too long")
	}
	if !slices.Contains(typesOfTokens, strings.TrimPrefix(strings.ToLower(kind), "application/")) {
		return pki.Refuse(pki.RuleEvidenceMalformed, "send an ID token or an access token", "the token has the type %.40q",
			kind)
	}
	t.algorithm, t.keyID = jose.SignatureAlgorithm(algorithm), keyID
	if !slices.Contains(algorithms, t.algorithm) {
		return pki.Refuse(pki.RuleEvidenceAlgorithm, "sign tokens with one of "+joinAlgorithms(algorithms),
			"the token has the algorithm %.20q", algorithm)
	}
	return nil
}

func joinAlgorithms(all []jose.SignatureAlgorithm) string {
	var names []string
	for _, a := range all {
		names = append(names, string(a))
	}
	return strings.Join(names, ", ")
}
