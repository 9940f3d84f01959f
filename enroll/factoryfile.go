package enroll

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"github.com/brevet-pki/brevet/enroll/tpm"
)

// ReadFactoryCertificate reads the certificate that the manufacturer gave to a device, and its private key, for
// [FactoryCertificate]. The first file contains the certificate and then its issuers, in PEM; the root may be left out.
// The second contains the key in PKCS #8, PKCS #1 or SEC 1, or a TSS2 key in the given TPM. It must not be accessible
// for every user, unless the key is in a TPM.
func ReadFactoryCertificate(certificateFile, keyFile string, device *tpm.Device) (tls.Certificate, error) {
	certs, err := readCertificates(certificateFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read the factory certificate: %w", err)
	}
	c := tls.Certificate{Leaf: certs[0]}
	for i, cert := range certs {
		if i > 0 && !bytes.Equal(certs[i-1].RawIssuer, cert.RawSubject) {
			return tls.Certificate{}, fmt.Errorf("read the factory certificate: in %s, the certificate of %q does not follow "+
				"one that it issued: put the device's certificate first, and then each issuer", certificateFile, cert.Subject)
		}
		c.Certificate = append(c.Certificate, cert.Raw)
	}
	if c.PrivateKey, err = readFactoryKey(keyFile, device); err != nil {
		return tls.Certificate{}, fmt.Errorf("read the key of the factory certificate: %w", err)
	}
	return c, nil
}

// readFactoryKey reads a private key that other software wrote.
func readFactoryKey(path string, device *tpm.Device) (crypto.Signer, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(data)
	if block != nil && block.Type == "EC PARAMETERS" { // OpenSSL writes them before an EC key
		block, _ = pem.Decode(rest)
	}
	if block == nil {
		return nil, fmt.Errorf("%s holds no private key in PEM", path)
	}
	if block.Type == tpm.PEMType {
		return device.ParseKey(block.Bytes)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o007 != 0 {
		return nil, fmt.Errorf("every user can access %s, which has mode %04o: give it mode 0600, or 0640 with the agent's group",
			path, mode)
	}
	key, err := parseFactoryKey(block)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// parseFactoryKey parses a private key. Its errors do not contain those of crypto/x509, which could contain the key.
func parseFactoryKey(block *pem.Block) (crypto.Signer, error) {
	if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
		return nil, errors.New("the private key has a passphrase: store it without one")
	}
	var key crypto.Signer
	var err error
	switch block.Type {
	case fileKeyType:
		return parseKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("a %s is not a private key", block.Type)
	}
	if err != nil {
		return nil, errors.New("the private key does not parse")
	}
	return key, nil
}
