package authz

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// behind is a server that lacks the statuses of certificates that another server has issued. The store may have them.
type behind struct {
	records

	known bool // whether memory has the certificate
	stale bool
	store ra.Certificate
	err   error // of the store
	reads int   // of certificates in the store
}

// Status implements Statuses.
func (b *behind) Status(pki.CertRef) (pki.Status, bool) {
	if !b.known {
		return pki.Status{}, false
	}
	return b.status, true
}

// IsStale implements Statuses.
func (b *behind) IsStale() bool { return b.stale }

// Certificate implements Certificates.
func (b *behind) Certificate(context.Context, pki.CertRef) (ra.Certificate, error) {
	b.reads++
	return b.store, b.err
}

// holder returns an Authorizer of a server, and the client certificate that a CA has issued for an identity. The CA may be
// another one.
func holder(t *testing.T, b *behind, signedBy byte, id string, serial pki.Serial) (*Authorizer, *Client) {
	t.Helper()
	ours, _ := newCA(t, 1)
	ca, key := newCA(t, signedBy)
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(nil, &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial.Bytes()), URIs: []*url.URL{uri}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, ca, key.Public().(ed25519.PublicKey), key)
	if err != nil {
		t.Fatal(err)
	}
	client, err := NewClient(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ours)
	return New(Config{
		TrustDomain: "fleet.example", Roots: roots, Intermediates: x509.NewCertPool(), Statuses: b, Identities: b, Certificates: b, Clock: time.Now,
	}), client
}

const deviceID = "spiffe://fleet.example/device/1"

// serialAt returns a serial number that a server with a clock at a time gives.
func serialAt(t *testing.T, at time.Time) pki.Serial {
	t.Helper()
	s, err := pki.MakeSerial(at, [pki.SerialRandomSize]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func good() ra.Certificate { return ra.Certificate{Status: pki.Status{State: pki.Good, Version: 1}} }

// A certificate that another server issued may call at once, also if the clocks of the servers differ. Until the store has
// confirmed it, the call counts for the client's address.
func TestUnknownCertificatesAreConfirmedInTheStore(t *testing.T) {
	for name, ahead := range map[string]time.Duration{"equal clocks": 0, "an hour behind": -time.Hour, "an hour ahead": time.Hour} {
		b := &behind{records: records{identity: pki.Enrolled}, store: good()}
		a, client := holder(t, b, 1, deviceID, serialAt(t, time.Now().Add(ahead)))
		c, err := a.Authenticate(GetTrustBundle, client)
		if err != nil || !c.Past || b.reads != 0 {
			t.Errorf("%s, when the headers arrive: %+v, %v, after %d reads of the store", name, c, err, b.reads)
		}
		for _, op := range []Operation{GetTrustBundle, Renew} {
			b.reads = 0
			if c, err := a.Authorize(t.Context(), op, client); err != nil || c.Past || c.ID.String() != deviceID || b.reads != 1 {
				t.Errorf("%s, %s: %+v, %v, after %d reads of the store", name, op, c, err, b.reads)
			}
		}
		b.known, b.reads, b.status = true, 0, pki.Status{State: pki.Good, Version: 1}
		if c, err := a.Authorize(t.Context(), Renew, client); err != nil || c.Past || b.reads != 0 {
			t.Errorf("%s, when memory has it: %+v, %v, after %d reads of the store", name, c, err, b.reads)
		}
	}
}

// The store decides about a certificate that memory lacks. Without the store, the call is refused. What the store lacks is
// not remembered, because it may be there a moment later.
func TestUnconfirmedCertificatesAreRefused(t *testing.T) {
	down := errors.New("the database is down")
	status := func(state pki.State, reason pki.Reason) ra.Certificate {
		return ra.Certificate{Status: pki.Status{State: state, Reason: reason, Version: 2}}
	}
	for name, c := range map[string]struct {
		store ra.Certificate
		err   error
		rule  pki.Rule // of the refusal; empty for an error that is none
	}{
		"not on record":      {ra.Certificate{}, pki.Refuse(pki.RuleNotFound, "", "no such certificate"), pki.RuleCertificateUnknown},
		"no store":           {ra.Certificate{}, down, ""},
		"revoked at once":    {status(pki.Revoked, pki.KeyCompromise), nil, pki.RuleRevoked},
		"never delivered":    {status(pki.Revoked, pki.Unspecified), nil, pki.RuleRevoked},
		"on hold":            {status(pki.Hold, pki.CertificateHold), nil, pki.RuleRevoked},
		"a record that lies": {ra.Certificate{}, nil, pki.RuleRevoked},
	} {
		b := &behind{records: records{identity: pki.Enrolled}, store: c.store, err: c.err}
		a, client := holder(t, b, 1, deviceID, serialAt(t, time.Now()))
		for _, op := range []Operation{GetTrustBundle, Renew} {
			caller, err := a.Authorize(t.Context(), op, client)
			if !caller.Past || caller.ID.String() != deviceID {
				t.Errorf("%s, %s: refused %+v", name, op, caller)
			}
			if r, ok := pki.AsRefusal(err); err == nil || ok != (c.rule != "") || ok && (r.Rule != c.rule || r.Hint == "") {
				t.Errorf("%s, %s: %v, want %q", name, op, err, c.rule)
			}
		}
		b.store, b.err = good(), nil
		if _, err := a.Authorize(t.Context(), GetTrustBundle, client); err != nil {
			t.Errorf("%s, on record a moment later: %v", name, err)
		}
	}
	b := &behind{store: status(pki.Revoked, pki.Superseded)}
	a, client := holder(t, b, 1, deviceID, serialAt(t, time.Now()))
	if c, err := a.Authorize(t.Context(), Renew, client); err != nil || !c.Past {
		t.Errorf("a renewal with a superseded certificate: %+v, %v, want a caller that may only repeat", c, err)
	}
	_, err := a.Authorize(t.Context(), GetTrustBundle, client)
	refused(t, "another call with a superseded certificate", err, pki.RuleRevoked)
}

// No certificate that another CA signed, or that is for another trust domain or not for an operator, causes a read of the
// store.
func TestStrangersCauseNoReads(t *testing.T) {
	for name, c := range map[string]struct {
		signedBy byte
		id       string
		op       Operation
		rule     pki.Rule
	}{
		"another CA":           {2, deviceID, GetTrustBundle, pki.RuleCertificate},
		"another trust domain": {1, "spiffe://other.example/device/1", Renew, pki.RuleCertificate},
		"no operator":          {1, deviceID, GetStats, pki.RuleAccess},
	} {
		b := &behind{store: good()}
		a, client := holder(t, b, c.signedBy, c.id, serialAt(t, time.Now()))
		_, err := a.Authorize(t.Context(), c.op, client)
		refused(t, name, err, c.rule)
		if b.reads != 0 || b.identities != 0 {
			t.Errorf("%s: %d reads of certificates, and %d of identities", name, b.reads, b.identities)
		}
	}
}

// A server that does not know the newest changes refuses every call that depends on them, also those that it would refuse
// otherwise: memory may have a hold that was ended. It does not read the store.
func TestStaleServersRefuseCalls(t *testing.T) {
	b := &behind{records: records{identity: pki.Enrolled, status: pki.Status{State: pki.Good, Version: 1}}, known: true, stale: true, store: good()}
	a, client := holder(t, b, 1, deviceID, serialAt(t, time.Now()))
	_, operator := holder(t, b, 1, "spiffe://fleet.example/brevet/operator/alice", serialAt(t, time.Now()))
	for _, state := range []pki.State{pki.Good, pki.Hold, pki.Revoked} {
		b.status.State = state
		for op, need := range access {
			if need.Callers == Anybody {
				continue
			}
			by := client
			if need.Callers == Operators {
				by = operator
			}
			c, err := a.Authorize(t.Context(), op, by)
			refused(t, string(op), err, pki.RuleStale)
			if c.ID.IsZero() || c.Past != (state != pki.Good) {
				t.Errorf("%s of a certificate that was %s: the caller is %+v", op, state, c)
			}
		}
	}
	if b.reads != 0 || b.identities != 0 {
		t.Errorf("%d reads of certificates, and %d of identities", b.reads, b.identities)
	}
	_, err := a.Authorize(t.Context(), ACMERenewalInfo, nil)
	refused(t, "renewalInfo", err, pki.RuleStale)
	_, err = a.Authenticate(Renew, nil)
	refused(t, "no certificate", err, pki.RuleUnauthenticated)
	for _, op := range []Operation{Enroll, ACMEOrder, CheckHealth, GetESTCACertificates} { // the transaction, or nothing, checks statuses
		if _, err := a.Authorize(t.Context(), op, nil); err != nil {
			t.Errorf("%s: %v", op, err)
		}
	}
	b.status.State = pki.Good
	s := a.NewStream(IssueCertificates, operator, true)
	refused(t, "a message of a stream", s.Received(t.Context()), pki.RuleStale)
	b.stale = false
	if _, err := a.Authorize(t.Context(), GetTrustBundle, client); err != nil {
		t.Errorf("after it has read the changes: %v", err)
	}
}
