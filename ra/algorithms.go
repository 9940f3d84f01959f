package ra

import (
	"crypto/x509"
	"encoding/asn1"
)

var (
	oidRSA     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidRSAPSS  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}
	oidECKey   = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidEd25519 = asn1.ObjectIdentifier{1, 3, 101, 112}
	oidSHA1    = asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
)

// supportedKeys and supportedCurves list the signing keys that crypto/x509 can parse. The profile chooses among them.
var (
	supportedKeys   = []asn1.ObjectIdentifier{oidRSA, oidECKey, oidEd25519}
	supportedCurves = []asn1.ObjectIdentifier{{1, 3, 132, 0, 33}, {1, 2, 840, 10045, 3, 1, 7}, {1, 3, 132, 0, 34}, {1, 3, 132, 0, 35}}
)

// supportedSignatures lists the signature algorithms accepted in a request as proof of possession.
var supportedSignatures = []x509.SignatureAlgorithm{
	x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA, x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
	x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512, x509.PureEd25519,
}

// algorithmNames maps the object identifiers of algorithms and curves to their names, for error messages.
var algorithmNames = map[string]string{
	// keys
	"1.2.840.113549.1.1.1": "rsaEncryption", "1.2.840.113549.1.1.10": "RSASSA-PSS", "1.2.840.113549.1.1.7": "RSAES-OAEP",
	"1.2.840.10040.4.1": "DSA", "1.2.840.10046.2.1": "Diffie-Hellman", "1.2.840.10045.2.1": "id-ecPublicKey", "1.3.132.1.12": "id-ecDH",
	"1.3.101.110": "X25519", "1.3.101.111": "X448", "1.3.101.112": "Ed25519", "1.3.101.113": "Ed448",
	"2.16.840.1.101.3.4.3.17": "ML-DSA-44", "2.16.840.1.101.3.4.3.18": "ML-DSA-65", "2.16.840.1.101.3.4.3.19": "ML-DSA-87",
	"1.2.643.7.1.1.1.1": "GOST R 34.10-2012",
	// curves
	"1.2.840.10045.3.1.1": "P-192", "1.3.132.0.33": "P-224", "1.2.840.10045.3.1.7": "P-256", "1.3.132.0.34": "P-384", "1.3.132.0.35": "P-521",
	"1.3.132.0.10": "secp256k1", "1.3.36.3.3.2.8.1.1.7": "brainpoolP256r1", "1.3.36.3.3.2.8.1.1.11": "brainpoolP384r1",
	"1.3.36.3.3.2.8.1.1.13": "brainpoolP512r1", "1.2.156.10197.1.301": "SM2",
	// signatures
	"1.2.840.113549.1.1.4": "md5WithRSAEncryption", "1.2.840.113549.1.1.5": "sha1WithRSAEncryption",
	"1.2.840.113549.1.1.11": "sha256WithRSAEncryption", "1.2.840.113549.1.1.12": "sha384WithRSAEncryption",
	"1.2.840.113549.1.1.13": "sha512WithRSAEncryption", "1.2.840.113549.1.1.14": "sha224WithRSAEncryption",
	"1.2.840.113549.1.1.15": "sha512-224WithRSAEncryption", "1.2.840.113549.1.1.16": "sha512-256WithRSAEncryption",
	"2.16.840.1.101.3.4.3.13": "RSA with SHA3-224", "2.16.840.1.101.3.4.3.14": "RSA with SHA3-256",
	"2.16.840.1.101.3.4.3.15": "RSA with SHA3-384", "2.16.840.1.101.3.4.3.16": "RSA with SHA3-512",
	"1.2.840.10045.4.1": "ecdsa-with-SHA1", "1.2.840.10045.4.3.1": "ecdsa-with-SHA224", "1.2.840.10045.4.3.2": "ecdsa-with-SHA256",
	"1.2.840.10045.4.3.3": "ecdsa-with-SHA384", "1.2.840.10045.4.3.4": "ecdsa-with-SHA512",
	"2.16.840.1.101.3.4.3.9": "ecdsa-with-SHA3-224", "2.16.840.1.101.3.4.3.10": "ecdsa-with-SHA3-256",
	"2.16.840.1.101.3.4.3.11": "ecdsa-with-SHA3-384", "2.16.840.1.101.3.4.3.12": "ecdsa-with-SHA3-512",
	"1.2.156.10197.1.501": "SM2 with SM3",
	// hashes, in the parameters of RSASSA-PSS
	"1.3.14.3.2.26": "SHA-1", "2.16.840.1.101.3.4.2.4": "SHA-224", "2.16.840.1.101.3.4.2.1": "SHA-256", "2.16.840.1.101.3.4.2.2": "SHA-384",
	"2.16.840.1.101.3.4.2.3": "SHA-512", "2.16.840.1.101.3.4.2.8": "SHA3-256", "2.16.840.1.101.3.4.2.9": "SHA3-384",
	"2.16.840.1.101.3.4.2.10": "SHA3-512",
}

// algorithmName returns the name and the object identifier of an algorithm, or only the object identifier if the name is
// not in algorithmNames.
func algorithmName(id asn1.ObjectIdentifier) string {
	text := id.String()
	if name := algorithmNames[text]; name != "" {
		return name + " (" + text + ")"
	}
	return text
}
