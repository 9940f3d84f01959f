package pki

// compromiseText begins what the holder of a compromised key signs. It is text, and so none of what the key signs
// elsewhere: certificates, certification requests, CRLs and OCSP begin with the octet 0x30 of a DER SEQUENCE; what TLS 1.3
// has signed with 64 spaces (RFC 8446 §4.4.3), and earlier versions with the type of a handshake message, or with 64
// octets of which the server draws half.
const compromiseText = "brevet: the holder of this key asks that all its certificates be revoked as compromised"

// CompromiseStatement is what a key signs to have itself revoked: three lines with a fixed text, the trust domain and the
// key's hash. It needs no freshness: it is true for ever once somebody who should not have the key has signed it, and
// carrying it out again changes nothing.
func CompromiseStatement(trustDomain string, key KeyHash) []byte {
	return []byte(compromiseText + "\n" + trustDomain + "\n" + key.String() + "\n")
}
