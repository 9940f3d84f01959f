package tpm

import (
	"errors"

	"golang.org/x/crypto/cryptobyte"
)

// state is the payload of a sealed challenge: what Identify needs to know about the request of the challenge.
type state struct {
	secret [32]byte // SHA-256 of the secret
	ek     [32]byte // SHA-256 of the EK's SubjectPublicKeyInfo
	ak     []byte   // name of the AK
	// sources is the digest of the sources that the EK's certificate was verified with.
	sources [32]byte
	endorsement
}

// stateVersion is the first byte of an encoded state.
const stateVersion = 1

func (s state) marshal() ([]byte, error) {
	var b cryptobyte.Builder
	b.AddUint8(stateVersion)
	b.AddBytes(s.secret[:])
	b.AddBytes(s.ek[:])
	b.AddBytes(s.sources[:])
	for _, value := range [][]byte{s.ak, []byte(s.source), []byte(s.manufacturer), []byte(s.model), []byte(s.version)} {
		b.AddUint8LengthPrefixed(func(c *cryptobyte.Builder) { c.AddBytes(value) })
	}
	return b.Bytes()
}

// parseState decodes the result of marshal. The bytes are authentic, because they were sealed.
func parseState(b []byte) (state, error) {
	var s state
	var version uint8
	rest := cryptobyte.String(b)
	if !rest.ReadUint8(&version) || version != stateVersion || !rest.CopyBytes(s.secret[:]) || !rest.CopyBytes(s.ek[:]) ||
		!rest.CopyBytes(s.sources[:]) {
		return s, errors.New("the payload has another version, or is too short")
	}
	var values [5]cryptobyte.String
	for i := range values {
		if !rest.ReadUint8LengthPrefixed(&values[i]) {
			return s, errors.New("the payload is too short")
		}
	}
	if !rest.Empty() {
		return s, errors.New("the payload is too long")
	}
	s.ak = values[0]
	s.endorsement = endorsement{string(values[1]), product{string(values[2]), string(values[3]), string(values[4])}}
	return s, nil
}
