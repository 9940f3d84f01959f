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

// retryAfter returns the retry delay in a refusal, or zero.
func retryAfter(err error) time.Duration {
	for _, d := range status.Convert(err).Details() {
		if r, ok := d.(*errdetails.RetryInfo); ok {
			return r.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// A device that renews each new certificate immediately reaches max_unexpired of its profile. Revoked certificates count too.
// Past half of the lifetime of the last certificate, it can renew again.
func TestEarlyRenewalsAreBounded(t *testing.T) {
	t.Parallel()
	for name, revokes := range map[string]bool{"renewals leave": false, "renewals revoke": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := servertest.New(t, ground, servertest.Options{Ahead: -20 * time.Hour, Profile: func(name string, c *ca.ProfileConfig) {
				c.RenewalRevokes = revokes && name == "device"
			}})
			device := w.Enrolled(t, "device", "device/1") // valid for 24 hours
			for range 5 {                                 // max_unexpired is 6 by default
				device = w.Renewed(t, device, servertest.Key(t))
			}
			before, logged := rows(t, w, "certificates"), len(w.Entries(t, 0))
			for range 3 {
				_, err := device.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
				servertest.Refused(t, err, codes.ResourceExhausted, pki.RuleRenewalTooEarly)
				if after := retryAfter(err); after < 11*time.Hour || after > 12*time.Hour {
					t.Errorf("the retry delay is %s, want half of the certificate's lifetime", after)
				}
			}
			if n := rows(t, w, "certificates"); n != before {
				t.Errorf("%d certificates were added", n-before)
			}
			if entries := servertest.Find(w.Entries(t, logged), translog.RequestRefused, device.ID); len(entries) != 1 {
				t.Errorf("three refused renewals of one certificate wrote %d log entries, want 1", len(entries))
			}
			w.Clock.Advance(12*time.Hour + time.Minute)
			next := w.Renewed(t, device, servertest.Key(t))
			_, err := next.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
			servertest.Refused(t, err, codes.ResourceExhausted, pki.RuleRenewalTooEarly)
		})
	}
}

// Concurrent renewals of one identity cannot exceed max_unexpired.
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
		t.Errorf("%d concurrent renewals returned %d certificates, want the 2 that max_unexpired allows", parallel, n-before)
	}
}

// A device that lost the response and the request ID gets the same certificate again if it renews with the same key.
func TestLostRenewalIsFoundByKey(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	device, key := w.Enrolled(t, "device", "device/1"), servertest.Key(t)
	first := servertest.Must(device.Renew(t.Context(), servertest.Renewal(t, key)))(t).GetCredential().GetCertificate()
	before, logged := rows(t, w, "certificates"), len(w.Entries(t, 0))
	for range 10 {
		again := servertest.Must(device.Renew(t.Context(), servertest.Renewal(t, key)))(t).GetCredential().GetCertificate()
		if !bytes.Equal(again, first) {
			t.Fatal("a renewal with the same predecessor and key returned another certificate")
		}
	}
	if n, entries := rows(t, w, "certificates"), len(w.Entries(t, 0)); n != before || entries != logged {
		t.Errorf("%d certificates and %d log entries were added, want none", n-before, entries-logged)
	}
	// A revoked successor is not returned.
	w.Revoke(t, w.Holder(t, first, key).Certificate, "superseded")
	next := servertest.Must(device.Renew(t.Context(), servertest.Renewal(t, key)))(t).GetCredential().GetCertificate()
	if bytes.Equal(next, first) {
		t.Error("the renewal returned a revoked certificate")
	}
}

// A certificate past half of its lifetime has one renewal that max_unexpired does not limit. Further renewals of it, with the
// same key after the previous result expired, are limited.
func TestRepeatedRenewalsAreBounded(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{Ahead: -20 * time.Hour})
	device, key := w.Enrolled(t, "device", "device/1"), servertest.Key(t) // valid for 24 hours
	w.Clock.Advance(13 * time.Hour)
	var refused error
	got := 0
	for range 8 { // max_unexpired is 6 by default
		short := servertest.Renewal(t, key)
		short.Lifetime = durationpb.New(time.Minute)
		resp, err := device.Renew(t.Context(), short)
		if refused = err; err != nil {
			break
		}
		w.Clock.Advance(50 * time.Second)
		w.Renewed(t, w.Holder(t, resp.GetCredential().GetCertificate(), key), servertest.Key(t)) // valid for 24 hours
		w.Clock.Advance(20 * time.Second)
		got++
	}
	servertest.Refused(t, refused, codes.ResourceExhausted, pki.RuleMaxUnexpired)
	if got != 5 {
		t.Errorf("a device with one certificate got %d more, want the 5 that max_unexpired allows", got)
	}
}

// A certificate for a few seconds would reach half of its lifetime immediately, and so evade max_unexpired.
func TestShortRenewalsAreRefused(t *testing.T) {
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

// Issue requests of operators are limited too, by a multiple of max_unexpired.
func TestIssueRequestsAreBounded(t *testing.T) {
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
		t.Errorf("%v of 20 issue requests for an identity with one certificate were refused, want 5", refused)
	}
	_, err := w.Caller(t, nil).Enroll(t.Context(), servertest.Enrollment(t, w.Token(t, device.ID, true), servertest.Key(t)))
	servertest.Refused(t, err, codes.ResourceExhausted, pki.RuleMaxUnexpired)
	w.Status(t, device.Certificate, "good") // a refused token revokes nothing
}
