package pki

import "encoding/hex"

// delegateText is the first line of a [DelegateStatement]. It ensures that the signature cannot be used as another
// signature of the key, see compromiseText.
const delegateText = "brevet: the server with this key requests a certificate for an OCSP delegate from another server"

// DelegateStatement returns the text that a server signs with the key of its own certificate to request the certificate
// of an OCSP delegate from a server that has the key of the issuing CA. The text has six lines: a fixed text, the trust
// domain, the issuer ID of that CA, the name of the server, the request ID, and the hash of the key to certify. The last
// two and the issuer ID are in hexadecimal.
func DelegateStatement(trustDomain string, issuer IssuerID, server string, request RequestID, key KeyHash) []byte {
	text := delegateText + "\n" + trustDomain + "\n" + hex.EncodeToString(issuer.Bytes()) + "\n" + server + "\n"
	return []byte(text + hex.EncodeToString(request.Bytes()) + "\n" + hex.EncodeToString(key.Bytes()) + "\n")
}
