package pki

// compromiseText is the first line of a [CompromiseStatement]. It ensures that the signature cannot be used as another
// signature of the key. Certificates, CSRs, CRLs and OCSP responses start with 0x30, the tag of a DER SEQUENCE. The
// content that TLS 1.3 signs starts with 64 spaces (RFC 8446 §4.4.3). In earlier versions of TLS, it starts with a
// message type, or with 64 bytes of which the server generates half.
const compromiseText = "brevet: the holder of this key asks that all its certificates be revoked as compromised"

// CompromiseStatement returns the text that the holder of a key signs to have all certificates of the key revoked as
// compromised. The text has three lines: a fixed text, the trust domain and the key's hash. It contains no nonce,
// because repeating it is harmless: the key is already compromised, and nothing changes.
func CompromiseStatement(trustDomain string, key KeyHash) []byte {
	return []byte(compromiseText + "\n" + trustDomain + "\n" + key.String() + "\n")
}
