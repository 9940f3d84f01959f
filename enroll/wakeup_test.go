package enroll

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/admission"
)

// A fleet wakes up: all devices renew at the same moment, at a server whose token is slow, with the lane of that server
// and the waits of an agent. Time is not the machine's, so what it says here is exact.
func TestAFleetWakesUp(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		devices, slots, queue int
		signature             time.Duration // of each slot
	}{
		{10_000, 64, 1024, 128 * time.Millisecond}, // 500 a second
		{2_000, 8, 1024, 200 * time.Millisecond},   // 40 a second: most of those who wait are sent away again
	} {
		t.Run(fmt.Sprint(c.devices), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := &fleet{lane: admission.NewQueue("renewals", admission.Size{Slots: c.slots, Each: 1, Queue: c.queue}), signature: c.signature}
				f.wakeUp(t, c.devices)
				f.judge(t, c.devices, c.slots)
			})
		})
	}
}

// fleet is devices without disk and network, and how it goes with them.
type fleet struct {
	lane      *admission.Queue
	signature time.Duration
	begun     time.Time

	mu     sync.Mutex
	calls  map[int]int // in each second since the beginning
	served int
	tries  int // of all devices
	most   int // of one device
	last   time.Duration
}

func (f *fleet) wakeUp(t *testing.T, devices int) {
	f.begun, f.calls = time.Now(), map[int]int{}
	var group sync.WaitGroup
	for n := range devices {
		id, err := pki.SPIFFEIDIn("fleet.example", fmt.Sprintf("device/%d", n))
		if err != nil {
			t.Fatal(err)
		}
		group.Go(func() { f.device(t, admission.Identity(id, pki.KeyHash{})) })
	}
	group.Wait()
}

// device renews as an Agent does, with a certificate that has a day left.
func (f *fleet) device(t *testing.T, id admission.Source) {
	for tries := 1; ; tries++ {
		f.mu.Lock()
		f.calls[int(time.Since(f.begun)/time.Second)]++
		f.mu.Unlock()
		err := f.renew(t, id)
		if err == nil {
			f.done(tries)
			return
		}
		if final(err) || pki.RetryAfter(err) <= 0 {
			t.Errorf("a device is sent away with %v", err)
			return
		}
		time.Sleep(delay(tries, err, nil, time.Now()))
	}
}

func (f *fleet) done(tries int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.served++
	f.tries += tries
	f.most, f.last = max(f.most, tries), time.Since(f.begun)
}

func (f *fleet) renew(t *testing.T, id admission.Source) error {
	leave, err := f.lane.Enter(t.Context(), id)
	if err != nil {
		return err
	}
	defer leave()
	time.Sleep(f.signature)
	return nil
}

func (f *fleet) judge(t *testing.T, devices, slots int) {
	perSecond := float64(slots) / f.signature.Seconds()
	least := time.Duration(float64(devices) / perSecond * float64(time.Second))
	herd := 0
	for second, n := range f.calls {
		if second > 0 {
			herd = max(herd, n)
		}
	}
	t.Logf("%d of %d devices have a certificate, the last after %s (the token takes %s), in %.1f tries each, %d at most, %d calls in the worst second (the token signs %.0f)",
		f.served, devices, f.last, least, float64(f.tries)/float64(devices), f.most, herd, perSecond)
	if f.served != devices {
		t.Errorf("%d of %d devices have a certificate", f.served, devices)
	}
	if f.last > least*3/2 {
		t.Error("the token stands idle while devices stay away")
	}
	if f.tries > 3*devices || f.most > 8 {
		t.Error("devices are sent away again and again")
	}
	if herd > devices/2 {
		t.Error("those who were sent away come back together")
	}
}
