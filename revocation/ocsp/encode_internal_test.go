package ocsp

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	"pgregory.net/rapid"
)

// An element is a DER element, or a tree of them.
type element struct {
	tag      asn1.Tag
	content  []byte // content, if there are no children
	time     time.Time
	children []element
}

func randomElement(r *rapid.T, depth int) element {
	switch kind := rapid.IntRange(0, 3).Draw(r, "kind"); {
	case kind > 1 && depth < 4:
		e := element{tag: rapid.SampledFrom([]asn1.Tag{asn1.SEQUENCE, contextTag(0), contextTag(2)}).Draw(r, "tag")}
		for range rapid.IntRange(0, 4).Draw(r, "children") {
			e.children = append(e.children, randomElement(r, depth+1))
		}
		return e
	case kind == 1:
		return element{tag: asn1.GeneralizedTime, time: time.Unix(rapid.Int64Range(-62_000_000_000, 253_402_300_799).Draw(r, "time"), 0)}
	default: // the lengths of these contents are encoded in one, two and three bytes
		size := rapid.SampledFrom([]int{0, 1, 126, 127, 128, 129, 255, 256, 65535, 65536}).Draw(r, "size")
		return element{tag: asn1.OCTET_STRING, content: bytes.Repeat([]byte{7}, size)}
	}
}

func (e element) writeReversed(t *rapid.T, b *reverseWriter) {
	switch e.tag {
	case asn1.GeneralizedTime:
		if err := b.addTime(e.time); err != nil {
			t.Fatal(err)
		}
	case asn1.OCTET_STRING:
		b.addElement(e.tag, e.content)
	default:
		since := b.size()
		for n := len(e.children) - 1; n >= 0; n-- {
			e.children[n].writeReversed(t, b)
		}
		b.wrap(e.tag, since)
	}
}

func (e element) writeForward(b *cryptobyte.Builder) {
	switch e.tag {
	case asn1.GeneralizedTime:
		b.AddASN1GeneralizedTime(e.time.UTC())
	case asn1.OCTET_STRING:
		b.AddASN1OctetString(e.content)
	default:
		b.AddASN1(e.tag, func(b *cryptobyte.Builder) {
			for _, child := range e.children {
				child.writeForward(b)
			}
		})
	}
}

// TestReverseWriterMatchesCryptobyte compares the output of a reverseWriter with that of cryptobyte. Its buffer is
// sometimes too small.
func TestReverseWriterMatchesCryptobyte(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		e := randomElement(r, 0)
		b := newReverseWriter(make([]byte, rapid.IntRange(0, 600).Draw(r, "room")))
		e.writeReversed(r, b)
		var forwards cryptobyte.Builder
		e.writeForward(&forwards)
		if want, err := forwards.Bytes(); err != nil || !bytes.Equal(b.der(), want) {
			r.Fatalf("wrote %x, cryptobyte wrote %x, %v", b.der(), want, err)
		}
	})
	for _, year := range []int{-1, 10000} {
		if err := newReverseWriter(nil).addTime(time.Date(year, 6, 1, 0, 0, 0, 0, time.UTC)); err == nil {
			t.Errorf("the year %d was written, want an error", year)
		}
	}
}
