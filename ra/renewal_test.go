package ra_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

func TestRenewal(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	first := w.Enrolled(t, "device", "device/1")
	key := servertest.Key(t)
	req := servertest.Renewal(t, key)
	der := servertest.Must(first.Renew(t.Context(), req))(t).GetCredential().GetCertificate()
	again := servertest.Must(first.Renew(t.Context(), req))(t).GetCredential().GetCertificate()
	if !bytes.Equal(again, der) {
		t.Error("a repeated request returned another certificate")
	}
	second := w.Holder(t, der, key)
	if second.ID != first.ID || second.Certificate.SerialNumber.Cmp(first.Certificate.SerialNumber) == 0 || !key.PublicKey.Equal(second.Certificate.PublicKey) {
		t.Error("the successor is not a new certificate of the same identity for the new key")
	}
	w.Status(t, first.Certificate, "good") // it stays valid until it expires, for open connections
	w.Status(t, second.Certificate, "good")
	third := w.Renewed(t, second, key) // the same key
	if !key.PublicKey.Equal(third.Certificate.PublicKey) {
		t.Error("a renewal with the same key has another key")
	}
	// The predecessor can be renewed again with the key of its successor, because the response may have been lost.
	if found := w.Renewed(t, first, key); found.Certificate.SerialNumber.Cmp(third.Certificate.SerialNumber) != 0 {
		t.Error("the lost renewal was not found by its key")
	}

	req.Csr = servertest.CSR(t, servertest.Key(t))
	_, err := first.Renew(t.Context(), req)
	servertest.Refused(t, err, codes.FailedPrecondition, pki.RuleRequestIDReused)
}

func TestRenewalWithTwoKeysConflicts(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	device := w.Enrolled(t, "device", "device/1")
	honest := w.Renewed(t, device, servertest.Key(t))
	seen := len(w.Entries(t, 0))
	before := rows(t, w, "certificates")
	_, err := device.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
	servertest.Refused(t, err, codes.PermissionDenied, pki.RuleRenewalKeyConflict)
	if n := rows(t, w, "certificates"); n != before {
		t.Errorf("%d certificates were added", n-before)
	}
	entries := servertest.Find(w.Entries(t, seen), translog.RequestRefused, device.ID)
	if len(entries) != 1 || entries[0].Facts()["rule"] != string(pki.RuleRenewalKeyConflict) || entries[0].Actor.String() != device.ID || entries[0].Outcome != translog.Refused {
		t.Errorf("the log has %+v", entries)
	}
	w.Renewed(t, honest, servertest.Key(t))
}

func TestConcurrentRepeatsOfOneRenewal(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	device, req := w.Enrolled(t, "device", "device/1"), servertest.Renewal(t, servertest.Key(t))
	answers := together(8, func(int) answer {
		resp, err := device.Renew(t.Context(), req)
		return answer{resp.GetCredential().GetCertificate(), err}
	})
	w.Status(t, sameForAll(t, answers), "good")
}

func TestConcurrentRenewalsWithDifferentKeys(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	device := w.Enrolled(t, "device", "device/1")
	requests := make([]*brevetv1.RenewRequest, 8)
	for i := range requests {
		requests[i] = servertest.Renewal(t, servertest.Key(t))
	}
	winners := 0
	for _, err := range together(len(requests), func(i int) error {
		_, err := device.Renew(t.Context(), requests[i])
		return err
	}) {
		if err == nil {
			winners++
			continue
		}
		servertest.Refused(t, err, codes.PermissionDenied, pki.RuleRenewalKeyConflict)
	}
	if winners != 1 {
		t.Errorf("renewals with %d of 8 keys succeeded, want 1", winners)
	}
}

// A client cancels its request after its certificate is signed and before it is recorded. Meanwhile another renewal is decided.
// When that decision is made, the first certificate is not on record yet. When it is recorded, the guard finds it.
func TestGuardsSeeConcurrentRenewal(t *testing.T) {
	t.Parallel()
	store := &servertest.Faulty{}
	w := servertest.New(t, ground, servertest.Options{Wrap: store.Wrap})
	first := servertest.Renewal(t, servertest.Key(t))
	for i, c := range []struct {
		then *brevetv1.RenewRequest
		code codes.Code
		rule pki.Rule
	}{
		{first, codes.OK, ""},
		{servertest.Renewal(t, servertest.Key(t)), codes.PermissionDenied, pki.RuleRenewalKeyConflict},
	} {
		device := w.Enrolled(t, "device", fmt.Sprintf("device/%d", i))
		if i > 0 {
			first = servertest.Renewal(t, servertest.Key(t))
		}
		arrived, release := store.HoldRecords()
		ctx, giveUp := context.WithCancel(t.Context())
		gaveUp, answered := make(chan error, 1), make(chan error, 1)
		go func() {
			_, err := device.Renew(ctx, first)
			gaveUp <- err
		}()
		<-arrived
		giveUp()
		servertest.Refused(t, <-gaveUp, codes.Canceled, "")
		go func() {
			_, err := device.Renew(t.Context(), c.then)
			answered <- err
		}()
		store.AwaitDecided(2)
		release()
		servertest.Refused(t, <-answered, c.code, c.rule)
		der := servertest.Must(device.Renew(t.Context(), first))(t).GetCredential().GetCertificate()
		w.Status(t, servertest.Must(x509.ParseCertificate(der))(t), "good")
		released := rows(t, w, "certificates WHERE identity = (SELECT id FROM identities WHERE spiffe_id = '"+device.ID+"')")
		if released != 2 {
			t.Errorf("%d certificates of the device were delivered, want 2", released)
		}
	}
}

func TestRefusedRenewals(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	renew := func(h *servertest.Holder) error {
		_, err := h.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
		return err
	}
	held := w.Enrolled(t, "device", "device/held")
	w.Suspend(t, held.ID)
	servertest.Refused(t, renew(held), codes.PermissionDenied, pki.RuleRevoked)
	w.Resume(t, held.ID)
	servertest.Refused(t, renew(held), codes.OK, "")

	retired := w.Enrolled(t, "device", "device/retired")
	w.Retire(t, retired.ID)
	servertest.Refused(t, renew(retired), codes.PermissionDenied, pki.RuleRevoked)

	revoked := w.Enrolled(t, "device", "device/revoked")
	w.Revoke(t, revoked.Certificate, "affiliationChanged")
	servertest.Refused(t, renew(revoked), codes.PermissionDenied, pki.RuleRevoked)

	late := w.Enrolled(t, "workload", "workload/late")
	w.Clock.Advance(61 * time.Minute)
	servertest.Refused(t, renew(late), codes.Unauthenticated, pki.RuleExpired)
}
