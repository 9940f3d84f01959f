package enroll

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"
)

// The names of the files in a version.
const (
	keyName    = "key.pem"
	certName   = "cert.pem"
	bundleName = "bundle.pem"
	originName = "origin.json"
)

// file is a file of a version that has not been written yet.
type file struct {
	name   string
	data   []byte
	access access
}

// files returns the pair as the files of a version. key is the access of the private key.
func (p *Pair) files(key access) ([]file, error) {
	keyType, private, err := encodeKey(p.Key)
	if err != nil {
		return nil, fmt.Errorf("encode the private key: %w", err)
	}
	origin, err := json.Marshal(p.Origin)
	if err != nil {
		return nil, fmt.Errorf("encode the credential's origin: %w", err)
	}
	return []file{
		{keyName, pem.EncodeToMemory(&pem.Block{Type: keyType, Bytes: private}), key},
		{certName, encodeCertificates(append([]*x509.Certificate{p.Certificate}, p.Chain...)), public},
		{bundleName, encodeCertificates(p.Roots), public},
		{originName, append(origin, '\n'), public},
	}, nil
}

func encodeCertificates(certs []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // writing to a bytes.Buffer never fails
	}
	return b.Bytes()
}

// readVersion reads the files of a version. origin.json may be missing: an operator may have installed the other files
// by hand.
func readVersion(at string) (*Pair, error) {
	certs, err := readCertificates(filepath.Join(at, certName))
	if err != nil {
		return nil, err
	}
	roots, err := readCertificates(filepath.Join(at, bundleName))
	if err != nil {
		return nil, err
	}
	var from Origin
	switch data, err := readFile(filepath.Join(at, originName)); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if err := json.Unmarshal(data, &from); err != nil {
			return nil, fmt.Errorf("%s: %w", originName, err)
		}
	}
	key, err := readKey(filepath.Join(at, keyName), from.TPM)
	if err != nil {
		return nil, err
	}
	return NewPair(Credential{Certificate: certs[0], Chain: certs[1:], Roots: roots}, key, from, time.Now())
}

// readKey reads a private key. home is the path of the TPM that the key may be in.
func readKey(path, home string) (crypto.Signer, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s holds no private key", path)
	}
	return decodeKey(block.Type, block.Bytes, home)
}

// readCertificates reads a PEM file that contains at least one certificate.
func readCertificates(path string) ([]*x509.Certificate, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%s contains a %s: it must contain only certificates", path, block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	return certs, nil
}
