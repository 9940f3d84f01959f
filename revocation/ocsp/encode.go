package ocsp

import (
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte/asn1"
)

// A backwards writes DER from its end to its beginning: by the time that a length is written, what it is of is there. So
// it moves and allocates nothing, as long as it has the room.
type backwards struct {
	room []byte // what is written is at its end
	at   int    // and begins here
}

func newBackwards(room []byte) *backwards { return &backwards{room, len(room)} }

// der is what was written.
func (b *backwards) der() []byte { return b.room[b.at:] }

// size is how much was written. wrap takes an earlier one.
func (b *backwards) size() int { return len(b.room) - b.at }

// take makes n octets before what was written, and returns them.
func (b *backwards) take(n int) []byte {
	if b.at < n {
		more := make([]byte, 2*len(b.room)+n)
		b.at += len(more) - len(b.room)
		copy(more[b.at:], b.room[len(b.room)-(len(more)-b.at):])
		b.room = more
	}
	b.at -= n
	return b.room[b.at : b.at+n]
}

func (b *backwards) octets(octets []byte) { copy(b.take(len(octets)), octets) }

func (b *backwards) octet(octet byte) { b.take(1)[0] = octet }

// wrap writes tag and length of everything that was written since the size was this.
func (b *backwards) wrap(tag asn1.Tag, since int) {
	n := b.size() - since
	if n < 0x80 {
		b.octet(byte(n)) //nolint:gosec // it fits
	} else {
		octets := byte(0)
		for ; n > 0; n >>= 8 {
			b.octet(byte(n))
			octets++
		}
		b.octet(0x80 | octets)
	}
	b.octet(byte(tag))
}

// value writes a whole element.
func (b *backwards) value(tag asn1.Tag, octets []byte) {
	since := b.size()
	b.octets(octets)
	b.wrap(tag, since)
}

// generalizedTime writes a time to the second, in UTC, as RFC 5280 §4.1.2.5.2 has it.
func (b *backwards) generalizedTime(t time.Time) error {
	const layout = "20060102150405Z"
	t = t.UTC()
	if year := t.Year(); year < 0 || year > 9999 {
		return fmt.Errorf("ocsp: the year %d cannot be written in four digits", year)
	}
	var text [len(layout)]byte
	b.value(asn1.GeneralizedTime, t.AppendFormat(text[:0], layout))
	return nil
}
