package enroll

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/brevet-pki/brevet/files"
	"github.com/brevet-pki/brevet/pki"
)

// maxJWT is the maximum length of a JWT in bytes, as on the server.
const maxJWT = 16 << 10

// JWT is a JSON Web Token (RFC 7519) that an OpenID provider, a Kubernetes cluster or a CI system gave to a workload.
// It is [Evidence]. Only the server verifies it. It formats as "[jwt]".
type JWT struct {
	// ExpiresAt is the claim exp. It is zero if the token has none.
	ExpiresAt time.Time

	text    []byte
	subject string
}

// ParseJWT parses a JWT in compact serialization (RFC 7515 section 7.1). It ignores white space around it. Its errors
// never contain the text.
func ParseJWT(text []byte) (JWT, error) {
	text = bytes.TrimSpace(text)
	malformed := errors.New("it is not a JWT: give one signed token, which is three parts in base64url with a dot between each")
	switch {
	case len(text) == 0:
		return JWT{}, errors.New("it is empty: a JWT belongs here")
	case len(text) > maxJWT:
		return JWT{}, fmt.Errorf("it is too large: a JWT has at most %d bytes", maxJWT)
	case bytes.Count(text, []byte(".")) != 2:
		return JWT{}, malformed
	}
	_, rest, _ := bytes.Cut(text, []byte("."))
	encoded, _, _ := bytes.Cut(rest, []byte("."))
	payload, err := base64.RawURLEncoding.DecodeString(string(encoded))
	if err != nil {
		return JWT{}, malformed
	}
	var claims struct {
		Issuer  string  `json:"iss"`
		Subject string  `json:"sub"`
		Expires float64 `json:"exp"`
	}
	if json.Unmarshal(payload, &claims) != nil {
		return JWT{}, malformed
	}
	j := JWT{text: bytes.Clone(text)}
	if seconds := math.Floor(claims.Expires); seconds > 0 && seconds < math.MaxInt32*100 {
		j.ExpiresAt = time.Unix(int64(seconds), 0).UTC()
	}
	digest := sha256.Sum256([]byte(claims.Issuer + "\x00" + claims.Subject))
	j.subject = hex.EncodeToString(digest[:])
	return j, nil
}

// ReadJWT reads a JWT from a file of at most 16 KiB. Read it again for each request, because the system that writes the
// file replaces it.
func ReadJWT(path string) (JWT, error) {
	text, err := files.Read(path, maxJWT+1024) // with white space
	if err != nil {
		return JWT{}, fmt.Errorf("read the JWT: %w", err)
	}
	j, err := ParseJWT(text)
	if err != nil {
		return JWT{}, fmt.Errorf("read the JWT in %s: %w", path, err)
	}
	return j, nil
}

// Kind implements [Evidence].
func (JWT) Kind() pki.EvidenceKind { return pki.EvidenceJWT }

// Subject returns a hash of the claims iss and sub. Other tokens of the same workload have the same Subject.
func (j JWT) Subject() string { return j.subject }

// Present implements [Evidence].
func (j JWT) Present(context.Context, Presentation) (pki.Evidence, error) {
	return pki.Evidence{Kind: pki.EvidenceJWT, Value: j.text}, nil
}

// Format hides the token from every verb of fmt.
func (JWT) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[jwt]")) }
