package crl

import (
	"encoding/asn1"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/brevet-pki/brevet/pki"
)

// The extensions of a CRL (RFC 5280 §5.2).
var (
	oidAuthorityKeyID    = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidCRLNumber         = asn1.ObjectIdentifier{2, 5, 29, 20}
	oidDeltaCRL          = asn1.ObjectIdentifier{2, 5, 29, 27}
	oidDistributionPoint = asn1.ObjectIdentifier{2, 5, 29, 28}
	oidFreshestCRL       = asn1.ObjectIdentifier{2, 5, 29, 46}
	oidInvalidityDate    = asn1.ObjectIdentifier{2, 5, 29, 24} // of an entry
)

// DER tags and sizes of entries.
const (
	tagSequence        = 0x30
	tagInteger         = 0x02
	tagBitString       = 0x03
	tagUTCTime         = 0x17
	tagGeneralizedTime = 0x18
	tagExtensions      = 0xa0 // [0] EXPLICIT, constructed

	utcTimeSize         = 2 + len("YYMMDDHHMMSSZ")
	generalizedTimeSize = 2 + len("YYYYMMDDHHMMSSZ")
	reasonSize          = 12 // size of the extension reasonCode
	invaliditySize      = 9 + generalizedTimeSize
	removeFromCRL       = 8 // RFC 5280 §5.3.1
)

// generalizedFrom is the first time that is encoded as GeneralizedTime: the beginning of 2050 (RFC 5280 §5.1.2.4).
var generalizedFrom = time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC).Unix()

// headerSize returns the number of bytes of tag and length in DER, for a content of the given size.
func headerSize(content int64) int {
	n := 2
	if content >= 0x80 {
		for ; content > 0; content >>= 8 {
			n++
		}
	}
	return n
}

// appendHeader appends a tag and the length of the content in DER (X.690 §10.1).
func appendHeader(b []byte, tag byte, content int64) []byte {
	b = append(b, tag)
	n := headerSize(content) - 2
	if n == 0 {
		return append(b, byte(content)) //nolint:gosec // below 0x80
	}
	b = append(b, 0x80|byte(n)) //nolint:gosec // n is at most 8
	for i := n - 1; i >= 0; i-- {
		b = append(b, byte(content>>(8*i))) //nolint:gosec // truncated to one byte
	}
	return b
}

// entryEncoder encodes the entries of one CRL. It caches the last encoded date, because most entries have the same
// date.
type entryEncoder struct {
	thisUpdate int64 // maximum time of entries, in seconds since 1970
	day        int64 // the cached date, in days since 1970
	date       [8]byte
}

func newEntryEncoder(thisUpdate time.Time) *entryEncoder {
	return &entryEncoder{thisUpdate: thisUpdate.Unix(), day: -1 << 62}
}

// seconds returns the time of an entry, but at most thisUpdate: if the clock was set back, the recorded time may be
// later. For an entry with removeFromCRL it returns thisUpdate.
func (e *entryEncoder) seconds(n *Entry) int64 {
	if n.Removed {
		return e.thisUpdate
	}
	return min(n.RevokedAt.Unix(), e.thisUpdate)
}

// serialPadding returns the number of leading bytes that DER omits from a serial number. Serial numbers are positive.
func serialPadding(s *pki.Serial) int {
	data, n := s.Array(), 0
	for n < len(data)-1 && data[n] == 0 && data[n+1] < 0x80 {
		n++
	}
	return n
}

// contents returns the size of an entry's content, and the size of the extensions in that content.
func (e *entryEncoder) contents(n *Entry) (all, extensions int) {
	all = 2 + pki.SerialSize - serialPadding(&n.Serial) + utcTimeSize
	if e.seconds(n) >= generalizedFrom {
		all += generalizedTimeSize - utcTimeSize
	}
	if n.Removed || n.Reason != pki.Unspecified {
		extensions += reasonSize
	}
	if !n.Removed && !n.InvalidSince.IsZero() {
		extensions += invaliditySize
	}
	if extensions > 0 {
		all += 2 + extensions
	}
	return all, extensions
}

// size returns the size of an entry in bytes, which is less than 130.
func (e *entryEncoder) size(n *Entry) int64 {
	all, _ := e.contents(n)
	return int64(2 + all)
}

// append appends an entry. Its extensions are not critical (RFC 5280 §5.3).
func (e *entryEncoder) append(b []byte, n *Entry) []byte {
	all, extensions := e.contents(n)
	padding, serial := serialPadding(&n.Serial), n.Serial.Array()
	b = append(b, tagSequence, byte(all), tagInteger, byte(pki.SerialSize-padding)) //nolint:gosec // below 0x80
	b = append(b, serial[padding:]...)
	b = e.appendTime(b, e.seconds(n))
	if extensions == 0 {
		return b
	}
	b = append(b, tagSequence, byte(extensions)) //nolint:gosec // below 0x80
	if reason := n.Reason; n.Removed || reason != pki.Unspecified {
		if n.Removed {
			reason = removeFromCRL
		}
		b = append(b, tagSequence, reasonSize-2, 0x06, 3, 0x55, 0x1d, 21, 0x04, 3, 0x0a, 1, byte(reason))
	}
	if !n.Removed && !n.InvalidSince.IsZero() {
		b = append(b, tagSequence, byte(invaliditySize-2), 0x06, 3, 0x55, 0x1d, 24, 0x04, byte(generalizedTimeSize))
		b = e.appendGeneralized(b, n.InvalidSince.Unix())
	}
	return b
}

// appendTime appends a Time in DER: UTCTime up to 2049, and GeneralizedTime later.
func (e *entryEncoder) appendTime(b []byte, seconds int64) []byte {
	if seconds >= generalizedFrom {
		return e.appendGeneralized(b, seconds)
	}
	e.setDay(seconds)
	b = append(b, tagUTCTime, byte(utcTimeSize-2))
	return appendClock(append(b, e.date[2:]...), seconds)
}

func (e *entryEncoder) appendGeneralized(b []byte, seconds int64) []byte {
	e.setDay(seconds)
	b = append(b, tagGeneralizedTime, byte(generalizedTimeSize-2))
	return appendClock(append(b, e.date[:]...), seconds)
}

const secondsOfDay = 24 * 60 * 60

func (e *entryEncoder) setDay(seconds int64) {
	if day := (seconds - secondOfDay(seconds)) / secondsOfDay; day != e.day {
		e.day = day
		time.Unix(seconds, 0).UTC().AppendFormat(e.date[:0], "20060102")
	}
}

func secondOfDay(seconds int64) int64 {
	return (seconds%secondsOfDay + secondsOfDay) % secondsOfDay
}

func appendClock(b []byte, seconds int64) []byte {
	s := secondOfDay(seconds)
	for _, two := range [...]int64{s / 3600, s / 60 % 60, s % 60} {
		b = append(b, '0'+byte(two/10), '0'+byte(two%10)) //nolint:gosec // below 60
	}
	return append(b, 'Z')
}

// encodeExtensions encodes the extensions of a CRL, including their tag.
func encodeExtensions(c *CRL, keyID []byte, names, deltas []string) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(tagExtensions, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			addExtension(b, oidAuthorityKeyID, false, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(keyID) })
				})
			})
			addExtension(b, oidCRLNumber, false, func(b *cryptobyte.Builder) { b.AddASN1BigInt(c.Number) })
			if c.Delta {
				addExtension(b, oidDeltaCRL, true, func(b *cryptobyte.Builder) { b.AddASN1BigInt(c.Base.Number) })
			}
			if len(names) > 0 {
				addExtension(b, oidDistributionPoint, true, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { addPointName(b, names) })
				})
			}
			if len(deltas) > 0 && !c.Delta { // a delta CRL must not have the extension (RFC 5280 §5.2.6)
				addExtension(b, oidFreshestCRL, false, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { addPointName(b, deltas) })
					})
				})
			}
		})
	})
	return b.Bytes()
}

func addExtension(b *cryptobyte.Builder, oid asn1.ObjectIdentifier, critical bool, value func(*cryptobyte.Builder)) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		if critical {
			b.AddASN1Boolean(true)
		}
		b.AddASN1(cbasn1.OCTET_STRING, value)
	})
}

// addPointName adds a DistributionPointName with these URLs as fullName (RFC 5280 §4.2.1.13). It is the field [0] of a
// DistributionPoint or an IssuingDistributionPoint.
func addPointName(b *cryptobyte.Builder, urls []string) {
	b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			for _, url := range urls {
				b.AddASN1(cbasn1.Tag(6).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(url)) })
			}
		})
	})
}

// encodeTime encodes a Time (RFC 5280 §5.1.2.4).
func encodeTime(t time.Time) []byte { return newEntryEncoder(t).appendTime(nil, t.Unix()) }

// fitsNumber reports whether n can be a CRL number (RFC 5280 §5.2.3).
func fitsNumber(n *big.Int) bool { return n != nil && n.Sign() >= 0 && n.BitLen() < 8*20 }
