package attest

import (
	"errors"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// Tags of a certificate that a TPM stores in a structure (TCG PC Client Specific Implementation Specification 1.21,
// section 7.3.2).
const (
	tagStoredCert  = 0x1001
	tagFullCert    = 0x1002
	storedCertFull = 0
)

// CertificateDER returns the DER in what a TPM stores as the certificate of its endorsement key. Some TPMs wrap the DER
// in a structure, and many fill the rest of the storage with bytes of value 0 or 255. CertificateDER does not parse the
// certificate.
func CertificateDER(stored []byte) ([]byte, error) {
	if wrapped, ok := unwrap(stored); ok {
		stored = wrapped
	}
	rest := cryptobyte.String(stored)
	var der cryptobyte.String
	if !rest.ReadASN1Element(&der, asn1.SEQUENCE) {
		return nil, errors.New("the certificate of the endorsement key does not begin with a complete sequence in DER")
	}
	for _, b := range rest {
		if b != rest[0] || (b != 0 && b != 0xff) {
			return nil, errors.New("data other than padding follows the certificate of the endorsement key")
		}
	}
	return der, nil
}

// unwrap returns the content of a TCG_PCCLIENT_STORED_CERT.
func unwrap(stored []byte) ([]byte, bool) {
	s := cryptobyte.String(stored)
	var tag, inner uint16
	var kind uint8
	var content cryptobyte.String
	if !s.ReadUint16(&tag) || tag != tagStoredCert || !s.ReadUint8(&kind) || kind != storedCertFull ||
		!s.ReadUint16LengthPrefixed(&content) {
		return nil, false
	}
	if rest := content; rest.ReadUint16(&inner) && inner == tagFullCert {
		content = rest
	}
	return content, true
}
