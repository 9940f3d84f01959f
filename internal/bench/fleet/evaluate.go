package fleet

import (
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Outcome is how a fleet returned.
type Outcome struct {
	Overdue int // devices whose renewal was overdue at the end of the outage, or whose certificate had expired
	Expired int // of them, devices whose certificate had expired
	// Whole is the time from the end of the outage until all of these devices had a new certificate.
	Whole time.Duration
	// Lost is the number of devices whose certificate was valid at the end of the outage, and expired before they had a
	// new one.
	Lost int
	// Avoidable is the number of lost devices that would have had a certificate in time if the server had issued the
	// certificates one after the other at its rate, those that expire first first. A device does not count if it made
	// its first request too late: all devices of the measurement share the processors of one machine.
	Avoidable int
	// Order is the rank correlation (Spearman) between the expiry of the certificates that were valid at the end of the
	// outage and the times of the new ones. It is 1 if those that expire first were renewed first, and 0 if there is no
	// order.
	Order float64
}

// returned is a device with the times of its first request and of its new certificate.
type returned struct {
	Device
	first, renewed time.Time
}

// Evaluate computes the outcome for devices that had no connection until begin. rate is that of the server, in
// certificates per second. Evaluate returns an error if a device whose renewal is overdue got no certificate.
func Evaluate(devices map[int]Device, events []Event, begin time.Time, rate float64) (Outcome, error) {
	if !(rate > 0) {
		return Outcome{}, errors.New("the rate of the server was not measured")
	}
	first, renewed := map[int]time.Time{}, map[int]time.Time{}
	for _, e := range events {
		to := first
		if e.Issued {
			to = renewed
		}
		if _, ok := to[e.Device]; !ok {
			to[e.Device] = e.At
		}
	}
	var o Outcome
	var valid []returned // and overdue
	for _, n := range slices.Sorted(maps.Keys(devices)) {
		d := devices[n]
		if !d.Overdue(begin) {
			continue
		}
		o.Overdue++
		at, ok := renewed[n]
		if !ok {
			return o, fmt.Errorf("device %d got no certificate", n)
		}
		o.Whole = max(o.Whole, at.Sub(begin))
		if d.NotAfter.Before(begin) {
			o.Expired++
		} else {
			valid = append(valid, returned{d, first[n], at})
		}
	}
	slices.SortStableFunc(valid, func(a, b returned) int { return a.NotAfter.Compare(b.NotAfter) })
	o.Order = order(valid)
	for _, r := range valid {
		if r.renewed.After(r.NotAfter) {
			o.Lost++
		}
	}
	o.Avoidable = avoidable(valid, rate)
	return o, nil
}

// avoidable returns how many lost devices would have had a certificate in time from a server that issues them one after
// the other at the rate: first the one that expires first, of the devices that have made their first request.
func avoidable(valid []returned, rate float64) (lost int) {
	each := time.Duration(float64(time.Second) / rate)
	arriving := slices.SortedStableFunc(slices.Values(valid), func(a, b returned) int { return a.first.Compare(b.first) })
	var waiting queue
	var now time.Time
	for len(arriving) > 0 || len(waiting) > 0 {
		if len(waiting) == 0 && now.Before(arriving[0].first) {
			now = arriving[0].first
		}
		for len(arriving) > 0 && !arriving[0].first.After(now) {
			heap.Push(&waiting, arriving[0])
			arriving = arriving[1:]
		}
		next := heap.Pop(&waiting).(returned) //nolint:forcetypeassert // it contains nothing else
		if now.Add(each).After(next.NotAfter) {
			continue // it cannot be saved any more
		}
		now = now.Add(each)
		if next.renewed.After(next.NotAfter) {
			lost++
		}
	}
	return lost
}

// queue is a heap.Interface of devices, with the one that expires first in front.
type queue []returned

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].NotAfter.Before(q[j].NotAfter) }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }

// Push implements heap.Interface.
func (q *queue) Push(x any) { *q = append(*q, x.(returned)) } //nolint:forcetypeassert // it contains nothing else

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

// order returns the rank correlation of expiry and renewal of devices that are sorted by expiry, and zero if there are
// fewer than two.
func order(valid []returned) float64 {
	n := len(valid)
	if n < 2 {
		return 0
	}
	byRenewal := make([]int, n)
	for i := range byRenewal {
		byRenewal[i] = i
	}
	slices.SortStableFunc(byRenewal, func(a, b int) int { return cmp.Compare(valid[a].renewed.UnixNano(), valid[b].renewed.UnixNano()) })
	var squares float64
	for rank, i := range byRenewal {
		d := float64(rank - i)
		squares += d * d
	}
	return 1 - 6*squares/(float64(n)*(float64(n)*float64(n)-1))
}
