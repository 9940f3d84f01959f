package servertest

import (
	"crypto/x509"
	"testing"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// Another starts another server of the same CA, on the store that both share. It has files, a clock and a log of its own, and
// the same operator. It stops at the end of the test.
func (w *World) Another(t testing.TB, name string, o Options) *World {
	t.Helper()
	return w.AnotherOn(t, name, w.Ground, o)
}

// AnotherOn is Another for a server with another HSM, which has a clone of the issuing key.
func (w *World) AnotherOn(t testing.TB, name string, g Ground, o Options) *World {
	t.Helper()
	other := &World{
		Ground: g, Dir: t.TempDir(), Clock: &Clock{}, Disk: &Disk{}, Log: &Log{}, Root: w.Root, Issuing: w.Issuing, RootCRL: w.RootCRL,
		http: w.http, issuer: Must(ca.NewIssuingCA(w.Issuing, g.Issuing, []*x509.Certificate{w.Root}))(t), name: name, shared: w.shared,
	}
	other.Clock.Advance(o.Ahead)
	other.open(t)
	t.Cleanup(func() { other.Stop(t) })
	other.Serve(t, o)
	other.Operator = other.Holder(t, w.Operator.Certificate.Raw, w.Operator.Key)
	return other
}

// AnotherCA starts another server, whose HSM has the key of another issuing CA below the same root. It first restarts this
// server, which then knows the CA. Both share a store, and have the same operator. The other server stops at the end of the
// test, before which the tools check what its CA has issued.
func (w *World) AnotherCA(t testing.TB, name string, g Ground, o Options) *World {
	t.Helper()
	other := &World{
		Ground: g, Dir: t.TempDir(), Clock: &Clock{}, Disk: &Disk{}, Log: &Log{}, Root: w.Root, RootCRL: w.RootCRL, http: w.http, name: name, shared: w.shared,
	}
	other.Clock.Advance(o.Ahead)
	other.signIssuing(t, "CN=Fleet Issuing of "+name)
	other.open(t)
	t.Cleanup(func() { other.Stop(t) })
	check(t, other.store.Installations().Install(t.Context(), ca.InstalledCA{
		Certificate: other.Issuing.Raw, Key: issuingLabel, At: w.Clock.Now(),
	}, pki.ActorCommand("ceremony install")))
	w.Restart(t, o)
	other.Serve(t, o)
	t.Cleanup(func() {
		if !t.Failed() {
			other.judge(t)
		}
	})
	other.Operator = &Holder{ID: w.Operator.ID, Key: w.Operator.Key, Certificate: w.Operator.Certificate}
	other.Operator.Caller = other.Caller(t, w.Operator.TLS(w))
	return other
}

// Name returns the name of the server. It is empty if the store is not shared.
func (w *World) Name() string { return w.name }

// For returns a view of the same running server, for the issuing CA of another one.
func (w *World) For(other *World) *World {
	return &World{
		Ground: other.Ground, Dir: w.Dir, Clock: w.Clock, Root: w.Root, Issuing: other.Issuing, RootCRL: w.RootCRL, Stores: w.Stores, Server: w.Server,
		GRPC: w.GRPC, HTTP: w.HTTP, HTTPS: w.HTTPS, Operations: w.Operations, Log: w.Log, Operator: w.Operator, http: w.http,
	}
}
