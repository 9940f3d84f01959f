package storetest

import (
	"context"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/translog"
)

// orderRecord returns the record of the certificate for an order. It enrolls the identity if it is not enrolled.
func (w *world) orderRecord(t rapid.TB, id ra.Identity, o acme.Order) ca.Record {
	t.Helper()
	r := w.record(t, id.ID)
	if id.State == pki.Registered {
		r = w.enrollment(t, id)
	}
	r.RequestID = o.ID.Request()
	var names []string
	for _, n := range o.Identifiers {
		names = append(names, n.Value)
	}
	r.Guard.Identity, r.Guard.Revision = id.ID, id.Revision
	r.Guard.Order = pki.Order{ID: r.RequestID, Names: pki.DigestNames(id.ID, names)}
	account := acme.Account{ID: o.Account}
	r.Actor = account.Actor()
	r.Evidence = pki.EvidenceRecord{Pieces: []pki.EvidenceDigest{{Kind: pki.EvidenceACME, Digest: w.unique()}}, Rule: "web", Policy: 1}
	return r
}

func certificatesOfOrders(t *testing.T, w *world) {
	ctx := context.Background()
	a, id := w.account(t), w.register(t)
	o := w.readyOrder(t, a.ID, "a.example", "b.example")
	r := w.issue(t, w.orderRecord(t, id, o))
	have := w.readOrder(t, o.ID)
	if have.Status != acme.StatusValid || have.Certificate != r.Ref {
		t.Errorf("the order is %+v", have)
	}
	mustEqual(t, "the state of the identity", w.readIdentity(t, id.ID).State, pki.Enrolled)
	of, err := w.ACME.OrderOf(ctx, r.Ref)
	must(t, err)
	mustEqual(t, "the order", of.Order, have)
	mustEqual(t, "the account", of.Account, a)
	e := w.lastEntry(t)
	if e.Action != translog.CertificateIssued || e.Actor != a.Actor() || e.Facts()["policy_rule"] != "web" {
		t.Errorf("the entry is %+v", e)
	}

	refs := []pki.CertRef{r.Ref}
	for range 4 {
		next := w.orderRecord(t, w.readIdentity(t, id.ID), w.readyOrder(t, a.ID, "a.example"))
		refs = append(refs, w.issue(t, next).Ref)
	}
	expired := w.orderRecord(t, w.readIdentity(t, id.ID), w.readyOrder(t, a.ID, "a.example"))
	expired.NotAfter = w.now
	w.issue(t, expired)
	w.issue(t, w.orderRecord(t, w.readIdentity(t, id.ID), w.readyOrder(t, w.account(t).ID, "a.example")))
	var listed []pki.CertRef
	for after := (pki.CertRef{}); ; after = listed[len(listed)-1] {
		page, err := w.ACME.Certificates(ctx, a.ID, w.now, after, 2)
		must(t, err)
		if len(page) == 0 {
			break
		}
		listed = append(listed, page...)
	}
	mustEqual(t, "the number of certificates", len(listed), len(refs))
	for _, ref := range refs {
		mustEqual(t, "whether the certificate is listed", slices.Contains(listed, ref), true)
	}
}

// boundOfCertificates checks that the maximum counts certificates of one identity with one set of names.
func boundOfCertificates(t *testing.T, w *world) {
	a, id := w.account(t), w.register(t)
	issue := func(names ...string) error {
		t.Helper()
		r := w.orderRecord(t, w.readIdentity(t, id.ID), w.readyOrder(t, a.ID, names...))
		r.Guard.MaxUnexpired = 2
		st, err := w.RA.IssuanceState(context.Background(), ra.IssuanceQuery{
			Identity: id.ID, Request: r.RequestID, Key: r.KeyHash, At: w.now, MaxUnexpired: 2, Order: r.Guard.Order,
		})
		must(t, err)
		err = w.commit(t, r)
		if (err != nil) != (st.Unexpired == 2) || st.OrderRefusal != nil {
			t.Errorf("the state counts %d certificates, with the refusal %v, and the guard returns %v", st.Unexpired, st.OrderRefusal, err)
		}
		return err
	}
	must(t, issue("a.example"))
	must(t, issue("a.example"))
	mustRefuse(t, issue("a.example"), pki.RuleMaxUnexpired)
	must(t, issue("a.example", "b.example"))
	w.now = w.now.Add(time.Hour)
	must(t, issue("a.example"))
}

// boundOfAllNames checks that the maximum of an order counts the certificates of one identity with whatever names.
func boundOfAllNames(t *testing.T, w *world) {
	id := w.register(t)
	w.issue(t, w.enrollment(t, id)) // does not count
	issue := func(id pki.SPIFFEID, name string) error {
		t.Helper()
		r := w.orderRecord(t, w.readIdentity(t, id), w.readyOrder(t, w.account(t).ID, name))
		r.Guard.MaxUnexpired, r.Guard.Order.MaxUnexpired = 2, 3
		st, err := w.RA.IssuanceState(context.Background(), ra.IssuanceQuery{
			Identity: id, Request: r.RequestID, Key: r.KeyHash, At: w.now, MaxUnexpired: 2, Order: r.Guard.Order,
		})
		must(t, err)
		err = w.commit(t, r)
		if (err != nil) != (st.OrdersUnexpired == 3) || st.Unexpired != 0 {
			t.Errorf("the state counts %d certificates, %d of them with the name, and the guard returns %v", st.OrdersUnexpired, st.Unexpired, err)
		}
		return err
	}
	for _, name := range []string{"a.example", "b.example", "c.example"} {
		must(t, issue(id.ID, name))
	}
	mustRefuse(t, issue(id.ID, "d.example"), pki.RuleMaxUnexpired)
	must(t, issue(w.register(t).ID, "d.example"))
	w.now = w.now.Add(time.Hour)
	must(t, issue(id.ID, "d.example"))
}

// boundOfRenewals checks that certificates of orders do not count for the renewals of an identity.
func boundOfRenewals(t *testing.T, w *world) {
	id := w.register(t)
	first := w.issue(t, w.enrollment(t, id))
	for range 3 {
		w.issue(t, w.orderRecord(t, w.readIdentity(t, id.ID), w.readyOrder(t, w.account(t).ID, "a.example")))
	}
	renewal := w.record(t, id.ID)
	renewal.Guard.Predecessor, renewal.Guard.MaxUnexpired = first.Ref, 2
	st, err := w.RA.IssuanceState(context.Background(), ra.IssuanceQuery{
		Identity: id.ID, Predecessor: first.Ref, Request: renewal.RequestID, Key: renewal.KeyHash, At: w.now, MaxUnexpired: 2,
	})
	must(t, err)
	mustEqual(t, "the number of certificates that count", st.Unexpired, 1)
	next := w.issue(t, renewal)
	again := w.record(t, id.ID)
	again.Guard.Predecessor, again.Guard.MaxUnexpired = next.Ref, 2
	mustRefuse(t, w.commit(t, again), pki.RuleMaxUnexpired)
}

func finalizingAgain(t *testing.T, w *world) {
	a, id := w.account(t), w.register(t)
	o := w.readyOrder(t, a.ID, "a.example")
	first := w.issue(t, w.orderRecord(t, id, o))
	again := w.orderRecord(t, w.readIdentity(t, id.ID), o) // with another key
	mustRefuse(t, w.commit(t, again), pki.RuleRequestIDReused)
	other := w.orderRecord(t, w.register(t), o) // the account has another identity now
	mustRefuse(t, w.commit(t, other), pki.RuleACMEOrderNotReady)
	mustEqual(t, "the certificate", w.readOrder(t, o.ID).Certificate, first.Ref)
}

func finalizingAtOnce(t *testing.T, w *world) {
	a := w.account(t)
	o := w.readyOrder(t, a.ID, "a.example")
	var records []ca.Record
	for range 4 { // with different identities, so that only the order is the same
		records = append(records, w.orderRecord(t, w.register(t), o))
	}
	issued := 0
	for i, err := range w.commitBatch(t, w.writeIntent(t, records...), records...) {
		if err == nil {
			issued++
			mustEqual(t, "the certificate", w.readOrder(t, o.ID).Certificate, records[i].Ref)
			continue
		}
		mustRefuse(t, err, pki.RuleACMEOrderNotReady)
	}
	mustEqual(t, "the number of certificates", issued, 1)
}

// finalizingAfterACrash finalizes an order again after a process has ended between the intent and the record.
func finalizingAfterACrash(t *testing.T, w *world) {
	a, id := w.account(t), w.register(t)
	o := w.readyOrder(t, a.ID, "a.example")
	lost := w.orderRecord(t, id, o)
	w.writeIntent(t, lost)
	w.reopen(t)
	for _, intent := range w.begin(t) {
		w.commitBatch(t, intent)
	}
	mustEqual(t, "the status", w.readOrder(t, o.ID).Status, acme.StatusReady)
	r := w.issue(t, w.orderRecord(t, id, o))
	w.reopen(t)
	w.begin(t)
	mustEqual(t, "the certificate", w.readOrder(t, o.ID).Certificate, r.Ref)
	if c := w.readCertificate(t, lost.Ref); c.Delivered || c.Status.State != pki.Revoked {
		t.Errorf("the certificate that was not delivered is %+v", c)
	}
}

func guardsOfOrders(t *testing.T, w *world) {
	ctx := context.Background()
	a := w.account(t)
	check := func(want pki.Rule, r ca.Record) {
		t.Helper()
		st, err := w.RA.IssuanceState(ctx, ra.IssuanceQuery{Identity: r.Identity, Request: r.RequestID, Key: r.KeyHash, At: w.now, Order: r.Guard.Order})
		must(t, err)
		if refusal := st.OrderRefusal; refusal == nil || refusal.Rule != want {
			t.Errorf("the state has the refusal %v, want %s", refusal, want)
		}
		mustRefuse(t, w.commit(t, r), want)
		mustEqual(t, "the state of the identity", w.readIdentity(t, r.Identity).State, pki.Registered)
	}
	check(pki.RuleACMEOrderNotReady, w.orderRecord(t, w.register(t), w.order(t, a.ID, "a.example")))
	unknown, _ := w.newOrder(a.ID, "a.example")
	check(pki.RuleACMEOrder, w.orderRecord(t, w.register(t), unknown))

	withdrawn := w.readyOrder(t, a.ID, "a.example", "b.example")
	w.move(t, true, acme.Move{Authorization: withdrawn.Authorizations[1], Kind: acme.Withdraw})
	check(pki.RuleACMEOrderNotReady, w.orderRecord(t, w.register(t), withdrawn))

	other := w.orderRecord(t, w.register(t), w.readyOrder(t, a.ID, "a.example"))
	other.RequestID = w.requestID(t)
	mustRefuse(t, w.commit(t, other), pki.RuleRequest)

	o := w.readyOrder(t, a.ID, "a.example")
	_, err := w.ACME.ChangeAccount(ctx, acme.AccountChange{ID: a.ID, Deactivate: true, At: w.now})
	must(t, err)
	check(pki.RuleACMEAccountStatus, w.orderRecord(t, w.register(t), o))
}

// orderIsFinalizedOnce finalizes one order with two handles.
func orderIsFinalizedOnce(t *testing.T, first, second *world) {
	a := first.account(t)
	o := first.readyOrder(t, a.ID, "a.example")
	r := first.issue(t, first.orderRecord(t, first.register(t), o))
	second.begin(t)
	mustRefuse(t, second.commit(t, second.orderRecord(t, second.register(t), o)), pki.RuleACMEOrderNotReady)
	mustEqual(t, "the certificate", second.readOrder(t, o.ID).Certificate, r.Ref)
	k := first.externalKey(t)
	one, other := first.newAccount(), second.newAccount()
	one.ExternalKey, other.ExternalKey = k.ID, k.ID
	_, _, err := second.ACME.CreateAccount(context.Background(), other)
	must(t, err)
	_, _, err = first.ACME.CreateAccount(context.Background(), one)
	mustRefuse(t, err, pki.RuleACMEBinding)
}
