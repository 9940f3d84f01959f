package rotation

import (
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// The range of the interval at which a holder should poll the renewal window.
const (
	minRetry = 10 * time.Minute
	maxRetry = 6 * time.Hour
)

// pastWindow is the length of a window in the past.
const pastWindow = time.Minute

// RenewalInfo returns when a certificate should be renewed, and after which time the holder should poll again. It reads
// only memory. The time after which to poll is in whole seconds. For a certificate that is not on record, the error is a
// refusal (not_found).
func (m *Manager) RenewalInfo(ref pki.CertRef) (start, end time.Time, retryAfter time.Duration, err error) {
	c, known := m.statuses.Record(ref)
	if !known {
		return start, end, 0, pki.Refuse(pki.RuleNotFound, "send an unexpired certificate of this CA",
			"there is no record of the certificate %s", ref.Serial)
	}
	retryAfter = min(max(c.NotAfter.Sub(ref.Serial.Time())/10, minRetry), maxRetry).Truncate(time.Second)
	if c.Status.State == pki.Revoked {
		return c.Status.RevokedAt.Add(-pastWindow), c.Status.RevokedAt, retryAfter, nil
	}
	w := pki.RenewalWindowOf(ref.Serial, c.NotAfter)
	for i := range m.periods {
		if c.Marks>>i&1 == 0 {
			continue
		}
		if p := m.periods[i].Load(); p != nil {
			w = w.Earlier(pki.WindowWithin(ref.Serial, p.start, p.over))
		}
	}
	return w.Start, w.End, retryAfter, nil
}
