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

// All devices renew at the same moment, at a server with a slow HSM. In some cases their certificates expire one after the
// other, and are to be renewed in this order. The test uses the server's queue and the agent's delays, in the time of a
// synctest bubble, so that the speed of the machine does not matter.
func TestFleetRenewingAtOnceIsServed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		devices, slots, queue int
		signature             time.Duration // time for one signature in a slot
		order                 float64       // least correlation of expiry and renewal; 0 if the queue does not know when they expire
	}{
		{10_000, 64, 1024, 128 * time.Millisecond, 0},   // 500 signatures per second
		{2_000, 8, 1024, 200 * time.Millisecond, 0},     // 40 signatures per second: most devices are rejected repeatedly
		{10_000, 64, 1024, 128 * time.Millisecond, 0.9}, // with random delays it is 0.95 to 0.96
		{2_000, 8, 1024, 200 * time.Millisecond, 0.5},   // likewise 0.60 to 0.65
	} {
		t.Run(fmt.Sprint(c.devices, c.order), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := &fleet{queue: admission.NewQueue("renewals", admission.Size{Slots: c.slots, Each: 1, Queue: c.queue}), signature: c.signature, inOrder: c.order > 0}
				f.wakeUp(t, c.devices)
				f.check(t, c.devices, c.slots)
				if order := f.order(); c.order > 0 && order < c.order {
					t.Errorf("the order of renewals is that of expiry by %.2f, want %.2f", order, c.order)
				}
			})
		})
	}
}

// fleet simulates devices without disks and network, and counts their requests.
type fleet struct {
	queue     *admission.Queue
	signature time.Duration
	inOrder   bool // the certificate of each device expires a second after that of the one before
	start     time.Time

	mu       sync.Mutex
	calls    map[int]int // number of requests in each second since the start
	served   int
	tries    int // tries of all devices
	maxTries int // most tries of one device
	last     time.Duration
	places   []int // of the devices, in the order in which they got certificates
}

func (f *fleet) wakeUp(t *testing.T, devices int) {
	f.start, f.calls = time.Now(), map[int]int{}
	var group sync.WaitGroup
	for n := range devices {
		id, err := pki.SPIFFEIDIn("fleet.example", fmt.Sprintf("device/%d", n))
		if err != nil {
			t.Fatal(err)
		}
		group.Go(func() { f.device(t, n, admission.Identity(id, pki.KeyHash{})) })
	}
	group.Wait()
}

// device renews until it succeeds, with the delays of an Agent that has no certificate.
func (f *fleet) device(t *testing.T, n int, id admission.Source) {
	for tries := 1; ; tries++ {
		f.mu.Lock()
		f.calls[int(time.Since(f.start)/time.Second)]++
		f.mu.Unlock()
		err := f.renew(t, n, id)
		if err == nil {
			f.count(n, tries)
			return
		}
		if final(err) || pki.RetryAfter(err) <= 0 {
			t.Errorf("a device is rejected without a delay: %v", err)
			return
		}
		time.Sleep(delay(tries, err, nil, time.Now()))
	}
}

func (f *fleet) count(n, tries int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.served++
	f.places = append(f.places, n)
	f.tries += tries
	f.maxTries, f.last = max(f.maxTries, tries), time.Since(f.start)
}

func (f *fleet) renew(t *testing.T, n int, id admission.Source) error {
	var until time.Time
	if f.inOrder {
		until = f.start.Add(time.Hour + time.Duration(n)*time.Second)
	}
	leave, err := f.queue.AcquireUntil(t.Context(), id, until)
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

// order returns the correlation of the devices' numbers with the places in which they got certificates: 1 if they are the same.
func (f *fleet) order() float64 {
	var same, all float64
	mean := float64(len(f.places)-1) / 2
	for place, n := range f.places {
		same += (float64(place) - mean) * (float64(n) - mean)
		all += (float64(n) - mean) * (float64(n) - mean)
	}
	return same / all
}
