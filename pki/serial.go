package pki

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"
	"time"
)

// SerialSize is the length of every serial number in bytes: the maximum in RFC 5280 §4.1.2.2.
const SerialSize = 20

// SerialRandomSize is the number of random bytes in a serial number.
const SerialRandomSize = 14

// Serial is a certificate's serial number: 20 bytes, big-endian and positive. The zero value is no serial number.
// Serials can be compared with == and be map keys.
type Serial struct{ b [SerialSize]byte }

// MakeSerial returns a serial number with the time t in its first 6 bytes and random in the other 14. The time is in
// milliseconds since 1970. It makes indexes on serial numbers grow at one end, and tells when the certificate was issued
// ([Serial.Time]). random must come from a CSPRNG, and has more than the 64 bits that certificate profiles require. MakeSerial returns an error if t is before
// 1971, or so late (in the year 6429) that the serial number would be negative. Only a wrong clock shows such times.
func MakeSerial(t time.Time, random [SerialRandomSize]byte) (Serial, error) {
	ms := t.UnixMilli()
	if ms < 1<<35 || ms >= 1<<47 {
		return Serial{}, fmt.Errorf("a serial number cannot hold the time %s: set the clock", t.UTC().Format(time.RFC3339))
	}
	var s Serial
	var head [8]byte
	binary.BigEndian.PutUint64(head[:], uint64(ms))
	copy(s.b[:6], head[2:])
	copy(s.b[6:], random[:])
	return s, nil
}

// Time returns the time in a serial number that MakeSerial returned: when the certificate was issued. For other serial
// numbers, the result has no meaning.
func (s Serial) Time() time.Time {
	var ms [8]byte
	copy(ms[2:], s.b[:6])
	return time.UnixMilli(int64(binary.BigEndian.Uint64(ms[:]))).UTC() //nolint:gosec // 48 bits
}

// SerialFromBytes returns the serial number whose Bytes are b.
func SerialFromBytes(b []byte) (Serial, error) {
	var s Serial
	if len(b) != SerialSize {
		return s, fmt.Errorf("a serial number has %d bytes, not %d", SerialSize, len(b))
	}
	copy(s.b[:], b)
	if s.b[0]&0x80 != 0 || s.IsZero() {
		return Serial{}, fmt.Errorf("a serial number is positive (RFC 5280 section 4.1.2.2)")
	}
	return s, nil
}

// SerialFromInt converts an integer from a certificate, a CRL entry or an OCSP request.
func SerialFromInt(n *big.Int) (Serial, error) {
	var s Serial
	if n == nil || n.Sign() <= 0 || n.BitLen() > 8*SerialSize-1 {
		return s, fmt.Errorf("a serial number is positive and has at most %d bytes (RFC 5280 section 4.1.2.2)", SerialSize)
	}
	n.FillBytes(s.b[:])
	return s, nil
}

// ParseSerial parses hexadecimal digits in the formats of OpenSSL and browsers: in upper or lower case, with or without
// colons and leading zeros.
func ParseSerial(text string) (Serial, error) {
	digits := strings.ReplaceAll(strings.TrimSpace(text), ":", "")
	if digits == "" || len(digits) > 2*SerialSize {
		return Serial{}, fmt.Errorf("%q is not a serial number: give up to %d hexadecimal digits", text, 2*SerialSize)
	}
	digits = strings.Repeat("0", 2*SerialSize-len(digits)) + digits
	b, err := hex.DecodeString(digits)
	if err != nil {
		return Serial{}, fmt.Errorf("%q is not a serial number: give up to %d hexadecimal digits", text, 2*SerialSize)
	}
	return SerialFromBytes(b)
}

// String formats the serial number like OpenSSL: with upper-case hexadecimal digits, without leading zero bytes.
func (s Serial) String() string {
	b := s.b[:]
	for len(b) > 1 && b[0] == 0 {
		b = b[1:]
	}
	return strings.ToUpper(hex.EncodeToString(b))
}

// Bytes returns the 20 bytes.
func (s Serial) Bytes() []byte { return append([]byte(nil), s.b[:]...) }

// Array returns the 20 bytes without allocating.
func (s Serial) Array() [SerialSize]byte { return s.b }

// Int returns the serial number as an integer.
func (s Serial) Int() *big.Int { return new(big.Int).SetBytes(s.b[:]) }

// IsZero reports whether s is the zero value, which is no serial number.
func (s Serial) IsZero() bool { return s == Serial{} }
