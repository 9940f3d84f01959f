package storetest

import (
	"context"
	"slices"
	"testing"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

func testCertificates(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"find": findCertificate, "pages": pageCertificates, "check a key": checkKey,
	})
}

func findCertificate(t *testing.T, w *world) {
	ctx := context.Background()
	r, other := w.issued(t), w.issued(t)
	want := w.certificate(t, r.Ref)
	bySerial, err := w.RA.CertificateBySerial(ctx, r.Ref.Serial)
	must(t, err)
	mustEqual(t, "the certificate by its serial number", bySerial, want)
	byRequest, err := w.RA.CertificateByRequest(ctx, r.Identity, r.RequestID)
	must(t, err)
	mustEqual(t, "the certificate by its request", byRequest, want)

	_, err = w.RA.Certificate(ctx, pki.CertRef{Issuer: issuerA, Serial: w.serial(t)})
	mustMiss(t, err)
	_, err = w.RA.CertificateBySerial(ctx, w.serial(t))
	mustMiss(t, err)
	_, err = w.RA.CertificateByRequest(ctx, other.Identity, r.RequestID)
	mustMiss(t, err)
	_, err = w.RA.CertificateByRequest(ctx, w.newIdentity(t).ID, r.RequestID)
	mustMiss(t, err)
	_, err = w.RA.CertificateByRequest(ctx, r.Identity, w.request(t))
	mustMiss(t, err)
}

func pageCertificates(t *testing.T, w *world) {
	one, two := w.identity(t).ID, w.identity(t).ID
	var all, ofOne []pki.CertRef
	for i := range 9 {
		id := []pki.SPIFFEID{one, two}[i%2]
		r := w.issue(t, w.record(t, id))
		all = append(all, r.Ref)
		if id == one {
			ofOne = append(ofOne, r.Ref)
		}
	}
	unreleased := w.record(t, one)
	w.settle(t, w.announce(t, unreleased))
	all = append(all, unreleased.Ref)
	slices.Reverse(all)
	slices.Reverse(ofOne)
	for _, limit := range []int{1, 2, 3, len(ofOne), len(all), 100} {
		mustEqual(t, "all certificates", w.list(t, pki.SPIFFEID{}, limit), all)
		mustEqual(t, "one identity's certificates", w.list(t, one, limit), ofOne)
	}
	mustEqual(t, "a stranger's certificates", w.list(t, w.newIdentity(t).ID, 10), nil)

	// A page that was begun goes on where it was, whatever is issued meanwhile.
	first, next, err := w.RA.Certificates(context.Background(), one, 0, 2)
	must(t, err)
	w.issue(t, w.record(t, one))
	second, _, err := w.RA.Certificates(context.Background(), one, next, 2)
	must(t, err)
	mustEqual(t, "two pages", refs(append(first, second...)), ofOne[:4])
}

func refs(page []ra.Certificate) []pki.CertRef {
	var list []pki.CertRef
	for _, c := range page {
		list = append(list, c.Ref)
	}
	return list
}

func (w *world) list(t *testing.T, id pki.SPIFFEID, limit int) []pki.CertRef {
	t.Helper()
	var list []pki.CertRef
	for from := ra.Cursor(0); ; {
		page, next, err := w.RA.Certificates(context.Background(), id, from, limit)
		must(t, err)
		if len(page) > limit || next != 0 && len(page) == 0 {
			t.Fatalf("a page of %d where %d were asked for, and a cursor %d", len(page), limit, next)
		}
		list = append(list, refs(page)...)
		if next == 0 {
			return list
		}
		from = next
	}
}

// checkKey has to say what the guard would.
func checkKey(t *testing.T, w *world) {
	for _, c := range keyGuards {
		t.Run(c.name, func(t *testing.T) {
			r := c.make(t, w)
			err := w.RA.CheckKey(context.Background(), r.KeyHash, r.Identity)
			if c.want == "" {
				must(t, err)
				return
			}
			mustRefuse(t, err, c.want)
		})
	}
	stranger := w.newIdentity(t).ID
	mustRefuse(t, w.RA.CheckKey(context.Background(), w.issued(t).KeyHash, stranger), pki.RuleKeyForeign)
	must(t, w.RA.CheckKey(context.Background(), w.key(), stranger))
	unused := w.record(t, w.identity(t).ID)
	w.announce(t, unused)
	must(t, w.RA.CheckKey(context.Background(), unused.KeyHash, stranger)) // announced, and not issued
}
