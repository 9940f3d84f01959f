package enroll

import (
	"testing"
	"time"
)

// A renewal is overdue when its time has passed. If the agent runs, the timeout of one RPC is added.
func TestOverdue(t *testing.T) {
	p := newTestCA(t).pairFor(t, "device/1")
	start, end := p.usableLife()
	life := end.Sub(start)
	planned := start.Add(life * 2 / 3)
	status := Status{Serial: p.Serial(), RenewAt: planned}
	for name, c := range map[string]struct {
		status  Status
		running bool
		at      time.Time
		overdue bool
	}{
		"before":                       {status, false, planned, false},
		"after, without an agent":      {status, false, planned.Add(time.Second), true},
		"after, while an agent runs":   {status, true, planned.Add(time.Second), false},
		"long after, while one runs":   {status, true, planned.Add(requestTimeout + time.Second), true},
		"of the certificate before":    {Status{Serial: "1", RenewAt: planned}, false, start.Add(life * 7 / 10), false},
		"the agent could not write it": {Status{Serial: "1", RenewAt: planned}, false, start.Add(life * 3 / 4), true},
		"no agent has run":             {Status{}, false, start.Add(life * 3 / 4), true},
	} {
		if got := c.status.Overdue(p, c.running, c.at); got.IsZero() == c.overdue {
			t.Errorf("%s: overdue since %s", name, got)
		}
	}
}
