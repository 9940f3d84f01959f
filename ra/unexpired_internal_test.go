package ra

import (
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// TestBoundOfRetiredCAs checks the limit for a renewal immediately after its predecessor was issued by the current CA, by another
// CA, or by a retired CA.
func TestBoundOfRetiredCAs(t *testing.T) {
	configs, err := ca.DefaultProfiles()
	if err != nil {
		t.Fatal(err)
	}
	profile, err := ca.NewProfile("device", configs["device"], "http://pki.example")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	serial, err := pki.MakeSerial(now, [pki.SerialRandomSize]byte{})
	if err != nil {
		t.Fatal(err)
	}
	issuer := func(n byte) pki.IssuerID {
		id, err := pki.IssuerIDFromBytes(append(make([]byte, 31), n))
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	r := &Registrar{retired: []pki.IssuerID{issuer(3)}, clock: func() time.Time { return now.Add(time.Minute) }}
	for n, want := range map[byte]int{1: profile.MaxUnexpired(), 2: profile.MaxUnexpired(), 3: 0} {
		req := ca.Request{IssuingCA: issuer(1), Guard: pki.Guard{Predecessor: pki.CertRef{Issuer: issuer(n), Serial: serial}}}
		st := IssuanceState{Identity: Identity{State: pki.Enrolled}, Predecessor: Predecessor{IssuedAt: now, NotAfter: now.Add(24 * time.Hour)}}
		if got := r.bound(st, profile, req); got != want {
			t.Errorf("the limit for a predecessor of CA %d is %d certificates, want %d", n, got, want)
		}
	}
}
