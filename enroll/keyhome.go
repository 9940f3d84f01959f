package enroll

import (
	"cmp"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/brevet-pki/brevet/enroll/tpm"
	"github.com/brevet-pki/brevet/pki"
)

// fileKeyType is the type of PEM blocks with a private key in PKCS #8 (RFC 5958). Keys in a TPM have [tpm.PEMType].
const fileKeyType = "PRIVATE KEY"

// KeepKeysIn makes all later keys in a TPM. The files of the directory then contain keys that only this TPM can use.
// Call KeepKeysIn before NewAgent. The keys are P-256, whatever the agent's KeyType is.
func (d *Directory) KeepKeysIn(device *tpm.Device) { d.tpm = device }

// newKey generates a key in the TPM, or in memory if no TPM is set.
func (d *Directory) newKey(kind pki.KeyType) (crypto.Signer, error) {
	if d.tpm == nil {
		return newKey(kind)
	}
	return d.tpm.NewKey()
}

// homeOf returns the path of the TPM that a key is in. It is empty for other keys.
func homeOf(key crypto.Signer) string {
	if k, ok := key.(*tpm.Key); ok {
		return k.Device().Path()
	}
	return ""
}

// encodeKey encodes a key for a file, and returns the type of its PEM block.
func encodeKey(key crypto.Signer) (pemType string, der []byte, err error) {
	if k, ok := key.(*tpm.Key); ok {
		der, err = k.Marshal()
		return tpm.PEMType, der, err
	}
	der, err = x509.MarshalPKCS8PrivateKey(key)
	return fileKeyType, der, err
}

// decodeKey decodes the result of encodeKey. A key in a TPM is used through the device at the path home, or else at the
// default path.
func decodeKey(pemType string, der []byte, home string) (crypto.Signer, error) {
	switch pemType {
	case fileKeyType:
		return parseKey(der)
	case tpm.PEMType:
		return tpm.New(cmp.Or(home, tpm.DefaultPath)).ParseKey(der)
	default:
		return nil, fmt.Errorf("a %s is not a private key in PKCS #8 or in a TPM", pemType)
	}
}

func parseKey(der []byte) (crypto.Signer, error) {
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("the private key does not parse") // without the cause, whose text may contain the key
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("the private key cannot sign")
	}
	return signer, nil
}
