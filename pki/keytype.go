package pki

import (
	"fmt"
	"slices"
	"strings"
)

// KeyType is an algorithm and key size. Its text is the name in configuration files. The zero value is no key type.
type KeyType string

// The key types. Brevet never certifies keys of other types, such as RSA below 2048 bits or P-224.
const (
	P256    KeyType = "P-256"
	P384    KeyType = "P-384"
	Ed25519 KeyType = "Ed25519"
	RSA2048 KeyType = "RSA-2048"
	RSA3072 KeyType = "RSA-3072"
	RSA4096 KeyType = "RSA-4096"
)

var keyTypes = []KeyType{P256, P384, Ed25519, RSA2048, RSA3072, RSA4096}

// KeyTypes returns all key types.
func KeyTypes() []KeyType { return slices.Clone(keyTypes) }

// ParseKeyType returns the key type with a name.
func ParseKeyType(text string) (KeyType, error) {
	if t := KeyType(text); slices.Contains(keyTypes, t) {
		return t, nil
	}
	return "", fmt.Errorf("%q is not a kind of key: use one of %s", text, JoinKeyTypes(keyTypes))
}

// JoinKeyTypes returns the names of key types with commas between them.
func JoinKeyTypes(types []KeyType) string {
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = string(t)
	}
	return strings.Join(names, ", ")
}
