package fair

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
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

// TestBoundsHold runs random operations, and checks the limits after each operation.
func TestBoundsHold(t *testing.T) {
	t.Parallel()
	size := Size{Slots: 4, Each: 2, Queue: 12}
	q := NewQueue[int, int](size)
	working, items := map[int]int{}, []*Item[int, int]{}
	all := 0
	for step := range 20_000 {
		from := rand.IntN(6)
		switch rand.IntN(5) {
		case 0:
			if q.Begin(from) {
				working[from]++
			}
		case 1:
			before := q.WaitingOf(from)
			if i := q.Wait(from, from); i != nil {
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
