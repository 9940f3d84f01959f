package storetest

import (
	"context"
	"crypto/x509"
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/translog"
)

func testGenerations(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"retire": retireCA, "remove": removeCA, "remove an expired CA": removeExpiredCA,
		"remove with a clock ahead": removeWithClockAhead, "remove a root": removeRoot, "retire a root": retireRoot, "not installed": changeUnknownCA,
	})
}

// issuerOf returns the identifier of the CA that a CA certificate belongs to.
func issuerOf(t *testing.T, der []byte) pki.IssuerID {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return pki.IssuerOf(cert)
}

// installCA installs an issuing CA.
func (w *world) installCA(t *testing.T, name string) pki.IssuerID {
	t.Helper()
	der, _ := newCA(t, name)
	must(t, w.Installations.Install(context.Background(), ca.InstalledCA{Certificate: der, Key: name, At: w.now}, operator))
	return issuerOf(t, der)
}

// mustHaveCAStates fails the test unless the installed CAs have these states, in the order of their installation. It
// reopens the store and checks again.
func (w *world) mustHaveCAStates(t *testing.T, want ...ca.InstallationState) {
	t.Helper()
	for range 2 {
		installed, err := w.Installations.Installed(context.Background())
		must(t, err)
		var have []ca.InstallationState
		for _, i := range installed {
			have = append(have, i.State)
		}
		mustEqual(t, "the states of the installed CAs", have, want)
		w.reopen(t)
	}
}

// mustChangeOnce calls a method of Installations twice. Both calls must succeed, and only the first one may be logged.
func (w *world) mustChangeOnce(t *testing.T, do func(context.Context, pki.IssuerID, time.Time, pki.Actor) error, id pki.IssuerID, action translog.Action) {
	t.Helper()
	must(t, do(context.Background(), id, w.now, operator))
	e, logged := w.lastEntry(t), len(w.entries(t))
	if e.Action != action || e.Actor != operator || e.Facts()["issuer"] != id.String() {
		t.Errorf("log entry %+v", e)
	}
	must(t, do(context.Background(), id, w.now.Add(time.Second), operator))
	mustEqual(t, "log entries", len(w.entries(t)), logged)
}

// mustRefuseCAChange calls a method of Installations. The method must refuse and log nothing.
func (w *world) mustRefuseCAChange(t *testing.T, do func(context.Context, pki.IssuerID, time.Time, pki.Actor) error, id pki.IssuerID, rule pki.Rule) {
	t.Helper()
	logged := len(w.entries(t))
	mustRefuse(t, do(context.Background(), id, w.now, operator), rule)
	mustEqual(t, "log entries", len(w.entries(t)), logged)
}

// retire retires a CA and confirms no certificates.
func (w *world) retire(ctx context.Context, id pki.IssuerID, at time.Time, by pki.Actor) error {
	return w.Installations.Retire(ctx, id, at, 0, by)
}

func retireCA(t *testing.T, w *world) {
	first := w.installCA(t, "First")
	w.mustRefuseCAChange(t, w.retire, first, pki.RuleCAInUse) // no other issuing CA is active
	second := w.installCA(t, "Second")
	w.mustChangeOnce(t, w.retire, first, translog.CARetired)
	w.mustHaveCAStates(t, ca.Retired, ca.Active)
	w.mustRefuseCAChange(t, w.retire, second, pki.RuleCAInUse)

	// The third CA has expired, so it could not issue either.
	w.installCA(t, "Third")
	w.now = epochStart.AddDate(11, 0, 0)
	w.mustRefuseCAChange(t, w.retire, second, pki.RuleCAInUse)
}

// issuedBy issues a certificate of a CA to an identity.
func (w *world) issuedBy(t *testing.T, issuer pki.IssuerID, id pki.SPIFFEID) ca.Record {
	t.Helper()
	r := w.record(t, id)
	r.Ref.Issuer = issuer
	return w.issue(t, r)
}

func removeCA(t *testing.T, w *world) {
	ctx := context.Background()
	first := w.installCA(t, "First")
	w.installCA(t, "Second")
	w.mustRefuseCAChange(t, w.Installations.Remove, first, pki.RuleCAInUse) // it is active and unexpired
	record := w.issuedBy(t, first, w.register(t).ID)
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Certificate: record.Ref})
	other := w.enrollNew(t)
	must(t, w.retire(ctx, first, w.now, operator))
	w.mustRefuseCAChange(t, w.Installations.Remove, first, pki.RuleCAInUse) // a certificate of it has not expired

	points := []crl.Point{{Issuer: first, Partition: 1, URL: "http://pki.example/1"}, {Issuer: other.Ref.Issuer, Partition: 1, URL: "http://pki.example/2"}}
	must(t, w.CRLs.PutPoints(ctx, points, w.now))
	must(t, w.CRLs.Compact(ctx, first))
	w.advance(t, 3*time.Hour)
	delegate := ra.Identity{ID: delegateID(t, w.newIdentity(t).ID), Kind: pki.VA, Profile: "ocsp", State: pki.Registered, CreatedAt: w.now}
	_, err := w.RA.CreateIdentity(ctx, ra.Registration{Identity: delegate}, operator)
	must(t, err)
	w.issuedBy(t, first, delegate.ID)
	w.mustChangeOnce(t, w.Installations.Remove, first, translog.CARemoved)
	w.mustHaveCAStates(t, ca.Removed, ca.Active)
	w.mustRefuseCAChange(t, w.retire, first, pki.RuleCAInUse)
	mustEqual(t, "the certificate of the removed CA", w.readCertificate(t, record.Ref).Ref, record.Ref)
	remaining, err := w.CRLs.Points(ctx)
	must(t, err)
	mustEqual(t, "the remaining distribution points", remaining, points[1:])
	// No CRL can list it any more, so retention removes it.
	w.sweep(t, w.now, 10)
	w.mustBeRemoved(t, record.Ref)

	again, err := w.Installations.Installed(ctx)
	must(t, err)
	err = w.Installations.Install(ctx, again[0], operator)
	mustRefuse(t, err, pki.RuleCAInUse)
}

// advance moves the time of the test and the age of the records, and writes a log entry.
func (w *world) advance(t *testing.T, d time.Duration) {
	t.Helper()
	w.passTime(t, d)
	_, err := w.Retention.Advance(context.Background(), d, w.now)
	must(t, err)
}

func removeExpiredCA(t *testing.T, w *world) {
	first := w.installCA(t, "First")
	w.issuedBy(t, first, w.register(t).ID)
	w.advance(t, epochStart.AddDate(11, 0, 0).Sub(w.now))
	w.mustChangeOnce(t, w.Installations.Remove, first, translog.CARemoved) // although it is active, and no other CA is
}

// removeWithClockAhead removes a CA with a clock that is eleven years ahead of the age of the records.
func removeWithClockAhead(t *testing.T, w *world) {
	first := w.installCA(t, "First")
	w.installCA(t, "Second")
	w.issuedBy(t, first, w.register(t).ID)
	must(t, w.retire(context.Background(), first, w.now, operator))
	_, err := w.Retention.Advance(context.Background(), time.Second, w.now)
	must(t, err)
	w.now = epochStart.AddDate(11, 0, 0)
	w.mustRefuseCAChange(t, w.Installations.Remove, first, pki.RuleCAInUse)
}

func removeRoot(t *testing.T, w *world) {
	ctx := context.Background()
	root, key := newSignedCA(t, "Root", nil, nil)
	issuing, _ := newSignedCA(t, "Issuing", root, key)
	id := pki.IssuerOf(root)
	must(t, w.Installations.Install(ctx, ca.InstalledCA{Certificate: root.Raw, At: w.now}, operator))
	must(t, w.Installations.Install(ctx, ca.InstalledCA{Certificate: issuing.Raw, Key: "issuing", At: w.now}, operator))
	w.installCA(t, "Second")
	w.mustRefuseCAChange(t, w.retire, id, pki.RuleCAInUse)               // an active CA has a certificate of it
	w.mustRefuseCAChange(t, w.Installations.Remove, id, pki.RuleCAInUse) // an installed CA has a certificate of it
	must(t, w.retire(ctx, pki.IssuerOf(issuing), w.now, operator))
	w.mustChangeOnce(t, w.retire, id, translog.CARetired)
	must(t, w.Installations.Remove(ctx, pki.IssuerOf(issuing), w.now, operator))
	w.mustChangeOnce(t, w.Installations.Remove, id, translog.CARemoved)
	w.mustHaveCAStates(t, ca.Removed, ca.Removed, ca.Active)
}

// retireRoot retires a root that has a CA between it and an issuing CA.
func retireRoot(t *testing.T, w *world) {
	ctx := context.Background()
	root, rootKey := newSignedCA(t, "Root", nil, nil)
	between, betweenKey := newSignedCA(t, "Between", root, rootKey)
	issuing, _ := newSignedCA(t, "Issuing", between, betweenKey)
	for _, in := range []ca.InstalledCA{{Certificate: root.Raw}, {Certificate: between.Raw}, {Certificate: issuing.Raw, Key: "issuing"}} {
		in.At = w.now
		must(t, w.Installations.Install(ctx, in, operator))
	}
	w.mustRefuseCAChange(t, w.retire, pki.IssuerOf(root), pki.RuleCAInUse) // no other issuing CA is active
	next := w.installCA(t, "Next")
	w.mustRefuseCAChange(t, w.retire, pki.IssuerOf(root), pki.RuleCAInUse) // the issuing CA is active
	w.mustRefuseCAChange(t, w.retire, pki.IssuerOf(between), pki.RuleRequest)
	must(t, w.retire(ctx, pki.IssuerOf(issuing), w.now, operator))
	w.mustRefuseCAChange(t, w.retire, next, pki.RuleCAInUse)
	w.mustConfirm(t, pki.IssuerOf(root), pki.IssuerOf(issuing), next)
	w.mustHaveCAStates(t, ca.Retired, ca.Active, ca.Retired, ca.Active)
}

// mustConfirm retires a root. The unexpired certificates under it, which the issuing CA issued, must be confirmed.
// Certificates that are revoked or of OCSP delegates do not count, and neither do those of the other CA.
func (w *world) mustConfirm(t *testing.T, root, issuing, other pki.IssuerID) {
	t.Helper()
	ctx := context.Background()
	retiring := func(confirm int) func(context.Context, pki.IssuerID, time.Time, pki.Actor) error {
		return func(ctx context.Context, id pki.IssuerID, at time.Time, by pki.Actor) error {
			return w.Installations.Retire(ctx, id, at, confirm, by)
		}
	}
	w.advance(t, time.Second) // so that the age of the records is known
	var last ca.Record
	for range 3 {
		last = w.issuedBy(t, issuing, w.register(t).ID)
	}
	held, revoked := w.issuedBy(t, issuing, w.register(t).ID), w.issuedBy(t, issuing, w.register(t).ID)
	w.apply(t, revocation.Change{Action: hold, Certificate: held.Ref})
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Certificate: revoked.Ref})
	w.issuedBy(t, other, w.register(t).ID)
	delegate := ra.Identity{ID: delegateID(t, w.newIdentity(t).ID), Kind: pki.VA, Profile: "ocsp", State: pki.Registered, CreatedAt: w.now}
	_, err := w.RA.CreateIdentity(ctx, ra.Registration{Identity: delegate}, operator)
	must(t, err)
	w.issuedBy(t, issuing, delegate.ID)
	for _, confirm := range []int{0, 3, 5, -4, 1e17, math.MaxInt, math.MinInt + 4} { // the last ones times 100 overflow
		w.mustRefuseCAChange(t, retiring(confirm), root, pki.RuleCAInUse)
	}
	refusal, _ := pki.AsRefusal(w.Installations.Retire(ctx, root, w.now, 0, operator))
	if text := refusal.Error(); !strings.Contains(text, "4 certificates") || !strings.Contains(text, last.NotAfter.UTC().Format(time.RFC3339)) {
		t.Errorf("the refusal is %q, want one with the number 4 and the time %s", text, last.NotAfter)
	}
	w.mustChangeOnce(t, retiring(4), root, translog.CARetired)
}

func changeUnknownCA(t *testing.T, w *world) {
	der, _ := newCA(t, "Unknown")
	w.mustRefuseCAChange(t, w.retire, issuerOf(t, der), pki.RuleNotFound)
	w.mustRefuseCAChange(t, w.Installations.Remove, issuerOf(t, der), pki.RuleNotFound)
}

// delegateID returns the reserved identity of a validation authority, with the path of another identity in its name.
func delegateID(t rapid.TB, id pki.SPIFFEID) pki.SPIFFEID {
	t.Helper()
	id, err := pki.SPIFFEIDIn(id.TrustDomain(), "brevet/va/"+strings.ReplaceAll(id.Path(), "/", "-"))
	if err != nil {
		t.Fatal(err)
	}
	return id
}
