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

// All devices renew at the same moment, at a server with a slow HSM. The test uses the server's queue and the agent's
// delays, in the time of a synctest bubble. Its numbers are therefore exact.
func TestFleetRenewingAtOnceIsServed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		devices, slots, queue int
		signature             time.Duration // time for one signature in a slot
	}{
		{10_000, 64, 1024, 128 * time.Millisecond}, // 500 signatures per second
		{2_000, 8, 1024, 200 * time.Millisecond},   // 40 signatures per second: most devices are rejected repeatedly
	} {
		t.Run(fmt.Sprint(c.devices), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := &fleet{queue: admission.NewQueue("renewals", admission.Size{Slots: c.slots, Each: 1, Queue: c.queue}), signature: c.signature}
				f.wakeUp(t, c.devices)
				f.check(t, c.devices, c.slots)
			})
		})
	}
}

// fleet simulates devices without disks and network, and counts their requests.
type fleet struct {
	queue     *admission.Queue
	signature time.Duration
	start     time.Time

	mu       sync.Mutex
	calls    map[int]int // number of requests in each second since the start
	served   int
	tries    int // tries of all devices
	maxTries int // most tries of one device
	last     time.Duration
}

func (f *fleet) wakeUp(t *testing.T, devices int) {
	f.start, f.calls = time.Now(), map[int]int{}
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

// device renews until it succeeds, with the delays of an Agent that has no certificate.
func (f *fleet) device(t *testing.T, id admission.Source) {
	for tries := 1; ; tries++ {
		f.mu.Lock()
		f.calls[int(time.Since(f.start)/time.Second)]++
		f.mu.Unlock()
		err := f.renew(t, id)
		if err == nil {
			f.count(tries)
			return
		}
		if final(err) || pki.RetryAfter(err) <= 0 {
			t.Errorf("a device is rejected without a delay: %v", err)
			return
		}
		time.Sleep(delay(tries, err, nil, time.Now()))
	}
}

func (f *fleet) count(tries int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.served++
	f.tries += tries
	f.maxTries, f.last = max(f.maxTries, tries), time.Since(f.start)
}

func (f *fleet) renew(t *testing.T, id admission.Source) error {
	leave, err := f.queue.Acquire(t.Context(), id)
	if err != nil {
		return err
	}
	defer leave()
	time.Sleep(f.signature)
	return nil
}

func (f *fleet) check(t *testing.T, devices, slots int) {
	perSecond := float64(slots) / f.signature.Seconds()
	least := time.Duration(float64(devices) / perSecond * float64(time.Second))
	herd := 0
	for second, n := range f.calls {
		if second > 0 {
			herd = max(herd, n)
		}
	}
	t.Logf("%d of %d devices renewed, the last after %s (the HSM needs %s), in %.1f tries on average, %d at most, %d requests in the worst second (the HSM signs %.0f)",
		f.served, devices, f.last, least, float64(f.tries)/float64(devices), f.maxTries, herd, perSecond)
	if f.served != devices {
		t.Errorf("%d of %d devices have a certificate", f.served, devices)
	}
	if f.last > least*3/2 {
		t.Error("the HSM is idle while devices wait")
	}
	if f.tries > 3*devices || f.maxTries > 8 {
		t.Error("devices are rejected too often")
	}
	if herd > devices/2 {
		t.Error("rejected devices return together")
	}
}
