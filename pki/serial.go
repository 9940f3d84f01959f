package pki

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"
	"time"
)

// SerialSize is the length of every serial number in octets: the longest that RFC 5280 §4.1.2.2 allows.
const SerialSize = 20

// SerialRandomSize is how many octets of a serial number its maker fills with random bits.
const SerialRandomSize = 14

// Serial is a certificate's serial number: 20 octets, big-endian, positive. The zero value is no serial.
// Serials compare with == and work as map keys.
type Serial struct{ b [SerialSize]byte }

// MakeSerial lays out a serial number: 6 octets of milliseconds since 1970, so that indexes grow at one
// end, then 14 octets that the caller draws at random, more than the 64 bits that certificate profiles ask for.
// The time must lie between 1971 and the year 6429: no right clock shows another one, and later ones would be negative.
func MakeSerial(t time.Time, random [SerialRandomSize]byte) (Serial, error) {
	ms := t.UnixMilli()
	if ms < 1<<35 || ms >= 1<<47 {
		return Serial{}, fmt.Errorf("time %s cannot open a serial number: set the clock right", t.UTC().Format(time.RFC3339))
	}
	var s Serial
	var head [8]byte
	binary.BigEndian.PutUint64(head[:], uint64(ms))
	copy(s.b[:6], head[2:])
	copy(s.b[6:], random[:])
	return s, nil
}

// Time returns the time that a serial number of MakeSerial was made at.
func (s Serial) Time() time.Time {
	var ms [8]byte
	copy(ms[2:], s.b[:6])
	return time.UnixMilli(int64(binary.BigEndian.Uint64(ms[:]))).UTC() //nolint:gosec // 48 bits
}

// SerialFromBytes reads the 20 octets that Bytes returns.
func SerialFromBytes(b []byte) (Serial, error) {
	var s Serial
	if len(b) != SerialSize {
		return s, fmt.Errorf("a serial number has %d octets, not %d", SerialSize, len(b))
	}
	copy(s.b[:], b)
	if s.b[0]&0x80 != 0 || s.IsZero() {
		return Serial{}, fmt.Errorf("a serial number is positive (RFC 5280 section 4.1.2.2)")
	}
	return s, nil
}

// SerialFromInt converts the integer of a parsed certificate, CRL entry or OCSP request.
func SerialFromInt(n *big.Int) (Serial, error) {
	var s Serial
	if n == nil || n.Sign() <= 0 || n.BitLen() > 8*SerialSize-1 {
		return s, fmt.Errorf("a serial number is positive and has at most %d octets (RFC 5280 section 4.1.2.2)", SerialSize)
	}
	n.FillBytes(s.b[:])
	return s, nil
}

// ParseSerial reads hexadecimal digits as OpenSSL and browsers print them: either case, with or without
// colons, leading zeros or not.
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

// String formats the serial as OpenSSL does: upper-case hexadecimal octets without leading zero octets.
func (s Serial) String() string {
	b := s.b[:]
	for len(b) > 1 && b[0] == 0 {
		b = b[1:]
	}
	return strings.ToUpper(hex.EncodeToString(b))
}

// Bytes returns the 20 octets.
func (s Serial) Bytes() []byte { return append([]byte(nil), s.b[:]...) }

// Array returns the same octets, without taking memory for them.
func (s Serial) Array() [SerialSize]byte { return s.b }

// Int returns the serial as the integer that X.509 encodes.
func (s Serial) Int() *big.Int { return new(big.Int).SetBytes(s.b[:]) }

// IsZero reports whether s is the zero value, which is no serial.
func (s Serial) IsZero() bool { return s == Serial{} }
