package enroll

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"strconv"
	"strings"
	"unicode"

	"github.com/brevet-pki/brevet/pki"
)

// tokenPrefix is the beginning of a token's text. It makes tokens recognizable to people and secret scanners. The digit
// is the version of the format.
const tokenPrefix = "brevet1."

// MaxTokenText is the maximum length of a token's text in bytes.
const MaxTokenText = 1024

// Bootstrap is what a device needs for its first connection, besides evidence: the server's address, and how to
// authenticate the server.
type Bootstrap struct {
	// RootFingerprint is the SHA-256 of the root certificate in DER.
	RootFingerprint [32]byte
	TrustDomain     string
	// Server is the host:port of the enrollment service.
	Server string
}

// Check returns an error if the trust domain or the server is malformed.
func (b Bootstrap) Check() error {
	if _, err := pki.ParseTrustDomain(b.TrustDomain); err != nil {
		return err
	}
	return CheckServer(b.Server)
}

// Token is what an operator gives to a device: a secret that authenticates the device, and a [Bootstrap]. It is
// [Evidence]. Formatting a Token prints the secret as "[secret]". Text returns the complete token.
type Token struct {
	Bootstrap
	Secret pki.TokenSecret
}

// Text returns the token as text: "brevet1." and then bytes in base64url without padding. The bytes are the secret
// (32), the root's fingerprint (32), the length of the trust domain (1), the trust domain, the server, and the CRC-32
// (IEEE) of these (4).
func (t Token) Text() string {
	b := append(t.Secret.Bytes(), t.RootFingerprint[:]...)
	b = append(b, byte(len(t.TrustDomain))) //nolint:gosec // Check limits it to 255 bytes (SPIFFE ID section 2.1)
	b = append(b, t.TrustDomain...)
	b = append(b, t.Server...)
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// Kind implements [Evidence].
func (Token) Kind() pki.EvidenceKind { return pki.EvidenceToken }

// Subject returns the ID of the token.
func (t Token) Subject() string { return t.Secret.ID().String() }

// Present implements [Evidence].
func (t Token) Present(context.Context, Presentation) (pki.Evidence, error) {
	return t.Secret.Evidence(), nil
}

// ParseToken parses the result of Text. It ignores white space, because terminals wrap lines. Its errors never contain
// the text.
func ParseToken(text string) (Token, error) {
	if len(text) > 2*MaxTokenText {
		return Token{}, fmt.Errorf("this is too long for an enrollment token: give the one line that starts "+
			"with %q", tokenPrefix)
	}
	body, ok := strings.CutPrefix(strings.Map(dropSpace, text), tokenPrefix)
	if !ok {
		return Token{}, fmt.Errorf("this is not an enrollment token: one starts with %q", tokenPrefix)
	}
	damaged := errors.New("the enrollment token is incomplete or damaged: copy the whole line again")
	b, err := base64.RawURLEncoding.DecodeString(body)
	if err != nil || len(b) < 32+32+1+4 {
		return Token{}, damaged
	}
	b, sum := b[:len(b)-4], b[len(b)-4:]
	if !bytes.Equal(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(b)), sum) {
		return Token{}, damaged
	}
	var t Token
	if t.Secret, err = pki.TokenSecretFromBytes(b[:32]); err != nil {
		return Token{}, err
	}
	copy(t.RootFingerprint[:], b[32:64])
	size, names := int(b[64]), b[65:]
	if size > len(names) {
		return Token{}, damaged
	}
	t.TrustDomain, t.Server = string(names[:size]), string(names[size:])
	return t, t.Check()
}

// CheckServer checks the form of a server's address: host:port with a port from 1 to 65535, at most 261 bytes long.
func CheckServer(address string) error {
	host, port, err := net.SplitHostPort(address)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil || n == 0 || host == "" || len(address) > 261 || strings.ContainsFunc(host, notInHost) {
		return fmt.Errorf("%q is not a server's address: give host:port, such as brevet.example:7443", address)
	}
	return nil
}

// notInHost reports whether a character is not allowed in a host, because it could change the meaning of a gRPC target
// or of a log line.
func notInHost(r rune) bool {
	return r <= ' ' || r >= 0x7f || strings.ContainsRune(`/\"'?#@<>%`, r)
}

func dropSpace(r rune) rune {
	if unicode.IsSpace(r) {
		return -1
	}
	return r
}
