package storetest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"maps"
	"math/big"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/translog"
)

// newCA returns a self-signed CA certificate and the hash of its key.
func newCA(t *testing.T, name string) ([]byte, pki.KeyHash) {
	t.Helper()
	cert, key := newSignedCA(t, name, nil, nil)
	hash, err := pki.HashKey(key.Public())
	must(t, err)
	return cert.Raw, hash
}

// newSignedCA returns a CA certificate that parent signed, and its key. Without a parent, the certificate is
// self-signed.
func newSignedCA(t *testing.T, name string, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: epochStart, NotAfter: epochStart.AddDate(10, 0, 0), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return cert, key
}

func testInstallations(t *testing.T, open func(t *testing.T) Store) {
	w := newWorld(t, open(t))
	ctx := context.Background()
	none, err := w.Installations.Installed(ctx)
	must(t, err)
	mustEqual(t, "the CAs in a new store", none, nil)

	root, _ := newCA(t, "Root")
	issuing, _ := newCA(t, "Issuing")
	want := []ca.InstalledCA{
		{Certificate: root, At: w.now, State: ca.Active}, {Certificate: issuing, Key: "issuing-1", At: w.now.Add(time.Second), State: ca.Active},
	}
	for _, in := range want {
		must(t, w.Installations.Install(ctx, in, pki.ActorCommand("ceremony install")))
	}
	logged := len(w.entries(t))
	again := want[0]
	again.At = w.now.Add(time.Hour)
	must(t, w.Installations.Install(ctx, again, operator))
	if n := len(w.entries(t)); n != logged {
		t.Errorf("installing a certificate again wrote %d log entries", n-logged)
	}
	if e := w.lastEntry(t); e.Action != translog.CAInstalled || e.Actor != pki.ActorCommand("ceremony install") || !e.Time.Equal(want[1].At) {
		t.Errorf("log entry %+v", e)
	}
	w.reopen(t)
	have, err := w.Installations.Installed(ctx)
	must(t, err)
	mustEqual(t, "the installed CAs", have, want)
}

func testIdentities(t *testing.T, open func(t *testing.T) Store) {
	each(t, open, map[string]func(t *testing.T, w *world){
		"create and read": createIdentity, "create again": createIdentityAgain, "update": updateIdentity, "pages": pageIdentities, "filters": filterIdentities,
	})
}

func fullIdentity(t *testing.T, w *world) ra.Identity {
	t.Helper()
	id := w.newIdentity(t)
	id.Labels = map[string]string{"site": "north", "line": "3"}
	id.DNSNames = []string{"pump.fleet.example", "alias.fleet.example"}
	id.IPAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}
	return id
}

func createIdentity(t *testing.T, w *world) {
	ctx := context.Background()
	wanted := fullIdentity(t, w)
	_, err := w.RA.Identity(ctx, wanted.ID)
	mustNotFind(t, err)
	made, err := w.RA.CreateIdentity(ctx, ra.Registration{Identity: wanted}, operator)
	must(t, err)
	want := wanted
	want.State, want.Revision = pki.Registered, 1
	mustEqual(t, "the identity", made, want)
	e := w.lastEntry(t)
	if e.Action != translog.IdentityRegistered || e.Identity != wanted.ID || e.Actor != operator || !e.Time.Equal(wanted.CreatedAt) || len(e.Changes) != 0 {
		t.Errorf("log entry %+v", e)
	}
	w.reopen(t)
	mustEqual(t, "the identity after reopening", w.readIdentity(t, wanted.ID), want)
}

func createIdentityAgain(t *testing.T, w *world) {
	ctx := context.Background()
	wanted := fullIdentity(t, w)
	_, err := w.RA.CreateIdentity(ctx, ra.Registration{Identity: wanted}, operator)
	must(t, err)
	w.issue(t, w.enrollment(t, w.readIdentity(t, wanted.ID)))
	have := w.readIdentity(t, wanted.ID)
	logged := len(w.entries(t))

	later := wanted
	later.CreatedAt = w.now.Add(time.Hour)
	again, err := w.RA.CreateIdentity(ctx, ra.Registration{Identity: later}, operator)
	must(t, err)
	mustEqual(t, "the identity, created again after its enrollment", again, have)

	for name, change := range map[string]func(id *ra.Identity){
		"kind":          func(id *ra.Identity) { id.Kind = pki.Workload },
		"profile":       func(id *ra.Identity) { id.Profile = "workload" },
		"label":         func(id *ra.Identity) { id.Labels = map[string]string{"site": "south", "line": "3"} },
		"fewer labels":  func(id *ra.Identity) { id.Labels = nil },
		"DNS name":      func(id *ra.Identity) { id.DNSNames = []string{"pump.fleet.example", "other.fleet.example"} },
		"no DNS names":  func(id *ra.Identity) { id.DNSNames = nil },
		"IP address":    func(id *ra.Identity) { id.IPAddresses = id.IPAddresses[:1] },
		"more DNS":      func(id *ra.Identity) { id.DNSNames = append(slices.Clone(id.DNSNames), "more.fleet.example") },
		"name repeated": func(id *ra.Identity) { id.DNSNames = append(slices.Clone(id.DNSNames), id.DNSNames[0]) },
	} {
		other := wanted
		change(&other)
		if _, err := w.RA.CreateIdentity(ctx, ra.Registration{Identity: other}, operator); err == nil {
			t.Errorf("%s: an identity that differs from the one on record was accepted", name)
		} else {
			mustRefuse(t, err, pki.RuleIdentityExists)
		}
	}
	mustEqual(t, "the identity at the end", w.readIdentity(t, wanted.ID), have)
	if n := len(w.entries(t)); n != logged {
		t.Errorf("repeated creations wrote %d log entries", n-logged)
	}
}

func updateIdentity(t *testing.T, w *world) {
	ctx := context.Background()
	r := w.enrollNew(t)
	have := w.readIdentity(t, r.Identity)
	wanted := fullIdentity(t, w)
	wanted.ID, wanted.Profile, wanted.Kind, wanted.CreatedAt = r.Identity, "server", pki.Workload, w.now.Add(time.Hour)
	for _, wrong := range []uint64{have.Revision - 1, have.Revision + 1} {
		if wanted.Revision = wrong; wrong == 0 {
			continue
		}
		_, err := w.RA.UpdateIdentity(ctx, wanted, operator, w.now)
		mustRefuse(t, err, pki.RuleIdentityRevision)
	}
	mustEqual(t, "the identity after updates of wrong revisions", w.readIdentity(t, r.Identity), have)
	wanted.Revision = have.Revision

	updated, err := w.RA.UpdateIdentity(ctx, wanted, operator, w.now.Add(time.Minute))
	must(t, err)
	want := wanted
	want.Kind, want.State, want.Revision, want.CreatedAt = have.Kind, pki.Enrolled, have.Revision+1, have.CreatedAt
	mustEqual(t, "the updated identity", updated, want)
	mustEqual(t, "the updated identity as read", w.readIdentity(t, r.Identity), want)
	if e := w.lastEntry(t); e.Action != translog.IdentityUpdated || e.Actor != operator || e.Identity != r.Identity || !e.Time.Equal(w.now.Add(time.Minute)) {
		t.Errorf("log entry %+v", e)
	}
	logged := len(w.entries(t))
	_, err = w.RA.UpdateIdentity(ctx, wanted, operator, w.now)
	mustRefuse(t, err, pki.RuleIdentityRevision)
	wanted.Revision = 0
	again, err := w.RA.UpdateIdentity(ctx, wanted, operator, w.now)
	must(t, err)
	mustEqual(t, "the identity, updated again", again, want)
	if n := len(w.entries(t)); n != logged {
		t.Errorf("an update without a change wrote %d log entries", n-logged)
	}
	_, err = w.RA.UpdateIdentity(ctx, w.newIdentity(t), operator, w.now)
	mustNotFind(t, err)
	w.changeIdentity(t, r.Identity, retire, pki.Retired)
	wanted.Labels = nil
	_, err = w.RA.UpdateIdentity(ctx, wanted, operator, w.now)
	mustRefuse(t, err, pki.RuleIdentityState)
}

func pageIdentities(t *testing.T, w *world) {
	ctx := context.Background()
	var want []string
	for range 7 {
		want = append(want, w.register(t).ID.String())
	}
	slices.Sort(want)
	for _, limit := range []int{1, 2, 3, 7, 100} {
		var got []string
		for _, id := range w.identities(t, ra.IdentityFilter{}, limit) {
			got = append(got, id.ID.String())
		}
		mustEqual(t, "the list", got, want)
	}
	for _, limit := range []int{0, -1} {
		if page, _, err := w.RA.Identities(ctx, ra.IdentityFilter{}, w.now, pki.SPIFFEID{}, limit); err == nil && len(page) > 0 {
			t.Errorf("a page of at most %d has %d identities", limit, len(page))
		}
	}
}

// identities returns all identities that a filter matches now, read in pages.
func (w *world) identities(t *testing.T, f ra.IdentityFilter, limit int) []ra.Identity {
	t.Helper()
	var list []ra.Identity
	for after := (pki.SPIFFEID{}); ; {
		page, next, err := w.RA.Identities(context.Background(), f, w.now, after, limit)
		must(t, err)
		if len(page) > limit {
			t.Fatalf("a page has %d identities, want at most %d", len(page), limit)
		}
		if list = append(list, page...); next.IsZero() {
			return list
		}
		after = next
	}
}

// filterIdentities lists identities by each field of a filter, and by all of them.
func filterIdentities(t *testing.T, w *world) {
	register := func(edit func(id *ra.Identity)) pki.SPIFFEID {
		id := w.newIdentity(t)
		edit(&id)
		_, err := w.RA.CreateIdentity(context.Background(), ra.Registration{Identity: id}, operator)
		must(t, err)
		return id.ID
	}
	workload := register(func(id *ra.Identity) { id.Kind, id.Profile = pki.Workload, "workload" })
	north := register(func(id *ra.Identity) { id.Labels = map[string]string{"site": "north", "line": ""} })
	south := register(func(id *ra.Identity) { id.Labels = map[string]string{"site": "south"} })
	w.issue(t, w.enrollment(t, w.readIdentity(t, north)))
	w.now = w.now.Add(30 * time.Minute)
	w.issue(t, w.enrollment(t, w.readIdentity(t, south)))
	w.now = w.now.Add(45 * time.Minute) // the certificate of north has expired
	w.abandon(t)                        // registers one more device
	all := w.identities(t, ra.IdentityFilter{}, 10)
	mustEqual(t, "the number of identities", len(all), 4)
	var abandoned pki.SPIFFEID
	for _, id := range all {
		if id.ID != workload && id.ID != north && id.ID != south {
			abandoned = id.ID
		}
	}
	for name, c := range map[string]struct {
		f    ra.IdentityFilter
		want []pki.SPIFFEID
	}{
		"kind":                                   {ra.IdentityFilter{Kinds: []pki.Kind{pki.Workload}}, []pki.SPIFFEID{workload}},
		"kinds":                                  {ra.IdentityFilter{Kinds: []pki.Kind{pki.Workload, pki.Operator, pki.Device}}, []pki.SPIFFEID{workload, north, south, abandoned}},
		"profile":                                {ra.IdentityFilter{Profile: "workload"}, []pki.SPIFFEID{workload}},
		"no such profile":                        {ra.IdentityFilter{Profile: "load"}, nil},
		"state":                                  {ra.IdentityFilter{States: []pki.IdentityState{pki.Registered}}, []pki.SPIFFEID{workload, abandoned}},
		"states":                                 {ra.IdentityFilter{States: []pki.IdentityState{pki.Retired, pki.Enrolled}}, []pki.SPIFFEID{north, south}},
		"label":                                  {ra.IdentityFilter{Label: pki.Label{Name: "site", Value: "north"}}, []pki.SPIFFEID{north}},
		"empty label":                            {ra.IdentityFilter{Label: pki.Label{Name: "line"}}, []pki.SPIFFEID{north}},
		"other value":                            {ra.IdentityFilter{Label: pki.Label{Name: "site", Value: "nor"}}, nil},
		"no certificate":                         {ra.IdentityFilter{WithoutUnexpired: true}, []pki.SPIFFEID{workload, north, abandoned}},
		"not renewed":                            {ra.IdentityFilter{NotRenewedSince: epochStart.Add(time.Minute), States: []pki.IdentityState{pki.Enrolled}}, []pki.SPIFFEID{north}},
		"not renewed since the last issue":       {ra.IdentityFilter{NotRenewedSince: epochStart.Add(30 * time.Minute)}, []pki.SPIFFEID{workload, north, abandoned}},
		"not renewed since after the last issue": {ra.IdentityFilter{NotRenewedSince: epochStart.Add(30*time.Minute + 1)}, []pki.SPIFFEID{workload, north, south, abandoned}},
		"all fields": {ra.IdentityFilter{
			Kinds: []pki.Kind{pki.Device}, States: []pki.IdentityState{pki.Enrolled}, Profile: "device", Label: pki.Label{Name: "site", Value: "north"},
			WithoutUnexpired: true, NotRenewedSince: w.now,
		}, []pki.SPIFFEID{north}},
	} {
		for _, limit := range []int{1, 3, 100} {
			got := map[pki.SPIFFEID]bool{}
			for _, id := range w.identities(t, c.f, limit) {
				got[id.ID] = true
			}
			want := map[pki.SPIFFEID]bool{}
			for _, id := range c.want {
				want[id] = true
			}
			if !maps.Equal(got, want) {
				t.Errorf("%s: the list is %v, want %v", name, got, want)
			}
		}
	}
}
