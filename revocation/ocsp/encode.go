package ocsp

import (
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte/asn1"
)

// A reverseWriter writes DER from its end to its beginning. It writes a length after the content that the length
// counts. Nothing must therefore be moved, and nothing is allocated while the buffer is large enough.
type reverseWriter struct {
	buf   []byte // filled from its end
	start int    // index in buf of the first written byte
}

func newReverseWriter(room []byte) *reverseWriter { return &reverseWriter{room, len(room)} }

// der returns all bytes written so far.
func (b *reverseWriter) der() []byte { return b.buf[b.start:] }

// size returns the number of bytes written so far. Its result is an argument of wrap.
func (b *reverseWriter) size() int { return len(b.buf) - b.start }

// prepend extends the written part by n bytes at its beginning, and returns these bytes.
func (b *reverseWriter) prepend(n int) []byte {
	if b.start < n {
		more := make([]byte, 2*len(b.buf)+n)
		b.start += len(more) - len(b.buf)
		copy(more[b.start:], b.buf[len(b.buf)-(len(more)-b.start):])
		b.buf = more
	}
	b.start -= n
	return b.buf[b.start : b.start+n]
}

func (b *reverseWriter) addBytes(p []byte) { copy(b.prepend(len(p)), p) }

func (b *reverseWriter) addByte(c byte) { b.prepend(1)[0] = c }

// wrap writes a tag and length before everything that was written after size returned since.
func (b *reverseWriter) wrap(tag asn1.Tag, since int) {
	n := b.size() - since
	if n < 0x80 {
		b.addByte(byte(n)) //nolint:gosec // n is below 0x80
	} else {
		count := byte(0)
		for ; n > 0; n >>= 8 {
			b.addByte(byte(n))
			count++
		}
		b.addByte(0x80 | count)
	}
	b.addByte(byte(tag))
}

// addElement writes an element: tag, length and content.
func (b *reverseWriter) addElement(tag asn1.Tag, content []byte) {
	since := b.size()
	b.addBytes(content)
	b.wrap(tag, since)
}

// addTime writes t as a GeneralizedTime in UTC, truncated to seconds (RFC 5280 §4.1.2.5.2).
func (b *reverseWriter) addTime(t time.Time) error {
	const layout = "20060102150405Z"
	t = t.UTC()
	if year := t.Year(); year < 0 || year > 9999 {
		return fmt.Errorf("the year %d does not fit GeneralizedTime: use 0 to 9999", year)
	}
	var text [len(layout)]byte
	b.addElement(asn1.GeneralizedTime, t.AppendFormat(text[:0], layout))
	return nil
}
