package crl

import (
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// maxExtensions is the maximum size of a CRL's extensions, in bytes. They contain the URLs of a distribution point.
const maxExtensions = 1 << 20

// maxElements is the maximum number of elements in a TBSCertList (RFC 5280 §5.1). It limits the work for a hostile
// file.
const maxElements = 7

// metadata holds the number and the issuing distribution point of a CRL.
type metadata struct {
	number *big.Int
	point  []byte // DER of the issuing distribution point, or nil
}

var errNoCRL = errors.New("it is not a complete CRL with a number")

// readMetadata reads the metadata of a CRL of size bytes. It skips the entries. It checks the lengths, but not the
// signature.
func readMetadata(r io.ReaderAt, size int64) (metadata, error) {
	outer, err := readElement(r, 0, size, tagSequence)
	if err != nil || outer.end != size {
		return metadata{}, errors.Join(errNoCRL, err)
	}
	tbs, err := readElement(r, outer.begin, outer.end, tagSequence)
	if err != nil {
		return metadata{}, errors.Join(errNoCRL, err)
	}
	for at, n := tbs.begin, 0; at < tbs.end && n < maxElements; n++ {
		e, err := readElement(r, at, tbs.end, 0)
		if err != nil {
			return metadata{}, errors.Join(errNoCRL, err)
		}
		if e.tag == tagExtensions && e.end-e.begin <= maxExtensions {
			content := make([]byte, e.end-e.begin)
			if _, err := r.ReadAt(content, e.begin); err != nil && !errors.Is(err, io.EOF) {
				return metadata{}, err
			}
			return parseExtensions(content)
		}
		at = e.end
	}
	return metadata{}, errNoCRL
}

// element holds the tag of a DER element, and the offsets of the element's content in a file.
type element struct {
	tag        byte
	begin, end int64
}

// readElement reads the tag and the length of the element at an offset. It returns an error if the element ends after
// limit, or if tag is not zero and differs from the element's tag.
func readElement(r io.ReaderAt, at, limit int64, tag byte) (element, error) {
	var b [10]byte
	n, err := r.ReadAt(b[:min(int64(len(b)), max(limit-at, 0))], at)
	if n < 2 {
		return element{}, fmt.Errorf("it ends at %d: %w", at+int64(n), errors.Join(err, io.ErrUnexpectedEOF))
	}
	e := element{tag: b[0], begin: at + 2}
	length := int64(b[1])
	if length >= 0x80 {
		lengthBytes := int(length) - 0x80
		if lengthBytes < 1 || lengthBytes > 7 || n < 2+lengthBytes {
			return element{}, fmt.Errorf("the length at %d is not DER", at)
		}
		length = 0
		for _, b := range b[2 : 2+lengthBytes] {
			length = length<<8 | int64(b)
		}
		e.begin += int64(lengthBytes)
	}
	if e.end = e.begin + length; e.end > limit || tag != 0 && e.tag != tag {
		return element{}, fmt.Errorf("at %d is tag %02x with %d bytes", at, e.tag, length)
	}
	return e, nil
}

func parseExtensions(extensions cryptobyte.String) (metadata, error) {
	var h metadata
	var list cryptobyte.String
	if !extensions.ReadASN1(&list, cbasn1.SEQUENCE) {
		return h, errNoCRL
	}
	for !list.Empty() {
		var extension, value cryptobyte.String
		var oid asn1.ObjectIdentifier
		var critical bool
		if !list.ReadASN1(&extension, cbasn1.SEQUENCE) || !extension.ReadASN1ObjectIdentifier(&oid) ||
			extension.PeekASN1Tag(cbasn1.BOOLEAN) && !extension.ReadASN1Boolean(&critical) || !extension.ReadASN1(&value, cbasn1.OCTET_STRING) {
			return h, errNoCRL
		}
		switch {
		case oid.Equal(oidCRLNumber):
			h.number = new(big.Int)
			if !value.ReadASN1Integer(h.number) || !fitsNumber(h.number) {
				return h, errNoCRL
			}
		case oid.Equal(oidDistributionPoint):
			h.point = value
		}
	}
	if h.number == nil {
		return h, errNoCRL
	}
	return h, nil
}

// ReadNumber returns the number of a CRL of size bytes. It reads only the lengths and the extensions. It checks that
// the CRL is complete, but not its signature.
func ReadNumber(r io.ReaderAt, size int64) (*big.Int, error) {
	h, err := readMetadata(r, size)
	return h.number, err
}

// numberOf closes a file and returns the number of the CRL in it. It returns nil if the file contains no complete CRL.
func numberOf(file *os.File, err error) *big.Int {
	if err != nil {
		return nil
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil
	}
	number, err := ReadNumber(file, info.Size())
	if err != nil {
		return nil
	}
	return number
}
