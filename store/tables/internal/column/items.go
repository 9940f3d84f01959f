package column

import (
	"encoding/binary"
	"errors"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/engine"
)

// The items of an intent are encoded as one blob, which is written and deleted once for each batch:
//
//	uvarint    number of issuers, then 32 bytes for each
//	uvarint    number of items, then for each of them:
//	uvarint      index of its issuer in the list above
//	20 bytes    serial number
//	varint       time of issue in milliseconds
//	varint       notAfter in milliseconds
//	uvarint      CRL partition
//	uvarint      length of the digest, then the digest

var errItems = errors.New("the items of an intent are damaged: restore the store from a backup")

// EncodeItems encodes the items of an intent.
func EncodeItems(items []ca.IntentItem) []byte {
	indexes := map[pki.IssuerID]uint64{}
	var issuers, body []byte
	for _, item := range items {
		index, ok := indexes[item.Ref.Issuer]
		if !ok {
			index = uint64(len(indexes))
			indexes[item.Ref.Issuer] = index
			issuers = append(issuers, item.Ref.Issuer.Bytes()...)
		}
		body = binary.AppendUvarint(body, index)
		body = append(body, item.Ref.Serial.Bytes()...)
		body = binary.AppendVarint(body, engine.Millis(item.IssuedAt))
		body = binary.AppendVarint(body, engine.Millis(item.NotAfter))
		body = binary.AppendUvarint(body, uint64(item.Partition))
		body = binary.AppendUvarint(body, uint64(len(item.Digest)))
		body = append(body, item.Digest...)
	}
	blob := binary.AppendUvarint(nil, uint64(len(indexes)))
	blob = append(blob, issuers...)
	blob = binary.AppendUvarint(blob, uint64(len(items)))
	return append(blob, body...)
}

// DecodeItems decodes the result of [EncodeItems].
func DecodeItems(blob []byte) ([]ca.IntentItem, error) {
	d := decoder{rest: blob}
	var issuers []pki.IssuerID
	for n := d.uvarint(); n > 0 && !d.bad; n-- {
		issuer, err := pki.IssuerIDFromBytes(d.take(32))
		d.bad = d.bad || err != nil
		issuers = append(issuers, issuer)
	}
	var items []ca.IntentItem
	for n := d.uvarint(); n > 0 && !d.bad; n-- {
		items = append(items, d.item(issuers))
	}
	if d.bad || len(d.rest) > 0 {
		return nil, errItems
	}
	return items, nil
}

// decoder reads a blob from its start. After a failure, bad is true and all values are zero.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) item(issuers []pki.IssuerID) ca.IntentItem {
	index := d.uvarint()
	serial, err := pki.SerialFromBytes(d.take(pki.SerialSize))
	if err != nil || index >= uint64(len(issuers)) {
		d.bad = true
		return ca.IntentItem{}
	}
	item := ca.IntentItem{Ref: pki.CertRef{Issuer: issuers[index], Serial: serial}}
	item.IssuedAt = engine.FromMillis(d.varint())
	item.NotAfter = engine.FromMillis(d.varint())
	partition := d.uvarint()
	d.bad = d.bad || partition > 1<<16-1
	item.Partition = uint16(partition) //nolint:gosec // checked above
	item.Digest = append([]byte(nil), d.take(d.uvarint())...)
	return item
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.rest)
	return v * d.advance(n)
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.rest)
	return v * int64(d.advance(n)) //nolint:gosec // 0 or 1
}

// advance skips the n bytes of a number and returns 1. If n shows that there is no number, it returns 0.
func (d *decoder) advance(n int) uint64 {
	if n <= 0 {
		d.bad, d.rest = true, nil
		return 0
	}
	d.rest = d.rest[n:]
	return 1
}

func (d *decoder) take(n uint64) []byte {
	if n > uint64(len(d.rest)) {
		d.bad, d.rest = true, nil
		return nil
	}
	head := d.rest[:n]
	d.rest = d.rest[n:]
	return head
}
