package pki

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"
)

// RecoveryEvidence is evidence of the kind [EvidenceRecovery]: an expired certificate of the caller's identity, and a
// signature that proves possession of its key.
type RecoveryEvidence struct {
	// IssuerID and Serial identify the certificate, in the encoding of [IssuerID.Bytes] and [Serial.Bytes].
	IssuerID, Serial []byte
	// PublicKey is the SubjectPublicKeyInfo of the certificate in DER (RFC 5280 §4.1.2.7). A store that was recreated from
	// the log has no certificates, but the hashes of their keys.
	PublicKey []byte
	// Challenge is the challenge of the server that the signature responds to.
	Challenge []byte
	// Signature is a signature over [RecoveryStatement].
	Signature []byte
}

// Encode encodes e as the value of [Evidence]: its five fields in order, each after its length in 4 bytes. There is one
// encoding for each value.
func (e RecoveryEvidence) Encode() []byte {
	var b []byte
	for _, part := range [][]byte{e.IssuerID, e.Serial, e.PublicKey, e.Challenge, e.Signature} {
		b = appendSized(b, part)
	}
	return b
}

// ParseRecoveryEvidence parses the encoding of Encode. The result refers to the memory of b.
func ParseRecoveryEvidence(b []byte) (RecoveryEvidence, error) {
	var e RecoveryEvidence
	for _, part := range []*[]byte{&e.IssuerID, &e.Serial, &e.PublicKey, &e.Challenge, &e.Signature} {
		var ok bool
		if *part, b, ok = cutSized(b); !ok {
			return RecoveryEvidence{}, errors.New("the evidence ends within one of its five fields")
		}
	}
	if len(b) > 0 {
		return RecoveryEvidence{}, errors.New("the evidence continues after its five fields")
	}
	return e, nil
}

// recoveryText is the first line of a [RecoveryStatement]. It ensures that the signature cannot be used as another
// signature of the key, see compromiseText.
const recoveryText = "brevet: the holder of this key recovers its identity, after its certificate expired, with a new key"

// RecoveryStatement returns the text that the holder of an expired certificate signs with the certificate's key. The
// text has seven lines: a fixed text, the trust domain, the issuer ID and the serial number of the certificate, the hash
// of the key to certify, the request ID, and the SHA-256 of the challenge. Except for the first two, they are in
// hexadecimal.
func RecoveryStatement(trustDomain string, expired CertRef, key KeyHash, request RequestID, challenge []byte) []byte {
	digest := sha256.Sum256(challenge)
	text := recoveryText + "\n" + trustDomain + "\n"
	for _, b := range [][]byte{expired.Issuer.Bytes(), expired.Serial.Bytes(), key.Bytes(), request.Bytes(), digest[:]} {
		text += hex.EncodeToString(b) + "\n"
	}
	return []byte(text)
}

// Recovery is the condition under which an identity gets a certificate after its previous one has expired.
type Recovery struct {
	// Certificate is the expired certificate whose key the caller proved to hold.
	Certificate CertRef
	// Grace is how long after its expiry the certificate is accepted.
	Grace time.Duration
	// Times is the maximum number of recoveries in a row, with this one. Another enrollment, or a renewal before expiry,
	// ends the row.
	Times int
}

// IsZero reports whether r is the zero value, which is no recovery.
func (r Recovery) IsZero() bool { return r == Recovery{} }

// LosesPredecessor reports whether the guard is of a recovery with the key of another certificate than Predecessor, the
// newest one. Then the caller never got the newest certificate. It is revoked, and the new certificate is no renewal of it.
func (g *Guard) LosesPredecessor() bool {
	return !g.Recovery.IsZero() && g.Recovery.Certificate.Serial != g.Predecessor.Serial
}
