package ocsp

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	"pgregory.net/rapid"
)

// element is DER in the form of a tree.
type element struct {
	tag      asn1.Tag
	octets   []byte // where there are no children
	time     time.Time
	children []element
}

func drawElement(r *rapid.T, depth int) element {
	switch kind := rapid.IntRange(0, 3).Draw(r, "kind"); {
	case kind > 1 && depth < 4:
		e := element{tag: rapid.SampledFrom([]asn1.Tag{asn1.SEQUENCE, contextTag(0), contextTag(2)}).Draw(r, "tag")}
		for range rapid.IntRange(0, 4).Draw(r, "children") {
			e.children = append(e.children, drawElement(r, depth+1))
		}
		return e
	case kind == 1:
		return element{tag: asn1.GeneralizedTime, time: time.Unix(rapid.Int64Range(-62_000_000_000, 253_402_300_799).Draw(r, "time"), 0)}
	default: // lengths of one, two and three octets
		size := rapid.SampledFrom([]int{0, 1, 126, 127, 128, 129, 255, 256, 65535, 65536}).Draw(r, "size")
		return element{tag: asn1.OCTET_STRING, octets: bytes.Repeat([]byte{7}, size)}
	}
}

func (e element) backwards(t *rapid.T, b *backwards) {
	switch e.tag {
	case asn1.GeneralizedTime:
		if err := b.generalizedTime(e.time); err != nil {
			t.Fatal(err)
		}
	case asn1.OCTET_STRING:
		b.value(e.tag, e.octets)
	default:
		since := b.size()
		for n := len(e.children) - 1; n >= 0; n-- {
			e.children[n].backwards(t, b)
		}
		b.wrap(e.tag, since)
	}
}

func (e element) forwards(b *cryptobyte.Builder) {
	switch e.tag {
	case asn1.GeneralizedTime:
		b.AddASN1GeneralizedTime(e.time.UTC())
	case asn1.OCTET_STRING:
		b.AddASN1OctetString(e.octets)
	default:
		b.AddASN1(e.tag, func(b *cryptobyte.Builder) {
			for _, child := range e.children {
				child.forwards(b)
			}
		})
	}
}

// TestDERIsTheSameBackwards holds what is written backwards, in room that is too small at times, against cryptobyte.
func TestDERIsTheSameBackwards(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		e := drawElement(r, 0)
		b := newBackwards(make([]byte, rapid.IntRange(0, 600).Draw(r, "room")))
		e.backwards(r, b)
		var forwards cryptobyte.Builder
		e.forwards(&forwards)
		if want, err := forwards.Bytes(); err != nil || !bytes.Equal(b.der(), want) {
			r.Fatalf("%x, and cryptobyte has %x, %v", b.der(), want, err)
		}
	})
	for _, year := range []int{-1, 10000} {
		if err := newBackwards(nil).generalizedTime(time.Date(year, 6, 1, 0, 0, 0, 0, time.UTC)); err == nil {
			t.Errorf("the year %d is written in four digits", year)
		}
	}
}
