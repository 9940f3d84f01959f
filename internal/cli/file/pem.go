package file

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"

	"go.step.sm/crypto/pemutil"

	"github.com/brevet-pki/brevet/revocation/crl"
)

// Ceremonies exchange files in PEM or DER. A file must contain exactly one object of the expected kind, and nothing
// else.

// checkMark returns an error if a text file starts with a byte order mark, which PEM readers do not skip.
func checkMark(path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for name, mark := range map[string]string{"UTF-8": "\xef\xbb\xbf", "UTF-16": "\xff\xfe"} {
		if bytes.HasPrefix(content, []byte(mark)) {
			return fmt.Errorf("%s begins with the byte order mark of %s: save it as plain ASCII, without one", path, name)
		}
	}
	return nil
}

// ReadCertificate reads a file with one certificate in PEM or DER.
func ReadCertificate(path string) (*x509.Certificate, error) {
	if err := checkMark(path); err != nil {
		return nil, err
	}
	cert, err := pemutil.ReadCertificate(path)
	if err != nil {
		return nil, fmt.Errorf("%s is not one certificate: %w", path, err)
	}
	return cert, nil
}

// ReadRequest reads a file with one CSR in PEM or DER.
func ReadRequest(path string) (*x509.CertificateRequest, error) {
	if err := checkMark(path); err != nil {
		return nil, err
	}
	req, err := pemutil.ReadCertificateRequest(path)
	if err != nil {
		return nil, fmt.Errorf("%s is not a certification request (PKCS #10, in PEM or DER): brevet ceremony intermediate request makes one", path)
	}
	return req, nil
}

// ReadCRL reads a file with one CRL in PEM or DER.
func ReadCRL(path string) (*x509.RevocationList, error) {
	if err := checkMark(path); err != nil {
		return nil, err
	}
	der, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if block, rest := pem.Decode(der); block != nil {
		if block.Type != "X509 CRL" || len(bytes.TrimSpace(rest)) > 0 {
			return nil, fmt.Errorf("%s is not a CRL: it begins with a %s, or holds more than one thing", path, block.Type)
		}
		der = block.Bytes
	}
	list, err := crl.Parse(der)
	if err != nil {
		return nil, fmt.Errorf("%s is not a CRL that can be used: %w", path, err)
	}
	return list, nil
}
