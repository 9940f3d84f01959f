package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
)

func (w *world) mustLead(t *testing.T, issuer pki.IssuerID, want bool) {
	t.Helper()
	leads, err := w.Exchange.Lead(context.Background(), issuer)
	must(t, err)
	if leads != want {
		t.Fatalf("Lead returns %v, want %v", leads, want)
	}
}

// nextCRL returns the record of a CRL with the next number and the given content, without DER.
func (w *world) nextCRL(t *testing.T, issuer pki.IssuerID, content []byte) crl.CRL {
	t.Helper()
	return crl.CRL{
		Issuer: issuer, Number: w.takeNumber(t, issuer), ThisUpdate: w.now, NextUpdate: w.now.Add(time.Hour), Position: 1,
		SHA256: sha256.Sum256(content), Size: int64(len(content)),
	}
}

// oneServerLeads has two servers lead an issuer in turn. The former leader cannot record a CRL that it has begun.
func oneServerLeads(t *testing.T, first, second *world) {
	ctx := context.Background()
	first.mustLead(t, issuerA, true)
	first.mustLead(t, issuerA, true)
	second.mustLead(t, issuerA, false)
	second.mustLead(t, issuerB, true) // each issuer has a leader of its own
	began := first.nextCRL(t, issuerA, nil)
	mustRefuse(t, second.CRLs.PutCRLs(ctx, []crl.CRL{second.nextCRL(t, issuerA, nil)}, operator, second.now), pki.RuleCRL)
	imported := second.nextCRL(t, issuerA, nil)
	imported.DER = []byte("imported")
	mustRefuse(t, second.CRLs.PutCRLs(ctx, []crl.CRL{imported}, operator, second.now), pki.RuleCRL)

	time.Sleep(crl.LeaseTime + 200*time.Millisecond)                        // by the clock of the database
	must(t, first.CRLs.PutCRLs(ctx, []crl.CRL{began}, operator, first.now)) // no other server leads
	began = first.nextCRL(t, issuerA, nil)
	second.mustLead(t, issuerA, true)
	first.mustLead(t, issuerA, false)
	mustRefuse(t, first.CRLs.PutCRLs(ctx, []crl.CRL{began}, operator, first.now), pki.RuleCRL)
	mustRefuse(t, first.Exchange.PutFile(ctx, began, bytes.NewReader([]byte("late"))), pki.RuleCRL)

	must(t, first.Exchange.Yield(ctx, issuerA)) // it is not the leader
	first.mustLead(t, issuerA, false)
	must(t, second.Exchange.Yield(ctx, issuerA))
	first.mustLead(t, issuerA, true)
	must(t, first.CRLs.PutCRLs(ctx, []crl.CRL{began}, operator, first.now))
}

// crlsArePassedOn passes CRLs from one server to the other, one with many pieces among them.
func crlsArePassedOn(t *testing.T, first, second *world) {
	ctx := context.Background()
	first.mustLead(t, issuerA, true)
	content := bytes.Repeat([]byte("0123456789abcdef"), 50_000)
	var before crl.CRL
	for _, n := range []int{len(content), 700, 256 << 10} {
		c := first.nextCRL(t, issuerA, content[:n])
		must(t, first.Exchange.PutFile(ctx, first.nextCRL(t, issuerA, nil), bytes.NewReader([]byte("of an attempt that failed"))))
		must(t, first.Exchange.PutFile(ctx, c, bytes.NewReader(content[:n])))
		mustEqual(t, "the bytes of the recorded CRL", len(second.copyFile(t, before)), int(before.Size))
		must(t, first.CRLs.PutCRLs(ctx, []crl.CRL{c}, operator, first.now))
		if !bytes.Equal(second.copyFile(t, c), content[:n]) {
			t.Errorf("the bytes of CRL %v differ", c.Number)
		}
		mustEqual(t, "the bytes of the replaced CRL", len(second.copyFile(t, before)), 0)
		newest, err := second.Exchange.Newest(ctx)
		must(t, err)
		if len(newest) != 1 || !sameNumber(newest[0].Number, c.Number) || newest[0].SHA256 != c.SHA256 {
			t.Errorf("the newest CRLs are %v", newest)
		}
		before = c
	}
	imported := second.nextCRL(t, issuerB, []byte("the root's"))
	imported.DER, imported.Position = []byte("the root's"), 0
	must(t, second.CRLs.PutCRLs(ctx, []crl.CRL{imported}, operator, second.now))
	mustEqual(t, "the bytes of the imported CRL", string(first.copyFile(t, imported)), "the root's")
}

// crlNeedsBytes has another leader replace the bytes of a CRL that a server has not recorded yet, and then give up. When the
// server leads again, it must not record the CRL, which the others could not publish.
func crlNeedsBytes(t *testing.T, first, second *world) {
	ctx := context.Background()
	content := []byte("a CRL")
	first.mustLead(t, issuerA, true)
	began := first.nextCRL(t, issuerA, content)
	must(t, first.Exchange.PutFile(ctx, began, bytes.NewReader(content)))
	time.Sleep(crl.LeaseTime + 200*time.Millisecond) // by the clock of the database
	second.mustLead(t, issuerA, true)
	must(t, second.Exchange.PutFile(ctx, second.nextCRL(t, issuerA, content), bytes.NewReader(content)))
	must(t, second.Exchange.Yield(ctx, issuerA))
	first.mustLead(t, issuerA, true)
	mustRefuse(t, first.CRLs.PutCRLs(ctx, []crl.CRL{began}, operator, first.now), pki.RuleCRL)
	must(t, first.Exchange.PutFile(ctx, began, bytes.NewReader(content)))
	must(t, first.CRLs.PutCRLs(ctx, []crl.CRL{began}, operator, first.now))
	mustEqual(t, "the bytes of the CRL", string(second.copyFile(t, began)), string(content))
}

// copyFile returns the bytes of a CRL, or none for the zero CRL.
func (w *world) copyFile(t *testing.T, c crl.CRL) []byte {
	t.Helper()
	var b bytes.Buffer
	if c.Number != nil {
		must(t, w.Exchange.CopyFile(context.Background(), c, &b))
	}
	return b.Bytes()
}
