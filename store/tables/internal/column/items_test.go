package column

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

func drawItems(t *rapid.T) []ca.IntentItem {
	var issuers []pki.IssuerID
	for range 3 {
		id, err := pki.IssuerIDFromBytes(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "issuer"))
		if err != nil {
			t.Fatal(err)
		}
		issuers = append(issuers, id)
	}
	var items []ca.IntentItem
	for range rapid.IntRange(0, 9).Draw(t, "items") {
		octets := rapid.SliceOfN(rapid.Byte(), pki.SerialSize, pki.SerialSize).Draw(t, "serial")
		octets[0] = octets[0]&0x7f | 1
		serial, err := pki.SerialFromBytes(octets)
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, ca.IntentItem{
			Ref:       pki.CertRef{Issuer: rapid.SampledFrom(issuers).Draw(t, "which"), Serial: serial},
			Digest:    rapid.SliceOfN(rapid.Byte(), 0, 64).Draw(t, "digest"),
			IssuedAt:  time.UnixMilli(rapid.Int64Range(-1<<40, 1<<48).Draw(t, "issuedAt")).UTC(),
			NotAfter:  time.UnixMilli(rapid.Int64Range(-1<<40, 1<<48).Draw(t, "notAfter")).UTC(),
			Partition: rapid.Uint16().Draw(t, "partition"),
		})
	}
	return items
}

func TestItemsRoundTrip(t *testing.T) {
	same := []cmp.Option{cmpopts.EquateEmpty(), cmpopts.EquateComparable(pki.Serial{}, pki.IssuerID{})}
	rapid.Check(t, func(t *rapid.T) {
		items := drawItems(t)
		back, err := DecodeItems(EncodeItems(items))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(items, back, same...); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestDamagedItemsAreErrors(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		blob := EncodeItems(drawItems(t))
		if _, err := DecodeItems(blob[:rapid.IntRange(0, len(blob)-1).Draw(t, "length")]); err == nil {
			t.Fatal("items that were cut short decode")
		}
		if _, err := DecodeItems(append(blob, 0)); err == nil {
			t.Fatal("items with something behind them decode")
		}
		_, _ = DecodeItems(rapid.SliceOf(rapid.Byte()).Draw(t, "noise")) // must end, whatever it says
	})
}
