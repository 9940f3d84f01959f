package attest

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// MaxMessage is the maximum length of a message in bytes.
const MaxMessage = 8 << 10

// The maximum lengths of fields in bytes. A TPM's structures are shorter: the public area of an RSA-4096 key has about
// 560 bytes.
const (
	maxPublic      = 1 << 10
	maxCertificate = 4 << 10
	maxSealed      = 2 << 10
	maxCredential  = 256
	maxEncrypted   = 1 << 10
	maxSecret      = 64
	maxStatement   = 1 << 10
	maxSignature   = 1 << 10
)

// Device describes the keys of a TPM to the server, which makes a [Challenge] for them.
type Device struct {
	// EK is the public area of the endorsement key (TPMT_PUBLIC).
	EK []byte
	// EKCertificate is the certificate of the endorsement key, as the TPM stores it. It may be empty.
	EKCertificate []byte
	// AK is the public area of the attestation key (TPMT_PUBLIC).
	AK []byte
}

// Marshal encodes the message. It returns an error if a field is too long.
func (d Device) Marshal() ([]byte, error) { return marshal(d.fields()) }

// ParseDevice decodes the result of [Device.Marshal].
func ParseDevice(b []byte) (d Device, err error) {
	err = parse(b, d.fields())
	return d, err
}

func (d *Device) fields() []field {
	return []field{
		{"the endorsement key", &d.EK, maxPublic},
		{"the certificate of the endorsement key", &d.EKCertificate, maxCertificate},
		{"the attestation key", &d.AK, maxPublic},
	}
}

// Challenge is a secret that only a TPM with both the endorsement key and the attestation key can decrypt.
type Challenge struct {
	// Sealed is for the server. The device sends it back unchanged.
	Sealed []byte
	// Credential and Secret are the arguments of TPM2_ActivateCredential: the content of a TPM2B_ID_OBJECT and of a
	// TPM2B_ENCRYPTED_SECRET.
	Credential []byte
	Secret     []byte
}

// Marshal encodes the message. It returns an error if a field is too long.
func (c Challenge) Marshal() ([]byte, error) { return marshal(c.fields()) }

// ParseChallenge decodes the result of [Challenge.Marshal].
func ParseChallenge(b []byte) (c Challenge, err error) {
	err = parse(b, c.fields())
	return c, err
}

func (c *Challenge) fields() []field {
	return []field{
		{"the sealed challenge", &c.Sealed, maxSealed},
		{"the credential", &c.Credential, maxCredential},
		{"the encrypted secret", &c.Secret, maxEncrypted},
	}
}

// Response proves that a private key is in the TPM that a [Challenge] was made for.
type Response struct {
	// Sealed is the field of the challenge.
	Sealed []byte
	// Secret is the result of TPM2_ActivateCredential.
	Secret []byte
	// AK is the public area of the attestation key (TPMT_PUBLIC).
	AK []byte
	// Key is the public area of the key to certify (TPMT_PUBLIC).
	Key []byte
	// Statement is what TPM2_Certify says about the key (TPMS_ATTEST). Its qualifying data is the [QualifyingData] of
	// Sealed.
	Statement []byte
	// Signature is the signature of the attestation key over Statement (TPMT_SIGNATURE).
	Signature []byte
}

// Marshal encodes the message. It returns an error if a field is too long.
func (r Response) Marshal() ([]byte, error) { return marshal(r.fields()) }

// ParseResponse decodes the result of [Response.Marshal].
func ParseResponse(b []byte) (r Response, err error) {
	err = parse(b, r.fields())
	return r, err
}

func (r *Response) fields() []field {
	return []field{
		{"the sealed challenge", &r.Sealed, maxSealed},
		{"the activated secret", &r.Secret, maxSecret},
		{"the attestation key", &r.AK, maxPublic},
		{"the certified key", &r.Key, maxPublic},
		{"the attestation statement", &r.Statement, maxStatement},
		{"the signature of the attestation statement", &r.Signature, maxSignature},
	}
}

// QualifyingData returns the argument of TPM2_Certify that binds a statement to one challenge: the SHA-256 of a text that
// says what the statement is for, a zero byte, the trust domain, a zero byte and the sealed challenge. The sealed
// challenge contains random bytes, so it is also the nonce. The trust domain is the one that the device enrolls in. So
// the server of another trust domain cannot use a statement that the device made for it, even if it passes on a
// challenge.
func QualifyingData(trustDomain string, sealed []byte) []byte {
	h := sha256.New()
	h.Write([]byte("brevet tpm enrollment\x00" + trustDomain + "\x00"))
	h.Write(sealed)
	return h.Sum(nil)
}

// A field is a part of a message.
type field struct {
	name  string
	value *[]byte
	max   int // bytes
}

// errSize means that a message or a field is too long.
var errSize = errors.New("is too long")

// IsTooLong reports whether a message was refused because it, or a field in it, is too long.
func IsTooLong(err error) bool { return errors.Is(err, errSize) }

func marshal(fields []field) ([]byte, error) {
	var b cryptobyte.Builder
	for _, f := range fields {
		if len(*f.value) > f.max {
			return nil, fmt.Errorf("%s %w: it has %d bytes, and %d are allowed", f.name, errSize, len(*f.value), f.max)
		}
		b.AddUint16LengthPrefixed(func(c *cryptobyte.Builder) { c.AddBytes(*f.value) })
	}
	return b.Bytes()
}

func parse(b []byte, fields []field) error {
	if len(b) > MaxMessage {
		return fmt.Errorf("the message %w: it has %d bytes, and %d are allowed", errSize, len(b), MaxMessage)
	}
	rest := cryptobyte.String(b)
	for _, f := range fields {
		var value cryptobyte.String
		if !rest.ReadUint16LengthPrefixed(&value) {
			return fmt.Errorf("the message ends before or in %s", f.name)
		}
		if len(value) > f.max {
			return fmt.Errorf("%s %w: it has %d bytes, and %d are allowed", f.name, errSize, len(value), f.max)
		}
		*f.value = value
	}
	if !rest.Empty() {
		return fmt.Errorf("%d bytes follow the last field of the message", len(rest))
	}
	return nil
}
