package ra

import (
	"time"

	"github.com/brevet-pki/brevet/ca"
)

// A device renews its certificate after 60 to 73 percent of the lifetime. This spreads the renewals of devices that
// enrolled at the same time, and leaves more than a quarter of the lifetime to survive an outage.
const (
	renewalStart = 0.60
	renewalEnd   = 0.7333
)

// RenewalWindow returns the times between which the holder of c should renew it, by the server's clock. The lifetime
// starts at c.IssuedAt and not at NotBefore, which the profile may backdate.
func RenewalWindow(c ca.Certificate) (start, end time.Time) {
	life := c.NotAfter.Sub(c.IssuedAt)
	part := func(share float64) time.Time { return c.IssuedAt.Add(time.Duration(share * float64(life))) }
	return part(renewalStart), part(renewalEnd)
}
