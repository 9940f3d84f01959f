package ceremony

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"

	"github.com/brevet-pki/brevet/pki"
)

const (
	minRSABits = 3072 // bits: the strength of P-256, 128 bits (NIST SP 800-57 part 1, table 2)
	maxRSABits = 8192 // bits: the maximum of common verifiers such as Go's crypto/tls
)

const keyForm = "use P-256, P-384, RSA of 3072 or 4096 bits, or Ed25519"

// signatureAlgorithm returns the signature algorithm for a CA's key, or refuses the key.
func signatureAlgorithm(pub crypto.PublicKey) (x509.SignatureAlgorithm, error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return x509.ECDSAWithSHA256, nil
		case elliptic.P384():
			return x509.ECDSAWithSHA384, nil
		case elliptic.P521():
			return x509.ECDSAWithSHA512, nil
		}
		return 0, pki.Refuse(pki.RuleKeyWeak, keyForm, "a CA key on the curve %s is too weak", k.Curve.Params().Name)
	case *rsa.PublicKey:
		return rsaAlgorithm(k)
	case ed25519.PublicKey:
		return x509.PureEd25519, nil
	default:
		return 0, pki.Refuse(pki.RuleKeyType, keyForm, "the key is of a type that a CA cannot have")
	}
}

// rsaAlgorithm returns the signature algorithm for an RSA key, or refuses the key.
func rsaAlgorithm(k *rsa.PublicKey) (x509.SignatureAlgorithm, error) {
	switch bits := k.N.BitLen(); {
	case bits < minRSABits:
		return 0, pki.Refuse(pki.RuleKeyWeak, keyForm, "an RSA key of %d bits is too weak for a CA", bits)
	case bits > maxRSABits:
		return 0, pki.Refuse(pki.RuleKeyType, keyForm, "an RSA key of %d bits is longer than verifiers accept", bits)
	case k.E < 1<<16+1 || k.E%2 == 0:
		return 0, pki.Refuse(pki.RuleKeyWeak, "use the exponent 65537",
			"an RSA key with the exponent %d is too weak for a CA", k.E)
	case bits < 4096:
		return x509.SHA256WithRSA, nil
	default:
		return x509.SHA384WithRSA, nil
	}
}

// keyText returns a key's type and size.
func keyText(pub crypto.PublicKey) string {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA " + k.Curve.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d bits, exponent %d", k.N.BitLen(), k.E)
	case ed25519.PublicKey:
		return "Ed25519"
	default:
		return "unknown"
	}
}

func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}
