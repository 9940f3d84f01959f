package ra_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

// retryAfter is what a refusal asks its caller to wait, or zero.
func retryAfter(err error) time.Duration {
	for _, d := range status.Convert(err).Details() {
		if r, ok := d.(*errdetails.RetryInfo); ok {
			return r.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// A device that renews what it was just given, for ever, gets as many certificates as its profile allows, revoked ones
// included. Past half of the last one's life it goes on.
func TestEarlyRenewalsAreBounded(t *testing.T) {
	t.Parallel()
	for name, revokes := range map[string]bool{"renewals leave": false, "renewals revoke": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := servertest.New(t, ground, servertest.Options{Ahead: -20 * time.Hour, Profile: func(name string, c *ca.ProfileConfig) {
				c.RenewalRevokes = revokes && name == "device"
			}})
			device := w.Enrolled(t, "device", "device/1") // for 24 hours
			for range 5 {                                 // six are the default
				device = w.Renewed(t, device, servertest.Key(t))
			}
			before, logged := rows(t, w, "certificates"), len(w.Entries(t, 0))
			for range 3 {
				_, err := device.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
				servertest.Refused(t, err, codes.ResourceExhausted, pki.RuleRenewalTooEarly)
				if after := retryAfter(err); after < 11*time.Hour || after > 12*time.Hour {
					t.Errorf("the device is asked to wait for %s, want half of its certificate's life", after)
				}
			}
			if n := rows(t, w, "certificates"); n != before {
				t.Errorf("%d certificates more are on record", n-before)
			}
			if entries := servertest.Find(w.Entries(t, logged), translog.RequestRefused, device.ID); len(entries) != 1 {
				t.Errorf("three refusals of one certificate left %d log entries, want 1", len(entries))
			}
			w.Clock.Advance(12*time.Hour + time.Minute)
			next := w.Renewed(t, device, servertest.Key(t))
			_, err := next.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
			servertest.Refused(t, err, codes.ResourceExhausted, pki.RuleRenewalTooEarly)
		})
	}
}

// Many renewals of one identity at the same time pass the bound no more than one after the other.
func TestParallelRenewalsAreBounded(t *testing.T) {
	t.Parallel()
	const most, parallel = 12, 64
	w := servertest.New(t, ground, servertest.Options{Profile: func(_ string, c *ca.ProfileConfig) { c.MaxUnexpired = most }})
	holders := []*servertest.Holder{w.Enrolled(t, "device", "device/1")}
	for range 9 {
		key := servertest.Key(t)
		order := servertest.Order(t, "device/1", key)
		holders = append(holders, w.Holder(t, servertest.Must(w.Operator.Orders(t, order).Of(order))(t), key))
	}
	before := rows(t, w, "certificates WHERE der IS NOT NULL")
	for i, err := range together(parallel, func(i int) error {
		_, err := holders[i%len(holders)].Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
		return err
	}) {
		if rule := servertest.RuleOf(err); err != nil && rule != pki.RuleRenewalTooEarly && rule != pki.RuleRenewalKeyConflict {
			t.Errorf("renewal %d: %v", i, err)
		}
	}
	if n := rows(t, w, "certificates WHERE der IS NOT NULL"); n != before+2 {
		t.Errorf("%d renewals at once got %d certificates, want the 2 up to the bound", parallel, n-before)
	}
}

// A device that has lost the answer and the request ID gets the certificate that it has, for the same key.
func TestALostRenewalIsFoundByItsKey(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	device, key := w.Enrolled(t, "device", "device/1"), servertest.Key(t)
	first := servertest.Must(device.Renew(t.Context(), servertest.Renewal(t, key)))(t).GetCredential().GetCertificate()
	before, logged := rows(t, w, "certificates"), len(w.Entries(t, 0))
	for range 10 {
		again := servertest.Must(device.Renew(t.Context(), servertest.Renewal(t, key)))(t).GetCredential().GetCertificate()
		if !bytes.Equal(again, first) {
			t.Fatal("the same predecessor and key got another certificate")
		}
	}
	if n, entries := rows(t, w, "certificates"), len(w.Entries(t, 0)); n != before || entries != logged {
		t.Errorf("%d certificates and %d log entries more are on record", n-before, entries-logged)
	}
	// What it was renewed into is no answer once it is revoked.
	w.Revoke(t, w.Holder(t, first, key).Certificate, "superseded")
	next := servertest.Must(device.Renew(t.Context(), servertest.Renewal(t, key)))(t).GetCredential().GetCertificate()
	if bytes.Equal(next, first) {
		t.Error("the device was given a certificate that is revoked")
	}
}

// A certificate passes the bound once past half of its life: renewed again for the same key whenever the last answer has
// ended, it gets no more than its profile allows.
func TestARenewalThatIsRepeatedIsBounded(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{Ahead: -20 * time.Hour})
	device, key := w.Enrolled(t, "device", "device/1"), servertest.Key(t) // for 24 hours
	w.Clock.Advance(13 * time.Hour)
	var refused error
	got := 0
	for range 8 { // six are the default
		short := servertest.Renewal(t, key)
		short.Lifetime = durationpb.New(time.Minute)
		resp, err := device.Renew(t.Context(), short)
		if refused = err; err != nil {
			break
		}
		w.Clock.Advance(50 * time.Second)
		w.Renewed(t, w.Holder(t, resp.GetCredential().GetCertificate(), key), servertest.Key(t)) // for 24 hours
		w.Clock.Advance(20 * time.Second)
		got++
	}
	servertest.Refused(t, refused, codes.ResourceExhausted, pki.RuleMaxUnexpired)
	if got != 5 {
		t.Errorf("a device with one certificate got %d more, want the 5 up to the bound", got)
	}
}

// A renewal that asks for a few seconds would pass half of its life at once.
func TestRenewalsForSecondsAreRefused(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	device := w.Enrolled(t, "device", "device/1")
	renewal := servertest.Renewal(t, servertest.Key(t))
	for _, lifetime := range []time.Duration{time.Second, 59 * time.Second} {
		renewal.Lifetime = durationpb.New(lifetime)
		_, err := device.Renew(t.Context(), renewal)
		servertest.Refused(t, err, codes.InvalidArgument, pki.RuleLifetime)
	}
	renewal.Lifetime = durationpb.New(time.Minute)
	servertest.Must(device.Renew(t.Context(), renewal))(t)
}

// Operators are bounded too, by a higher number.
func TestOrdersForOneIdentityAreBounded(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{Profile: func(_ string, c *ca.ProfileConfig) { c.MaxUnexpired = 1 }})
	device := w.Enrolled(t, "device", "device/1")
	var orders []*brevetv1.IssueCertificatesRequest
	for range 20 {
		orders = append(orders, servertest.Order(t, "device/1", servertest.Key(t)))
	}
	answers := w.Operator.Orders(t, orders...)
	refused := map[pki.Rule]int{}
	for _, o := range orders {
		if _, err := answers.Of(o); err != nil {
			refused[servertest.RuleOf(err)]++
		}
	}
	if fmt.Sprint(refused) != fmt.Sprintf("map[%s:5]", pki.RuleMaxUnexpired) {
		t.Errorf("of 20 orders beside one certificate were refused %v, want 5", refused)
	}
	_, err := w.Caller(t, nil).Enroll(t.Context(), servertest.Enrollment(t, w.Token(t, device.ID, true), servertest.Key(t)))
	servertest.Refused(t, err, codes.ResourceExhausted, pki.RuleMaxUnexpired)
	w.Status(t, device.Certificate, "good") // a token that does not serve replaces nothing
}
