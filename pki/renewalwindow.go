package pki

import (
	"crypto/sha256"
	"encoding/binary"
	"time"
)

// A certificate is renewed after 60 to 73 percent of its lifetime. This leaves more than a quarter of the lifetime to
// survive an outage.
const (
	renewalStart = 0.60
	renewalEnd   = 0.7333
)

// windowShare is the length of a renewal window, as a share of the period in which the windows of a fleet lie.
const windowShare = 0.125

// RenewalWindow is the time span in which the holder of a certificate should renew it, by the server's clock. The holder
// chooses a random time in it. The zero value is no window.
type RenewalWindow struct{ Start, End time.Time }

// RenewalWindowOf returns the renewal window of a certificate that is neither revoked nor to be rotated. It depends only
// on the certificate. The windows of certificates that were issued at the same time have different places in the period
// from 60 to 73 percent of the lifetime. The lifetime starts at the time in the serial number and not at notBefore,
// which the profile may back-date.
func RenewalWindowOf(serial Serial, notAfter time.Time) RenewalWindow {
	issued := serial.Time()
	life := float64(notAfter.Sub(issued))
	if life <= 0 {
		return RenewalWindow{notAfter, notAfter} // the serial number is of another CA
	}
	return WindowWithin(serial, issued.Add(time.Duration(renewalStart*life)), time.Duration((renewalEnd-renewalStart)*life))
}

// WindowWithin returns the renewal window of a certificate in a period that begins at the given time. The windows of all
// certificates are spread over the period, and the place of each depends only on its serial number.
func WindowWithin(serial Serial, begin time.Time, period time.Duration) RenewalWindow {
	length := time.Duration(windowShare * float64(period))
	start := begin.Add(time.Duration(serial.spread() * float64(period-length)))
	return RenewalWindow{start, start.Add(length)}
}

// spread returns a number in [0, 1) that depends only on the serial number. It is a hash, because not every serial number
// is random in all its bytes.
func (s Serial) spread() float64 {
	h := sha256.Sum256(s.b[:])
	return float64(binary.BigEndian.Uint64(h[:8])>>11) / (1 << 53)
}

// Earlier returns the window that starts first.
func (w RenewalWindow) Earlier(other RenewalWindow) RenewalWindow {
	if other.Start.Before(w.Start) {
		return other
	}
	return w
}
