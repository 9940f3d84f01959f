package enroll

import "time"

// PollEvery makes an agent that does not run yet poll its renewal window at this interval, however long certificates live.
func (a *Agent) PollEvery(interval time.Duration) {
	a.polling.min, a.polling.max = interval, interval
}
