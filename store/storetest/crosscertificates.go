package storetest

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/translog"
)

// crossRoots are two installed roots, and a cross-certificate that is not installed.
type crossRoots struct {
	signer, subject *x509.Certificate
	key             *ecdsa.PrivateKey // of signer
	cross           *x509.Certificate
}

// installCrossRoots installs two new roots.
func (w *world) installCrossRoots(t *testing.T) crossRoots {
	t.Helper()
	var c crossRoots
	n := w.unique()
	c.signer, c.key = newSignedCA(t, fmt.Sprintf("Signer %x", n), nil, nil)
	c.subject, _ = newSignedCA(t, fmt.Sprintf("Subject %x", n), nil, nil)
	for _, root := range []*x509.Certificate{c.signer, c.subject} {
		must(t, w.Installations.Install(context.Background(), ca.InstalledCA{Certificate: root.Raw, At: w.now}, operator))
	}
	c.cross = c.sign(t, 1)
	return c
}

// sign returns a cross-certificate with a serial number.
func (c crossRoots) sign(t *testing.T, serial int64) *x509.Certificate {
	t.Helper()
	template := *c.subject
	template.SerialNumber = big.NewInt(serial)
	der, err := x509.CreateCertificate(rand.Reader, &template, c.signer, c.subject.PublicKey, c.key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return cert
}

func testCross(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){"install": installCross, "refuse": refuseCross})
}

// mustHaveCross fails the test unless these cross-certificates are installed. It reopens the store and checks again.
func (w *world) mustHaveCross(t *testing.T, want ...ca.CrossCertificate) {
	t.Helper()
	for range 2 {
		have, err := w.Cross.CrossCertificates(context.Background())
		must(t, err)
		mustEqual(t, "the cross-certificates", have, want)
		w.reopen(t)
	}
}

func installCross(t *testing.T, w *world) {
	ctx := context.Background()
	w.mustHaveCross(t)
	c, other := w.installCrossRoots(t), w.installCrossRoots(t)
	first := ca.CrossCertificate{Certificate: c.cross.Raw, At: w.now}
	must(t, w.Cross.InstallCross(ctx, first, operator))
	facts := w.lastEntry(t).Facts()
	if e := w.lastEntry(t); e.Action != translog.CAInstalled || facts["issuer"] != pki.IssuerOf(c.subject).String() || facts["signer"] != pki.IssuerOf(c.signer).String() {
		t.Errorf("log entry %+v", e)
	}
	second := ca.CrossCertificate{Certificate: other.cross.Raw, At: w.now.Add(time.Second)}
	must(t, w.Cross.InstallCross(ctx, second, operator))
	logged := len(w.entries(t))
	again := first
	again.At = w.now.Add(time.Hour)
	must(t, w.Cross.InstallCross(ctx, again, operator))
	mustEqual(t, "log entries", len(w.entries(t)), logged)
	w.mustHaveCross(t, first, second)

	renewed := ca.CrossCertificate{Certificate: c.sign(t, 2).Raw, At: w.now.Add(2 * time.Second)}
	must(t, w.Cross.InstallCross(ctx, renewed, operator))
	w.mustHaveCross(t, renewed, second)
	installed, err := w.Installations.Installed(ctx)
	must(t, err)
	mustEqual(t, "the number of installed CAs", len(installed), 4)
}

func refuseCross(t *testing.T, w *world) {
	ctx := context.Background()
	c := w.installCrossRoots(t)
	stranger, key := newSignedCA(t, "Stranger", nil, nil)
	logged := len(w.entries(t))
	for what, in := range map[string]struct {
		der  []byte
		rule pki.Rule
	}{
		"no certificate":               {[]byte("no certificate"), pki.RuleCertificate},
		"a root":                       {c.signer.Raw, pki.RuleNotFound},
		"signed by an unknown root":    {crossRoots{stranger, c.subject, key, nil}.sign(t, 1).Raw, pki.RuleNotFound},
		"the key of an unknown root":   {crossRoots{c.signer, stranger, c.key, nil}.sign(t, 1).Raw, pki.RuleNotFound},
		"signed by the root of a name": {crossRoots{c.signer, c.subject, key, nil}.forge(t).Raw, pki.RuleNotFound},
	} {
		t.Run(what, func(t *testing.T) {
			mustRefuse(t, w.Cross.InstallCross(ctx, ca.CrossCertificate{Certificate: in.der, At: w.now}, operator), in.rule)
		})
	}
	must(t, w.Installations.Remove(ctx, pki.IssuerOf(c.subject), w.now, operator))
	mustRefuse(t, w.Cross.InstallCross(ctx, ca.CrossCertificate{Certificate: c.cross.Raw, At: w.now}, operator), pki.RuleNotFound)
	mustEqual(t, "log entries", len(w.entries(t)), logged+1)
	w.mustHaveCross(t)
}

// forge returns a cross-certificate with the signer's name that another key has signed.
func (c crossRoots) forge(t *testing.T) *x509.Certificate {
	t.Helper()
	signer := *c.signer
	signer.PublicKey = c.key.Public()
	c.signer = &signer
	return c.sign(t, 1)
}
