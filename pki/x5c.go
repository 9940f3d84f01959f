package pki

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
)

// X5CEvidence is evidence of the kind [EvidenceX5C]: the certificate that the manufacturer gave to a device (an IDevID
// of IEEE 802.1AR), and a signature that proves possession of its key.
type X5CEvidence struct {
	// Certificates are in DER. The device's certificate is the first, and each further one certifies the one before it.
	Certificates [][]byte
	// Challenge is the challenge of the server that the signature responds to.
	Challenge []byte
	// Signature is a signature over [X5CStatement].
	Signature []byte
}

// Encode encodes e as the value of [Evidence]: the challenge, the signature and the certificates, each after its length
// in 4 bytes. There is one encoding for each value.
func (e X5CEvidence) Encode() []byte {
	b := appendSized(appendSized(nil, e.Challenge), e.Signature)
	for _, der := range e.Certificates {
		b = appendSized(b, der)
	}
	return b
}

// ParseX5CEvidence parses the encoding of Encode. The result refers to the memory of b.
func ParseX5CEvidence(b []byte) (X5CEvidence, error) {
	var e X5CEvidence
	var ok bool
	if e.Challenge, b, ok = cutSized(b); !ok {
		return X5CEvidence{}, errX5CEvidence
	}
	if e.Signature, b, ok = cutSized(b); !ok {
		return X5CEvidence{}, errX5CEvidence
	}
	if e.Certificates, ok = cutAll(b); !ok {
		return X5CEvidence{}, errX5CEvidence
	}
	return e, nil
}

var errX5CEvidence = errors.New("the evidence ends within its challenge, its signature or a certificate")

func appendSized(b, part []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(part))) //nolint:gosec // gRPC limits messages to 1 MiB
	return append(b, part...)
}

// cutSized returns the part at the beginning of b, and what follows it.
func cutSized(b []byte) (part, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	size, rest := uint64(binary.BigEndian.Uint32(b)), b[4:]
	if size > uint64(len(rest)) {
		return nil, nil, false
	}
	return rest[:size:size], rest[size:], true
}

// cutAll returns the parts that b consists of.
func cutAll(b []byte) (parts [][]byte, ok bool) {
	for len(b) > 0 {
		var part []byte
		if part, b, ok = cutSized(b); !ok {
			return nil, false
		}
		parts = append(parts, part)
	}
	return parts, true
}

// x5cText is the first line of an [X5CStatement]. It ensures that the signature cannot be used as another signature of
// the key, see compromiseText.
const x5cText = "brevet: the device with this factory key enrolls a new key"

// X5CStatement returns the text that a device signs with the key of its factory certificate. The text has five lines: a
// fixed text, the trust domain, the hash of the key to certify, the request ID, and the SHA-256 of the challenge in
// hexadecimal. The trust domain is the one that the device enrolls in. So the server of another trust domain cannot use
// a signature that the device made for it, even if it passes on a challenge.
func X5CStatement(trustDomain string, key KeyHash, request RequestID, challenge []byte) []byte {
	digest := sha256.Sum256(challenge)
	return []byte(strings.Join([]string{
		x5cText, trustDomain, key.String(), request.String(), hex.EncodeToString(digest[:]), "",
	}, "\n"))
}
