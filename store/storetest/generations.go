package storetest

import (
	"context"
	"crypto/x509"
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
		"retire": retireGeneration, "remove": removeGeneration, "remove at the own end": removeExpired, "remove with a clock ahead": removeTooEarly,
		"remove a root": removeRoot, "never installed": changeUnknown,
	})
}

// issuerIn returns the identifier of the CA that a certificate is for.
func issuerIn(t *testing.T, der []byte) pki.IssuerID {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return pki.IssuerOf(cert)
}

// generation installs an issuing CA.
func (w *world) generation(t *testing.T, name string) pki.IssuerID {
	t.Helper()
	der, _ := authority(t, name)
	must(t, w.Installations.Install(context.Background(), ca.InstalledCA{Certificate: der, Key: name, At: w.now}, operator))
	return issuerIn(t, der)
}

// mustBeIn fails unless the installed CAs are in these states, in the order of their installation, also after reopening.
func (w *world) mustBeIn(t *testing.T, want ...ca.InstallationState) {
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

// changes calls a method of Installations twice. Both calls must succeed, and only the first one is logged.
func (w *world) changes(t *testing.T, do func(context.Context, pki.IssuerID, time.Time, pki.Actor) error, id pki.IssuerID, action translog.Action) {
	t.Helper()
	must(t, do(context.Background(), id, w.now, operator))
	e, logged := w.lastEntry(t), len(w.entries(t))
	if e.Action != action || e.Actor != operator || e.Facts()["issuer"] != id.String() {
		t.Errorf("log entry %+v", e)
	}
	must(t, do(context.Background(), id, w.now.Add(time.Second), operator))
	mustEqual(t, "log entries", len(w.entries(t)), logged)
}

// refuses calls a method of Installations, which must refuse and log nothing.
func (w *world) refuses(t *testing.T, do func(context.Context, pki.IssuerID, time.Time, pki.Actor) error, id pki.IssuerID, rule pki.Rule) {
	t.Helper()
	logged := len(w.entries(t))
	mustRefuse(t, do(context.Background(), id, w.now, operator), rule)
	mustEqual(t, "log entries", len(w.entries(t)), logged)
}

func retireGeneration(t *testing.T, w *world) {
	first := w.generation(t, "First")
	w.refuses(t, w.Installations.Retire, first, pki.RuleCAInUse) // there is no other
	second := w.generation(t, "Second")
	w.changes(t, w.Installations.Retire, first, translog.CARetired)
	w.mustBeIn(t, ca.Retired, ca.Active)
	w.refuses(t, w.Installations.Retire, second, pki.RuleCAInUse)

	// The next one is installed, and has expired: it could not issue either.
	w.generation(t, "Third")
	w.now = epochStart.AddDate(11, 0, 0)
	w.refuses(t, w.Installations.Retire, second, pki.RuleCAInUse)
}

// issuedBy issues a certificate of a CA to an identity.
func (w *world) issuedBy(t *testing.T, issuer pki.IssuerID, id pki.SPIFFEID) ca.Record {
	t.Helper()
	r := w.record(t, id)
	r.Ref.Issuer = issuer
	return w.issue(t, r)
}

func removeGeneration(t *testing.T, w *world) {
	ctx := context.Background()
	first := w.generation(t, "First")
	w.generation(t, "Second")
	w.refuses(t, w.Installations.Remove, first, pki.RuleCAInUse) // it is active
	record := w.issuedBy(t, first, w.identity(t).ID)
	w.apply(t, revocation.Change{Action: revoke, Reason: pki.Superseded, Certificate: record.Ref})
	other := w.issued(t)
	must(t, w.Installations.Retire(ctx, first, w.now, operator))
	w.refuses(t, w.Installations.Remove, first, pki.RuleCAInUse) // a certificate of it has not expired

	points := []crl.Point{{Issuer: first, Partition: 1, URL: "http://pki.example/1"}, {Issuer: other.Ref.Issuer, Partition: 1, URL: "http://pki.example/2"}}
	must(t, w.CRLs.PutPoints(ctx, points, w.now))
	must(t, w.CRLs.Compact(ctx, first))
	w.age(t, 3*time.Hour)
	delegate := ra.Identity{ID: delegateID(t, w.newIdentity(t).ID), Kind: pki.VA, Profile: "ocsp", State: pki.Registered, CreatedAt: w.now}
	_, err := w.RA.CreateIdentity(ctx, delegate, operator)
	must(t, err)
	w.issuedBy(t, first, delegate.ID)
	w.changes(t, w.Installations.Remove, first, translog.CARemoved)
	w.mustBeIn(t, ca.Removed, ca.Active)
	w.refuses(t, w.Installations.Retire, first, pki.RuleCAInUse)
	mustEqual(t, "the certificate stays on record", w.certificate(t, record.Ref).Ref, record.Ref)
	left, err := w.CRLs.Points(ctx)
	must(t, err)
	mustEqual(t, "the distribution points that are left", left, points[1:])
	// No CRL lists it any more, so that nothing keeps it from leaving.
	w.sweep(t, w.now, 10)
	w.mustBeGone(t, record.Ref)

	again, err := w.Installations.Installed(ctx)
	must(t, err)
	err = w.Installations.Install(ctx, again[0], operator)
	mustRefuse(t, err, pki.RuleCAInUse)
}

// age lets time go by, for the log and for the age of the records.
func (w *world) age(t *testing.T, d time.Duration) {
	t.Helper()
	w.pass(t, d)
	_, err := w.Retention.Advance(context.Background(), d, w.now)
	must(t, err)
}

func removeExpired(t *testing.T, w *world) {
	first := w.generation(t, "First")
	w.issuedBy(t, first, w.identity(t).ID)
	w.age(t, epochStart.AddDate(11, 0, 0).Sub(w.now))
	w.changes(t, w.Installations.Remove, first, translog.CARemoved) // though it is active, and alone
}

// removeTooEarly tries a clock that is ahead of what the store has lived through.
func removeTooEarly(t *testing.T, w *world) {
	first := w.generation(t, "First")
	w.generation(t, "Second")
	w.issuedBy(t, first, w.identity(t).ID)
	must(t, w.Installations.Retire(context.Background(), first, w.now, operator))
	_, err := w.Retention.Advance(context.Background(), time.Second, w.now)
	must(t, err)
	w.now = epochStart.AddDate(11, 0, 0)
	w.refuses(t, w.Installations.Remove, first, pki.RuleCAInUse)
}

func removeRoot(t *testing.T, w *world) {
	ctx := context.Background()
	root, key := signingAuthority(t, "Root", nil, nil)
	issuing, _ := signingAuthority(t, "Issuing", root, key)
	id := pki.IssuerOf(root)
	must(t, w.Installations.Install(ctx, ca.InstalledCA{Certificate: root.Raw, At: w.now}, operator))
	must(t, w.Installations.Install(ctx, ca.InstalledCA{Certificate: issuing.Raw, Key: "issuing", At: w.now}, operator))
	w.generation(t, "Second")
	w.refuses(t, w.Installations.Retire, id, pki.RuleRequest)
	w.refuses(t, w.Installations.Remove, id, pki.RuleCAInUse) // it signed one that is installed
	must(t, w.Installations.Retire(ctx, pki.IssuerOf(issuing), w.now, operator))
	must(t, w.Installations.Remove(ctx, pki.IssuerOf(issuing), w.now, operator))
	w.changes(t, w.Installations.Remove, id, translog.CARemoved)
	w.mustBeIn(t, ca.Removed, ca.Removed, ca.Active)
}

func changeUnknown(t *testing.T, w *world) {
	der, _ := authority(t, "Unknown")
	w.refuses(t, w.Installations.Retire, issuerIn(t, der), pki.RuleNotFound)
	w.refuses(t, w.Installations.Remove, issuerIn(t, der), pki.RuleNotFound)
}

// delegateID returns the reserved identity of a validation authority that has the path of another identity in its name.
func delegateID(t rapid.TB, id pki.SPIFFEID) pki.SPIFFEID {
	t.Helper()
	id, err := pki.SPIFFEIDIn(id.TrustDomain(), "brevet/va/"+strings.ReplaceAll(id.Path(), "/", "-"))
	if err != nil {
		t.Fatal(err)
	}
	return id
}
