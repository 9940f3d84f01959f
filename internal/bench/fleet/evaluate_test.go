package fleet

import (
	"testing"
	"time"
)

var begin = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// A server of one certificate a second, and devices that expire after some seconds. Each got its certificate at a time.
func TestEvaluate(t *testing.T) {
	at := func(seconds float64) time.Time { return begin.Add(time.Duration(seconds * float64(time.Second))) }
	for name, c := range map[string]struct {
		expire, renewed []float64 // seconds after the outage
		first           []float64 // first requests; at once if nil
		want            Outcome
	}{
		"in order":              {[]float64{2, 3, 4}, []float64{1, 2, 3}, nil, Outcome{Overdue: 3, Whole: 3 * time.Second, Order: 1}},
		"in the reverse order":  {[]float64{2, 3, 4}, []float64{3, 2, 1}, nil, Outcome{Overdue: 3, Whole: 3 * time.Second, Order: -1, Lost: 1, Avoidable: 1}},
		"expired before":        {[]float64{-5, 9, 10}, []float64{3, 1, 2}, nil, Outcome{Overdue: 3, Expired: 1, Whole: 3 * time.Second, Order: 1}},
		"too many at once":      {[]float64{1.5, 1.6, 9}, []float64{1, 2, 3}, nil, Outcome{Overdue: 3, Whole: 3 * time.Second, Order: 1, Lost: 1}},
		"the wrong one is lost": {[]float64{1.5, 1.6, 2.5}, []float64{1, 2, 3}, nil, Outcome{Overdue: 3, Whole: 3 * time.Second, Order: 1, Lost: 2, Avoidable: 1}},
		"too late to be saved":  {[]float64{1.5, 1.6, 9}, []float64{2, 3, 4}, []float64{1, 0.5, 0}, Outcome{Overdue: 3, Whole: 4 * time.Second, Order: 1, Lost: 2}},
		"in time to be saved":   {[]float64{2.5, 9, 9}, []float64{3, 1, 2}, []float64{1, 0, 0}, Outcome{Overdue: 3, Whole: 3 * time.Second, Order: -0.5, Lost: 1, Avoidable: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			devices := map[int]Device{99: {NotAfter: at(3600), RenewBy: at(600)}} // not overdue
			var events []Event
			for n := range c.expire {
				first := 0.0
				if c.first != nil {
					first = c.first[n]
				}
				devices[n] = Device{NotAfter: at(c.expire[n]), RenewBy: at(-60)}
				events = append(events, Event{n, at(first), false}, Event{n, at(c.renewed[n]), true}, Event{n, at(100), true})
			}
			if got, err := Evaluate(devices, events, begin, 1); err != nil || got != c.want {
				t.Errorf("Evaluate = %+v, %v, want %+v", got, err, c.want)
			}
			if _, err := Evaluate(devices, events[3:], begin, 1); err == nil {
				t.Error("Evaluate accepts a device without a certificate")
			}
		})
	}
	if _, err := Evaluate(nil, nil, begin, 0); err == nil {
		t.Error("Evaluate accepts a rate that was not measured")
	}
}
