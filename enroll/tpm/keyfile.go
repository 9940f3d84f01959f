package tpm

import (
	encoding_asn1 "encoding/asn1"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// PEMType is the type of PEM blocks with the result of [Key.Marshal].
const PEMType = "TSS2 PRIVATE KEY"

// oidLoadableKey is the type of keys that TPM2_Load loads (draft-bottomley-tpm2-keys, section 3.1.1).
var oidLoadableKey = encoding_asn1.ObjectIdentifier{2, 23, 133, 10, 1, 3}

// emptyAuthTag is the tag of emptyAuth, which says that the key has no password.
var emptyAuthTag = asn1.Tag(0).Constructed().ContextSpecific()

// errKeyFile means that a key file is malformed, or has features that this package does not use.
var errKeyFile = errors.New("it must be a TPM key without password and policy, below the owner hierarchy")

// Marshal encodes the key in DER as a TPMKey. The private part in it is encrypted, and works only in this TPM.
func (k *Key) Marshal() ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidLoadableKey)
		b.AddASN1(emptyAuthTag, func(b *cryptobyte.Builder) { b.AddASN1Boolean(true) })
		b.AddASN1Int64(int64(tpm2.TPMRHOwner))
		for _, sized := range [][]byte{k.area, k.private} {
			b.AddASN1(asn1.OCTET_STRING, func(b *cryptobyte.Builder) {
				b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(sized) })
			})
		}
	})
	return b.Bytes()
}

// ParseKey decodes the result of [Key.Marshal]. It does not use the TPM.
func (d *Device) ParseKey(der []byte) (*Key, error) {
	k := &Key{device: d}
	input, emptyAuth := cryptobyte.String(der), false
	var body, flag cryptobyte.String
	var id encoding_asn1.ObjectIdentifier
	var parent int64
	var hasFlag bool
	if !input.ReadASN1(&body, asn1.SEQUENCE) || !input.Empty() ||
		!body.ReadASN1ObjectIdentifier(&id) || !id.Equal(oidLoadableKey) ||
		!body.ReadOptionalASN1(&flag, &hasFlag, emptyAuthTag) ||
		hasFlag && (!flag.ReadASN1Boolean(&emptyAuth) || !flag.Empty()) || !emptyAuth ||
		!body.ReadASN1Integer(&parent) || parent != int64(tpm2.TPMRHOwner) {
		return nil, fmt.Errorf("the key file does not parse: %w", errKeyFile)
	}
	for _, sized := range []struct{ to *[]byte }{{&k.area}, {&k.private}} {
		var octets, value cryptobyte.String
		if !body.ReadASN1(&octets, asn1.OCTET_STRING) || !octets.ReadUint16LengthPrefixed(&value) || !octets.Empty() {
			return nil, fmt.Errorf("the key file does not parse: %w", errKeyFile)
		}
		*sized.to = append([]byte(nil), value...)
	}
	if !body.Empty() {
		return nil, fmt.Errorf("the key file does not parse: %w", errKeyFile)
	}
	var err error
	if k.public, err = parsePublic(k.area); err != nil {
		return nil, fmt.Errorf("the key file does not hold a usable key: %w", err)
	}
	return k, nil
}
