package fair

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSourcesAreServedRoundRobin(t *testing.T) {
	t.Parallel()
	q := NewQueue[string, int](Size{Slots: 1, Each: 1, Queue: 100})
	if !q.Begin("loud") || q.Begin("loud") || q.Begin("quiet") {
		t.Fatal("one slot admits another number of items than one")
	}
	for n := range 10 {
		q.Wait("loud", n)
	}
	for n := range 3 {
		q.Wait("quiet", 100+n)
	}
	withdrawn := q.Wait("withdrawn", 200)
	if !q.Withdraw(withdrawn) || q.Withdraw(withdrawn) {
		t.Error("an item can be withdrawn never or twice")
	}
	if _, _, ok := q.Next(); ok {
		t.Error("Next returned an item without a free slot")
	}
	var order []int
	for from := "loud"; ; {
		q.End(from)
		next, n, ok := q.Next()
		if !ok {
			break
		}
		from, order = next, append(order, n)
	}
	if want := []int{100, 0, 101, 1, 102, 2, 3, 4, 5, 6, 7, 8, 9}; !slices.Equal(order, want) {
		t.Errorf("items were served in the order %v, want %v", order, want)
	}
	if q.Sources()+q.Working()+q.Waiting() != 0 {
		t.Errorf("%d sources, %d items in process and %d waiting remain", q.Sources(), q.Working(), q.Waiting())
	}
}

// TestItemsWithATimeComeFirst checks that items are served in the order of their times, and that an item displaces one with a
// later time, or none, from a full queue.
func TestItemsWithATimeComeFirst(t *testing.T) {
	t.Parallel()
	at := func(minute int) time.Time { return time.Unix(0, 0).Add(time.Duration(minute) * time.Minute) }
	q := NewQueue[string, int](Size{Slots: 1, Each: 1, Queue: 5})
	q.Begin("first")
	for _, i := range []struct {
		from  string
		until time.Time
		work  int
	}{{"none", time.Time{}, 0}, {"far", at(30), 30}, {"near", at(10), 10}, {"also", at(10), 11}} {
		if q.WaitUntil(i.from, i.until, i.work) == nil {
			t.Fatalf("%s does not get a place", i.from)
		}
	}
	if _, ok := q.Displace("now", at(1)); ok {
		t.Error("an item is displaced although there is a place")
	}
	q.WaitUntil("farthest", at(40), 40)
	for _, want := range []int{0, 40} {
		if q.WaitUntil("soon", at(20), 20) != nil {
			t.Fatal("a full queue has a place")
		}
		if got, ok := q.Displace("soon", at(20)); !ok || got != want {
			t.Errorf("%d is displaced (%t), want %d", got, ok, want)
		}
		if q.WaitUntil(fmt.Sprint("soon", want), at(20), 20) == nil {
			t.Fatal("a displaced item leaves no place")
		}
	}
	for _, until := range []time.Time{{}, at(30), at(31)} {
		if got, ok := q.Displace("late", until); ok {
			t.Errorf("an item with the time %v displaces %d", until, got)
		}
	}
	var order []int
	for from := "first"; ; {
		q.End(from)
		next, n, ok := q.Next()
		if !ok {
			break
		}
		from, order = next, append(order, n)
	}
	if want := []int{10, 11, 20, 20, 30}; !slices.Equal(order, want) {
		t.Errorf("items were served in the order %v, want %v", order, want)
	}
}

// TestFloodsLeavePlaces checks that each of many sources gets a place and is served, in the order of their times, while sources
// with earlier times add as many items as they can. A round has at most as many turns as the queue has places.
func TestFloodsLeavePlaces(t *testing.T) {
	t.Parallel()
	const places, slots, floods = 256, 4, 12
	soon, late := time.Unix(1000, 0), time.Unix(2000, 0)
	q := NewQueue[string, string](Size{Slots: slots, Each: 1, Queue: places})
	var running []string
	waiting := 0
	for n := range floods {
		from := fmt.Sprint("flood ", n)
		if q.Begin(from) {
			running = append(running, from)
		}
		for q.WaitUntil(from, soon, from) != nil {
		}
		waiting += min(1, q.WaitingOf(from))
	}
	if q.Waiting() != places || len(running) != slots {
		t.Fatalf("the floods fill %d places and %d slots", q.Waiting(), len(running))
	}
	var want []string
	add := func(from string, until time.Time, displaces string) {
		t.Helper()
		displaced, ok := q.Displace(from, until)
		if !ok || !strings.HasPrefix(displaced, displaces) || q.WaitUntil(from, until, from) == nil {
			t.Fatalf("%s displaces %q (%t), want %q", from, displaced, ok, displaces)
		}
	}
	for n := range places - waiting { // until each source has one item
		from := fmt.Sprint("source ", n)
		add(from, late.Add(-time.Duration(n)*time.Second), "flood")
		want = append(want, from)
	}
	slices.Reverse(want)
	for n, from := range running { // those at their limit
		more := fmt.Sprint("more ", n)
		add(more, late.Add(time.Duration(n+1)*time.Second), "flood")
		want = append(want, more)
		if q.WaitingOf(from) > 0 && n == slots-1 {
			t.Errorf("%s has an item in process, and another one in a full queue", from)
		}
	}
	if displaced, ok := q.Displace("too late", late.Add(time.Hour)); ok {
		t.Errorf("a source with the latest time displaces %s", displaced)
	}
	add("another", late, want[len(want)-1])
	want = slices.Insert(want[:len(want)-1], len(want)-slots, "another")

	var order []string
	served := map[string]int{}
	for turns := 1; len(order) < len(want); turns++ {
		q.End(running[0])
		running = running[1:]
		from, _, ok := q.Next()
		if !ok {
			t.Fatalf("no item is served after %d of %d", len(order), len(want))
		}
		running = append(running, from)
		if !strings.HasPrefix(from, "flood") {
			order = append(order, from)
		} else if served[from]++; served[from] > 1+turns/places {
			t.Fatalf("%s is served again after %d of %d sources", from, len(order), len(want))
		}
		for n := range floods {
			q.WaitUntil(fmt.Sprint("flood ", n), soon, fmt.Sprint("flood ", n))
		}
	}
	if !slices.Equal(order, want) {
		t.Errorf("the sources were served in the order %v, want %v", order, want)
	}
}

// TestLimit lowers the maximum of waiting items below their number, and raises it again. The items stay. An urgent one takes the
// place of the last, and other ones get none before there are fewer.
func TestLimit(t *testing.T) {
	t.Parallel()
	q := NewQueue[string, string](Size{Slots: 1, Each: 1, Queue: 6})
	at := func(second int64) time.Time { return time.Unix(second, 0) }
	var order []string
	serve := func(n int) {
		for range n {
			from, _, ok := q.Next()
			if !ok {
				t.Fatalf("no item is served after %v", order)
			}
			order = append(order, from)
			q.End(from)
		}
	}
	mustWait := func(from string, until time.Time, want bool) {
		t.Helper()
		if got := q.WaitUntil(from, until, from) != nil; got != want {
			t.Errorf("%s waits: %t, want %t", from, got, want)
		}
	}
	for second, from := range []string{"a", "b", "c", "d", "e"} {
		mustWait(from, at(int64(second+1)), true)
	}
	q.Limit(3)
	mustWait("late", at(9), false)
	if from, ok := q.Displace("late", at(9)); ok {
		t.Errorf("the latest item displaces %s", from)
	}
	if from, ok := q.Displace("urgent", at(0)); !ok || from != "e" {
		t.Errorf("the urgent item displaces %q (%t), want the last", from, ok)
	}
	mustWait("urgent", at(0), true)
	serve(2)
	q.Limit(3)
	mustWait("late", at(9), false)
	serve(1)
	q.Limit(3)
	mustWait("late", at(9), true)
	serve(3)
	if !slices.Equal(order, []string{"urgent", "a", "b", "c", "d", "late"}) || q.Waiting() != 0 {
		t.Errorf("the items are served in the order %v, and %d wait", order, q.Waiting())
	}
}

// TestBoundsHold runs random operations, and checks the limits after each operation.
func TestBoundsHold(t *testing.T) {
	t.Parallel()
	size := Size{Slots: 4, Each: 2, Queue: 12}
	q := NewQueue[int, int](size)
	working, items := map[int]int{}, []*Item[int, int]{}
	all := 0
	for step := range 20_000 {
		from := rand.IntN(6)
		var until time.Time
		if rand.IntN(2) == 0 {
			until = time.Unix(rand.Int64N(1000), 0)
		}
		switch rand.IntN(6) {
		case 5:
			if before := q.Waiting(); before == size.Queue {
				had := q.WaitingOf(from)
				if _, ok := q.Displace(from, until); ok != (q.Waiting() == before-1) || ok && had > 0 {
					t.Fatalf("step %d: Displace returns %t, and leaves %d of %d; the source has %d", step, ok, q.Waiting(), before, had)
				}
			}
		case 0:
			if q.Begin(from) {
				working[from]++
			}
		case 1:
			before := q.WaitingOf(from)
			if i := q.WaitUntil(from, until, from); i != nil {
				items = append(items, i)
			} else if before < size.Queue-q.Waiting() {
				t.Fatalf("step %d: a source with %d of %d waiting items is rejected", step, before, q.Waiting())
			}
		case 2:
			if len(items) > 0 {
				q.Withdraw(items[rand.IntN(len(items))])
			}
		case 3:
			if working[from] > 0 {
				working[from]--
				q.End(from)
			}
		case 4:
			if next, work, ok := q.Next(); ok {
				if next != work {
					t.Fatalf("step %d: an item of %d is returned for %d", step, work, next)
				}
				working[next]++
			}
		}
		all = 0
		for from, n := range working {
			if all += n; n > size.Each {
				t.Fatalf("step %d: %d items of source %d are in process", step, n, from)
			}
		}
		if all != q.Working() || all > size.Slots || q.Waiting() > size.Queue {
			t.Fatalf("step %d: %d in process, %d waiting, but Working returns %d", step, all, q.Waiting(), q.Working())
		}
	}
}

func TestHost(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "2001:db8:0:1:ffff::2": "2001:db8:0:1::", "fe80::1%eth0": "fe80::",
	} {
		if got := Host(netip.MustParseAddr(text)).String(); got != want {
			t.Errorf("Host(%s) = %s, want %s", text, got, want)
		}
	}
	if Host(netip.Addr{}).IsValid() {
		t.Error("the zero address has a host")
	}
}
