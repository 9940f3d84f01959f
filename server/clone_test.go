package server_test

import (
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/servertest"
)

// A thief has copied a certificate that the device has renewed since then. The copied certificate may be superseded or
// still good. In both cases, the thief's calls use up neither the rate nor the slots of the device's newest
// certificate.
func TestStolenCertificateHasItsOwnRate(t *testing.T) {
	t.Parallel()
	for _, revokes := range []bool{true, false} {
		profile := func(name string, c *ca.ProfileConfig) { c.RenewalRevokes = revokes && name == "device" }
		w := servertest.New(t, ground, servertest.Options{Profile: profile})
		old := w.Enrolled(t, "device", "device/1")
		device := w.Renewed(t, old, servertest.Key(t))
		slow := admission.Rate{PerSecond: 0.01, Burst: 5}
		w.Restart(t, servertest.Options{Profile: profile, Limits: &server.Limits{Identity: slow, Address: slow}})
		thief := w.Caller(t, certificate(old.Key, old.Certificate.Raw, w.Issuing.Raw), from("127.0.0.2"))
		for n := range slow.Burst + 1 {
			_, err := thief.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
			if n == slow.Burst {
				servertest.Refused(t, err, codes.ResourceExhausted, pki.RuleRateLimited)
				continue
			}
			servertest.Refused(t, err, codes.PermissionDenied, pki.RuleRenewalKeyConflict)
		}
		w.Renewed(t, w.Holder(t, device.Certificate.Raw, device.Key), servertest.Key(t))
		w.Restart(t, servertest.Options{Profile: profile}) // for the final checks
	}
}

// A renewal with a superseded certificate and the other renewals of the same identity do not wait for each other.
func TestSupersededCertificateDoesNotWait(t *testing.T) {
	t.Parallel()
	s := &stuck{release: make(chan struct{})}
	profile := func(name string, c *ca.ProfileConfig) { c.RenewalRevokes = name == "device" }
	w := servertest.New(t, ground, servertest.Options{Wrap: s.wrap, Profile: profile})
	old := w.Enrolled(t, "device", "device/1")
	device := w.Renewed(t, old, servertest.Key(t))
	s.id, s.predecessor = device.ID, servertest.Must(pki.SerialFromInt(old.Certificate.SerialNumber))(t)
	hanging := make(chan error, 1)
	go func() {
		_, err := old.Renew(t.Context(), servertest.Renewal(t, servertest.Key(t)))
		hanging <- err
	}()
	awaitQueue(t, w, "renewals", 1, 0)
	w.Renewed(t, device, servertest.Key(t))
	close(s.release)
	servertest.Refused(t, <-hanging, codes.PermissionDenied, pki.RuleRenewalKeyConflict)
}
