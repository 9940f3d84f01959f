package pki

// compromiseText is the first line of a [CompromiseStatement]. It is text, so that the signature cannot be confused
// with any other signature of the key. Certificates, CSRs, CRLs and OCSP responses start with 0x30, the tag of a DER
// SEQUENCE. The content that TLS 1.3 signs starts with 64 spaces (RFC 8446 §4.4.3). Earlier versions of TLS sign
// content that starts with a message type, or with 64 bytes of which the server draws half.
const compromiseText = "brevet: the holder of this key asks that all its certificates be revoked as compromised"

// CompromiseStatement returns the text that the holder of a key signs to have the key's certificates revoked as
// compromised. It has three lines: a fixed text, the trust domain and the key's hash. It contains no nonce, because a
// replay is harmless: the key stays compromised, and revoking it again changes nothing.
func CompromiseStatement(trustDomain string, key KeyHash) []byte {
	return []byte(compromiseText + "\n" + trustDomain + "\n" + key.String() + "\n")
}
