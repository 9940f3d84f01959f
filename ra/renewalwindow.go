package ra

import (
	"time"

	"github.com/brevet-pki/brevet/ca"
)

// A certificate is renewed after 60 to 73 percent of its life: a fleet that enrolled within one hour is spread over more
// than one, and over a quarter is left for an outage.
const (
	renewalStart = 0.60
	renewalEnd   = 0.7333
)

// RenewalWindow returns when the holder of a certificate is to renew it, by the server's clock. The life of a certificate
// begins when it was issued: what its profile backdates is no part of it.
func RenewalWindow(c ca.Certificate) (start, end time.Time) {
	life := c.NotAfter.Sub(c.IssuedAt)
	part := func(share float64) time.Time { return c.IssuedAt.Add(time.Duration(share * float64(life))) }
	return part(renewalStart), part(renewalEnd)
}
