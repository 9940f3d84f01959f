package pki_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
)

var issuedAt = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

func randomSerial(t *rapid.T, at time.Time) pki.Serial {
	serial, err := pki.MakeSerial(at, [pki.SerialRandomSize]byte(rapid.SliceOfN(rapid.Byte(), pki.SerialRandomSize, pki.SerialRandomSize).Draw(t, "random")))
	if err != nil {
		t.Fatal(err)
	}
	return serial
}

func TestRenewalWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		serial := randomSerial(t, issuedAt)
		if got := serial.Time(); !got.Equal(issuedAt) {
			t.Fatalf("the time in the serial number is %s", got)
		}
		life := time.Duration(rapid.Int64Range(int64(time.Second), int64(20*365*24*time.Hour)).Draw(t, "life"))
		w := pki.RenewalWindowOf(serial, issuedAt.Add(life))
		from, until := float64(w.Start.Sub(issuedAt))/float64(life), float64(w.End.Sub(issuedAt))/float64(life)
		if from < 0.599 || until > 0.734 || until <= from {
			t.Fatalf("the window of a lifetime of %s is from %f to %f of it", life, from, until)
		}
		if again := pki.RenewalWindowOf(serial, issuedAt.Add(life)); again != w {
			t.Fatalf("the window is %v, and then %v", w, again)
		}
	})
}

// The windows of a fleet that enrolled in one millisecond are spread evenly, although the serial numbers differ little.
func TestRenewalWindowsAreSpread(t *testing.T) {
	var tenths [10]int
	const period = time.Hour
	for n := range 10_000 {
		serial, err := pki.MakeSerial(issuedAt, [pki.SerialRandomSize]byte{byte(n), byte(n >> 8)})
		if err != nil {
			t.Fatal(err)
		}
		w := pki.WindowWithin(serial, issuedAt, period)
		middle := w.Start.Add(w.End.Sub(w.Start) / 2).Sub(issuedAt)
		if w.Start.Before(issuedAt) || w.End.After(issuedAt.Add(period)) {
			t.Fatalf("a window from %s to %s is not in a period of %s", w.Start.Sub(issuedAt), w.End.Sub(issuedAt), period)
		}
		tenths[(middle-period/16)*10/(period-period/8)]++
	}
	for i, n := range tenths {
		if n < 850 || n > 1150 {
			t.Errorf("%d of 10000 windows are in tenth %d", n, i)
		}
	}
}

// A serial number of another CA may have any time in it.
func TestRenewalWindowOfForeignSerial(t *testing.T) {
	serial, err := pki.ParseSerial("7fffffffffff0102030405060708090a0b0c0d0e")
	if err != nil {
		t.Fatal(err)
	}
	if w := pki.RenewalWindowOf(serial, issuedAt); !w.Start.Equal(issuedAt) || !w.End.Equal(issuedAt) {
		t.Errorf("the window is from %s to %s", w.Start, w.End)
	}
}
