package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"

	"go.step.sm/crypto/pemutil"
)

// Ceremonies exchange files in PEM or DER. One that holds anything but the one thing that is asked for is refused.

func readCertificate(path string) (*x509.Certificate, error) {
	cert, err := pemutil.ReadCertificate(path)
	if err != nil {
		return nil, fmt.Errorf("%s is not one certificate: %w", path, err)
	}
	return cert, nil
}

func readRequest(path string) (*x509.CertificateRequest, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	req, err := pemutil.ReadCertificateRequest(path)
	if err != nil {
		return nil, fmt.Errorf("%s is not a certification request (PKCS #10, in PEM or DER): brevet ceremony intermediate request makes one", path)
	}
	return req, nil
}

func readCRL(path string) (*x509.RevocationList, error) {
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
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("%s is not a CRL: %w", path, err)
	}
	return crl, nil
}
