package enroll

import "time"

// AskEvery makes an agent that does not run yet ask for the renewal window at this interval, however long certificates
// live.
func (a *Agent) AskEvery(interval time.Duration) {
	a.polling.min, a.polling.max = interval, interval
}
