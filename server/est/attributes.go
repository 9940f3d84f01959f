package est

import (
	"context"
	"encoding/asn1"
	"net/http"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/server/frontdoor"
)

// attributes serves csrattrs (RFC 7030 §4.5). If there is nothing to say, the status is 204.
func (d *door) attributes(_ context.Context, r *frontdoor.Request) (frontdoor.Response, error) {
	l, err := d.label(r)
	if err != nil {
		return frontdoor.Response{}, err
	}
	der, err := attributesOf(l)
	if err != nil || der == nil {
		return frontdoor.Response{Status: http.StatusNoContent}, err
	}
	return response("application/csrattrs", der), nil
}

// algorithm describes keys of a type to clients.
type algorithm struct {
	key        asn1.ObjectIdentifier
	curve      asn1.ObjectIdentifier // nil unless the key is on a curve that a parameter names
	signature  asn1.ObjectIdentifier // of CSRs
	parameters []byte                // DER, for keys without a curve
}

var (
	oidEC  = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidRSA = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}

	rsaKey = algorithm{key: oidRSA, signature: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, parameters: asn1.NullBytes}
)

var algorithms = map[pki.KeyType]algorithm{
	pki.P256: {key: oidEC, curve: asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}, signature: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}},
	pki.P384: {key: oidEC, curve: asn1.ObjectIdentifier{1, 3, 132, 0, 34}, signature: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}},
	// An Ed25519 key and its signatures have the same identifier (RFC 8410 §3).
	pki.Ed25519: {key: asn1.ObjectIdentifier{1, 3, 101, 112}},
	pki.RSA2048: rsaKey, pki.RSA3072: rsaKey, pki.RSA4096: rsaKey,
}

// attributesOf returns what a CSR should contain, as CsrAttrs in DER (RFC 7030 §4.5.2). It returns nil if there is
// nothing to say. A CSR needs no names: certificates get those of the identity.
func attributesOf(l ra.Label) ([]byte, error) {
	var oids []asn1.ObjectIdentifier
	if l.RequireLinking {
		oids = append(oids, ra.OIDChallengePassword)
	}
	keys, known := algorithms[l.Key]
	if known && l.Attributes == ra.AttributeOIDs {
		for _, oid := range []asn1.ObjectIdentifier{keys.key, keys.curve, keys.signature} {
			if oid != nil {
				oids = append(oids, oid)
			}
		}
	}
	var b cryptobyte.Builder
	switch {
	case l.Attributes == ra.AttributesTemplate:
		b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) { addTemplate(b, l, keys, known) })
	case l.Attributes == ra.AttributeOIDs && len(oids) > 0:
		b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, oid := range oids {
				b.AddASN1ObjectIdentifier(oid)
			}
		})
	default:
		return nil, nil
	}
	return b.Bytes()
}

// addTemplate adds an attribute with a CertificationRequestInfoTemplate (RFC 9908 §3.4): without a subject, and with the
// type of key if there is one to suggest.
func addTemplate(b *cryptobyte.Builder, l ra.Label, keys algorithm, known bool) {
	context := func(n uint8) cryptobyte_asn1.Tag { return cryptobyte_asn1.Tag(n).ContextSpecific().Constructed() }
	b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidTemplate)
		b.AddASN1(cryptobyte_asn1.SET, func(b *cryptobyte.Builder) {
			b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(0) // version
				if known {
					b.AddASN1(context(0), func(b *cryptobyte.Builder) { addKey(b, l.Key, keys) })
				}
				b.AddASN1(context(1), func(b *cryptobyte.Builder) {
					if !l.RequireLinking {
						return
					}
					b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier(ra.OIDChallengePassword)
						b.AddASN1(cryptobyte_asn1.SET, func(*cryptobyte.Builder) {})
					})
				})
			})
		})
	})
}

// rsaBits are the sizes of RSA keys. A template says it with the size of an example of a key.
var rsaBits = map[pki.KeyType]int{pki.RSA2048: 2048, pki.RSA3072: 3072, pki.RSA4096: 4096}

// addKey adds the content of a SubjectPublicKeyInfoTemplate: the algorithm, and for RSA a placeholder of a key with the
// size to use (RFC 9908 §3.4).
func addKey(b *cryptobyte.Builder, t pki.KeyType, keys algorithm) {
	b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(keys.key)
		if keys.curve != nil {
			b.AddASN1ObjectIdentifier(keys.curve)
		}
		b.AddBytes(keys.parameters)
	})
	if bits := rsaBits[t]; bits > 0 {
		modulus := slices.Concat([]byte{0, 0xff}, slices.Repeat([]byte{0}, bits/8-1))
		var key cryptobyte.Builder
		key.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(cryptobyte_asn1.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(modulus) })
			b.AddASN1Int64(65537)
		})
		b.AddASN1BitString(key.BytesOrPanic())
	}
}
