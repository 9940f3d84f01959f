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

// SerialRandomSize is the number of random bytes in a serial number.
const SerialRandomSize = 14

// Serial is a certificate's serial number: 20 bytes, big-endian, positive. The zero value is no serial.
// Serials compare with == and work as map keys.
type Serial struct{ b [SerialSize]byte }

// MakeSerial returns the serial number with the time t in its first 6 bytes and random in the other 14. The time counts
// milliseconds since 1970, so that indexes on serial numbers grow at one end. It has no other reader. The caller draws
// random from a CSPRNG: it exceeds the 64 bits that certificate profiles require. MakeSerial fails if t is before 1971 or after the year 6429,
// which only a wrong clock shows; a later time would make the serial number negative.
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

// SerialFromBytes reads the 20 bytes that Bytes returns.
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

// SerialFromInt converts the integer from a parsed certificate, CRL entry or OCSP request.
func SerialFromInt(n *big.Int) (Serial, error) {
	var s Serial
	if n == nil || n.Sign() <= 0 || n.BitLen() > 8*SerialSize-1 {
		return s, fmt.Errorf("a serial number is positive and has at most %d bytes (RFC 5280 section 4.1.2.2)", SerialSize)
	}
	n.FillBytes(s.b[:])
	return s, nil
}

// ParseSerial parses hexadecimal digits as OpenSSL and browsers print them: in either case, with or without colons and
// leading zeros.
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

// String formats the serial number as OpenSSL does: upper-case hexadecimal digits, without leading zero bytes.
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

// Int returns the serial as the integer that X.509 encodes.
func (s Serial) Int() *big.Int { return new(big.Int).SetBytes(s.b[:]) }

// IsZero reports whether s is the zero value, which is no serial.
func (s Serial) IsZero() bool { return s == Serial{} }
