package crl_test

import (
	"crypto/x509"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
)

// line is the entry of a CRL about one certificate.
type line struct {
	at     int64
	reason int
}

// issuedCert is a certificate in the model.
type issuedCert struct {
	partition uint16
	notAfter  time.Time
	listed    *line // nil while the certificate is good
}

// history makes random changes of a CA's certificates, and records in a model what its CRLs must contain.
type history struct {
	t      *testing.T
	s      *scene
	now    time.Time
	issued map[pki.CertRef]*issuedCert
	bases  map[uint16][]*x509.RevocationList
	last   time.Time // time of the previous call of publish
}

func (h *history) refs() []pki.CertRef {
	return slices.SortedFunc(maps.Keys(h.issued), func(a, b pki.CertRef) int { return slices.Compare(a.Serial.Bytes(), b.Serial.Bytes()) })
}

func (h *history) issue(r *rapid.T) {
	ref := pki.CertRef{Issuer: h.s.ca.ID(), Serial: revtest.Serial(h.t)}
	c := &issuedCert{
		partition: rapid.Uint16Range(0, 3).Draw(r, "partition"),
		notAfter:  h.now.Add(time.Duration(rapid.IntRange(1, 60).Draw(r, "hours")) * time.Hour),
	}
	h.issued[ref] = c
	h.s.book.IssueIn(c.partition, ref, c.notAfter)
}

func (h *history) change(r *rapid.T) {
	if len(h.issued) == 0 {
		return
	}
	ref := rapid.SampledFrom(h.refs()).Draw(r, "certificate")
	o := revocation.Change{Certificate: ref, Actor: operator}
	o.Action = rapid.SampledFrom([]revocation.Action{revocation.Revoke, revocation.Hold, revocation.Unhold}).Draw(r, "action")
	if o.Action == revocation.Revoke {
		o.Reason = rapid.SampledFrom([]pki.Reason{pki.Unspecified, pki.KeyCompromise, pki.Superseded}).Draw(r, "reason")
	}
	changes, err := h.s.authority.Apply(h.t.Context(), o)
	if _, refused := pki.AsRefusal(err); err != nil && !refused {
		r.Fatal(err)
	}
	for _, c := range changes.All() {
		h.issued[c.Ref].listed = nil
		if c.Status.State != pki.Good {
			h.issued[c.Ref].listed = &line{c.Status.RevokedAt.Unix(), int(c.Status.Reason)}
		}
	}
}

// publish signs and publishes new CRLs. It compares them with the model. It also combines each delta with all bases
// that relying parties may have, and compares the results.
func (h *history) publish(r *rapid.T) {
	if err := h.s.PublishNow(h.t.Context()); err != nil {
		r.Fatal(err)
	}
	cutoff := h.now.Truncate(time.Second)
	if !h.last.IsZero() {
		cutoff = h.last
	}
	h.compare(r, 0, linesOf(h.s.newest(h.t)), cutoff)
	for partition := uint16(1); partition <= 3; partition++ {
		list := h.s.last(h.t, partition, false)
		h.compare(r, partition, linesOf(list), cutoff)
		delta := h.s.last(h.t, partition, true)
		from := baseNumber(h.t, delta)
		if from.Cmp(delta.Number) > 0 {
			r.Fatalf("delta %v has the base %v", delta.Number, from)
		}
		known := from.Cmp(list.Number) == 0
		for _, base := range h.bases[partition] {
			known = known || base.Number.Cmp(from) == 0
			if base.Number.Cmp(from) >= 0 && base.Number.Cmp(delta.Number) < 0 {
				h.compare(r, partition, combined(base, delta), h.now)
			}
		}
		if !known {
			r.Fatalf("delta %v has the base %v, which was never published as a complete CRL", delta.Number, from)
		}
		h.bases[partition] = append(h.bases[partition], list)
	}
	h.last = h.now.Truncate(time.Second)
}

func linesOf(list *x509.RevocationList) map[string]line {
	lines := map[string]line{}
	for _, e := range list.RevokedCertificateEntries {
		lines[e.SerialNumber.String()] = line{e.RevocationTime.Unix(), e.ReasonCode}
	}
	return lines
}

// combined returns the complete CRL that a relying party computes from a base and a delta (RFC 5280 §5.2.4).
func combined(base, delta *x509.RevocationList) map[string]line {
	lines := linesOf(base)
	for serial, l := range linesOf(delta) {
		if l.reason == 8 {
			delete(lines, serial)
		} else {
			lines[serial] = l
		}
	}
	return lines
}

// compare compares the entries of a CRL with the model. The CRL may, but need not, contain certificates that expired
// before endedBefore. It must contain all others that are revoked.
func (h *history) compare(r *rapid.T, partition uint16, got map[string]line, endedBefore time.Time) {
	r.Helper()
	want := map[string]line{}
	for ref, c := range h.issued {
		serial := ref.Serial.Int().String()
		if c.notAfter.Before(endedBefore) {
			delete(got, serial)
			continue
		}
		if c.listed != nil && (partition == 0 || c.partition == partition) {
			want[serial] = *c.listed
		}
	}
	if !maps.Equal(got, want) {
		r.Fatalf("the CRL of partition %d lists %v, want %v", partition, got, want)
	}
}

// TestRandomHistories makes random changes, restarts the updater, and publishes CRLs, in random order.
func TestRandomHistories(t *testing.T) {
	root := revtest.NewRoot(t, "Offline Root", "p256")
	ca := root.Intermediate(t, "Issuing CA", "p256")
	rapid.Check(t, func(r *rapid.T) {
		h := &history{
			t: t, now: time.Now(), issued: map[pki.CertRef]*issuedCert{}, bases: map[uint16][]*x509.RevocationList{},
			s: &scene{root: root, ca: ca, book: revtest.NewBook(), outlet: &revtest.Outlet{}, log: &revtest.LogBook{}, dir: t.TempDir()},
		}
		h.s.clock = func() time.Time { return h.now }
		for n := uint16(1); n <= 3; n++ {
			h.s.points = append(h.s.points, h.s.pointIn(n, "pki.example"))
		}
		h.s.start(t, revtest.Never)
		for range rapid.IntRange(1, 25).Draw(r, "steps") {
			switch rapid.SampledFrom([]string{"issue", "issue", "change", "change", "change", "change", "publish", "publish", "pass", "restart"}).Draw(r, "step") {
			case "issue":
				h.issue(r)
			case "change":
				h.change(r)
			case "publish":
				h.publish(r)
			case "pass":
				h.now = h.now.Add(time.Duration(rapid.IntRange(1, 15).Draw(r, "pass")) * time.Hour)
			case "restart":
				h.s.restart(h.t)
			}
		}
		h.publish(r)
	})
}
