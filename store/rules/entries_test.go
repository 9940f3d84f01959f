package rules_test

import (
	"math/big"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/translog"
)

// TestLargeEntries checks that the parts of a split entry hold all of its changes in order, and can be encoded.
func TestLargeEntries(t *testing.T) {
	e := translog.Entry{
		Time: now, Actor: pki.ActorSystem("test"), Action: translog.CertificateRevoked, Outcome: translog.Done,
	}
	order := &translog.RequestedChange{Reason: pki.Superseded}
	e.Event = order
	for i := range 2*rules.MaxChanges + 1 {
		e.Changes = append(e.Changes, pki.StatusChange{
			Ref: certificate(t, byte(i)), NotAfter: now.Add(time.Duration(i) * time.Second),
			Status: pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: now, Version: 2},
		})
		order.InvalidTimes = append(order.InvalidTimes, now.Add(-time.Duration(i)*time.Second))
	}
	parts := rules.SplitEntry(e)
	if len(parts) != 3 || parts[2].Facts()["part"] != "3/3" || parts[2].Facts()["reason"] != "superseded" || e.Facts()["part"] != "" {
		t.Fatalf("%d parts, the last one with the facts %v", len(parts), parts[len(parts)-1].Facts())
	}
	n := 0
	for _, p := range parts {
		if _, err := p.Marshal(); err != nil {
			t.Fatal(err)
		}
		for i, c := range p.Changes {
			since := p.Event.(*translog.RequestedChange).InvalidTimes[i]
			if !c.NotAfter.Equal(e.Changes[n].NotAfter) || !since.Equal(order.InvalidTimes[n]) {
				t.Fatalf("change %d differs from the original", n)
			}
			n++
		}
	}
	if n != len(e.Changes) {
		t.Errorf("%d changes, want %d", n, len(e.Changes))
	}
}

// TestBulkEntries checks that replaying the entry of a bulk revocation returns its record.
func TestBulkEntries(t *testing.T) {
	b := rules.RecordedBulk{Mark: 9, Reach: now.Add(-time.Hour), BulkRevocation: revocation.BulkRevocation{ID: 7, BulkRequest: revocation.BulkRequest{
		Selection: pki.Selection{Profile: "device", Label: pki.Label{Name: "site", Value: "a"}, IssuedFrom: now},
		Action:    revocation.Revoke, Reason: pki.KeyCompromise, InvalidSince: now, Actor: pki.ActorSystem("test"), Comment: "stolen", At: now,
	}}}
	encoded, err := rules.BulkEntry(b).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	e, err := translog.ParseEntry(encoded)
	if err != nil {
		t.Fatal(err)
	}
	ops, err := rules.Replay(5, e)
	if err != nil || len(ops) != 1 || !reflect.DeepEqual(ops[0], rules.AddBulk{RecordedBulk: b}) {
		t.Errorf("replay returned %+v, %v, want %+v", ops, err, b)
	}
	if step := rules.BulkStepEntry(b, now, pki.SPIFFEID{}, nil); step.Action != translog.CertificateRevoked || step.Facts()["bulk_revocation"] != "7" {
		t.Errorf("the entry of a step is %+v", step)
	}
}

// TestAge checks that NextAge never decreases the age, never exceeds the clock, and adds at most the time that passed.
func TestAge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		age := now
		passed := time.Duration(rapid.IntRange(0, 100).Draw(t, "passed")) * time.Second
		clock := now.Add(time.Duration(rapid.IntRange(-100, 200).Draw(t, "clock")) * time.Second)
		next := rules.NextAge(age, passed, clock)
		if next.Before(age) || next.After(age.Add(passed)) || next.After(clock) && !next.Equal(age) {
			t.Fatalf("NextAge of %v = %v, after %v at %v", age, next, passed, clock)
		}
	})
}

func TestCRLNumbers(t *testing.T) {
	last := new(big.Int).Lsh(big.NewInt(1), 8*rules.CRLNumberSize-1)
	if _, err := rules.NextCRLNumber(pki.IssuerID{}, last.Sub(last, big.NewInt(1))); err == nil {
		t.Error("a CRL number whose DER encoding has 21 bytes was accepted")
	}
	if n, err := rules.NextCRLNumber(pki.IssuerID{}, new(big.Int)); err != nil || n.Int64() != 1 {
		t.Errorf("the first CRL number is %v, %v", n, err)
	}
	for _, n := range []*big.Int{nil, big.NewInt(-1)} {
		if rules.CheckCRLNumber(crl.CRL{Number: n}) == nil {
			t.Errorf("the CRL number %v was accepted", n)
		}
	}
}
