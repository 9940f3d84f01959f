package server_test

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/ra/policy"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/translog"
)

// applyPolicy applies a document as the operator.
func applyPolicy(t *testing.T, w *servertest.World, based int64, document []byte) error {
	t.Helper()
	_, err := brevetv1.NewPolicyServiceClient(w.Operator.Conn).ApplyPolicy(t.Context(), &brevetv1.ApplyPolicyRequest{
		Document: document, BasedRevision: based,
	})
	return err
}

// lifetime returns the lifetime of a certificate that is not backdated.
func lifetime(c *x509.Certificate) time.Duration { return c.NotAfter.Sub(c.NotBefore) }

// A changed profile applies to the next certificate of each identity, and to no earlier one. New CRL URLs work, limits
// change, and metrics count the certificates of a new profile.
func TestProfilesChangeWhileServing(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{Partitions: 2})
	device := w.Enrolled(t, "device", "device/1")
	document := servertest.Policy(t, policy.Default(), func(name string, c *ca.ProfileConfig) {
		if name == "device" {
			c.Lifetime, c.Backdate, c.MaxUnexpired = "2h", "", 40
			c.CRLURL, c.DeltaCRLURL = "{public_url}/crl/{issuer}/{partition}.crl", "{public_url}/crl/{issuer}/{partition}-delta.crl"
		}
	})
	const short = "{kinds: [device], lifetime: 1h, max_lifetime: 1h, keys: [P-256], key_usage: [digitalSignature], extended_key_usage: [clientAuth]}"
	document = []byte(strings.Replace(string(document), "profiles:\n", "profiles:\n    short: "+short+"\n", 1))
	if err := applyPolicy(t, w, 1, document); err != nil {
		t.Fatal(err)
	}
	_, metrics := getOperations(t, w, "/metrics")
	if got := metric(t, metrics, `brevet_certificates_issued_total{profile="short"}`); got != 0 {
		t.Errorf("the counter of a new profile is %v, want 0", got)
	}
	renewed, added := w.Renewed(t, device, servertest.Key(t)), w.Enrolled(t, "device", "device/2")
	for _, h := range []*servertest.Holder{renewed, added} {
		if got := lifetime(h.Certificate); got != 2*time.Hour {
			t.Errorf("the next certificate of %s is valid for %s, want 2h", h.ID, got)
		}
	}
	inShort := w.Enrolled(t, "device", "device/3", func(r *brevetv1.CreateIdentityRequest) { r.Spec.Profile = "short" })
	if got := lifetime(inShort.Certificate); got != time.Hour {
		t.Errorf("a certificate of the new profile is valid for %s, want 1h", got)
	}
	w.Status(t, device.Certificate, "good")
	for range 10 { // by default, 6 unexpired certificates are the maximum
		added = w.Renewed(t, added, servertest.Key(t))
	}
	awaitCRLs(t, w, renewed.Certificate)
	certificateVerifies(t, w, added.Certificate, true)
	w.Revoke(t, renewed.Certificate, "superseded")
	certificateVerifies(t, w, renewed.Certificate, false)
}

// awaitCRLs waits until the server has published the delta CRL of a certificate's partition.
func awaitCRLs(t *testing.T, w *servertest.World, c *x509.Certificate) {
	t.Helper()
	base := servertest.Must(url.Parse(c.CRLDistributionPoints[0]))(t).Path
	request := servertest.Must(http.NewRequestWithContext(t.Context(), http.MethodGet,
		"http://"+w.HTTP+strings.TrimSuffix(base, ".crl")+"-delta.crl", nil))(t)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp := servertest.Must(http.DefaultClient.Do(request))(t)
		_ = resp.Body.Close() // only the status matters
		if resp.StatusCode == http.StatusOK {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("GET %s: %s", request.URL, resp.Status)
		}
	}
}

// A document with a profile that cannot be issued, that Brevet itself could not use, or without one that an identity has,
// changes nothing.
func TestRefusedProfilesChangeNothing(t *testing.T) {
	t.Parallel()
	const added = "once: {kinds: [device], lifetime: 1h, max_lifetime: 1h, keys: [P-256], key_usage: [digitalSignature], extended_key_usage: [clientAuth]}"
	first := append([]byte("profiles:\n  "+added+"\n"), policy.Default()...)
	w := servertest.New(t, ground, servertest.Options{Policy: first, Partitions: 1})
	device := w.Enrolled(t, "device", "device/1", func(r *brevetv1.CreateIdentityRequest) { r.Spec.Profile = "once" })
	with := func(text string) []byte {
		return append([]byte("profiles:\n  "+added+"\n  "+text+"\n"), policy.Default()...)
	}
	const rest = "lifetime: 1h, max_lifetime: 1h, keys: [P-256], key_usage: [digitalSignature], extended_key_usage: "
	var many strings.Builder // profiles, each with other URLs of CRLs
	for n := range 66 {
		fmt.Fprintf(&many, "p%02d: {kinds: [device], %s[clientAuth], crl_url: \"{public_url}/crl/%d/{issuer}/{partition}.crl\"}\n  ", n, rest, n)
	}
	for name, c := range map[string]struct {
		document []byte
		problem  string
	}{
		"too many URLs":  {with(strings.TrimSpace(many.String())), "crl_url: partition 1 of "},
		"lint":           {with("bad: {kinds: [device], lifetime: 1h, max_lifetime: 1h, keys: [P-256], key_usage: [keyEncipherment], extended_key_usage: [serverAuth]}"), "line 3: profiles.bad: "},
		"no kind server": {with("server: {kinds: [device], " + rest + "[serverAuth]}"), "line 3: profiles.server.kinds: the profile is for identities of the kind server"},
		"no DNS names":   {with("server: {kinds: [server], " + rest + "[serverAuth]}"), "line 3: profiles.server: the server's own certificate has the names [localhost]"},
		"other keys":     {with("server: {kinds: [server], " + strings.Replace(rest, "P-256", "P-384", 1) + "[serverAuth]}"), "line 3: profiles.server: the server's own key is of the type P-256"},
		"no operators":   {with("operator: {kinds: [device], " + rest + "[clientAuth]}"), "line 3: profiles.operator.kinds: "},
		"delegates":      {with("ocsp: {kinds: [va], " + strings.Replace(rest, "P-256", "P-384", 1) + "[OCSPSigning]}"), "line 3: profiles.ocsp: the OCSP delegates of the running server have keys of the type P-256"},
		"removed":        {policy.Default(), "profiles: profile once is missing, and device/1 has it"},
	} {
		err := applyPolicy(t, w, 1, c.document)
		servertest.Refused(t, err, codes.InvalidArgument, pki.RulePolicyInvalid)
		if err != nil && !strings.Contains(err.Error(), c.problem) {
			t.Errorf("%s: %v, want %q", name, err, c.problem)
		}
	}
	if n := len(servertest.Must(brevetv1.NewPolicyServiceClient(w.Operator.Conn).ListPolicies(t.Context(), &brevetv1.ListPoliciesRequest{}))(t).GetPolicies()); n != 1 {
		t.Errorf("there are %d revisions, want 1", n)
	}
	device = w.Renewed(t, device, servertest.Key(t))
	w.Retire(t, device.ID)
	if err := applyPolicy(t, w, 1, policy.Default()); err != nil {
		t.Errorf("a profile that only a retired identity has is removed: %v", err)
	}
}

// Requests are decided with the rules and the profiles of one revision, while an operator changes both.
func TestRulesAndProfilesChangeTogether(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{})
	const callers, changes = 4, 12
	hours := func(revision int) time.Duration { return time.Duration(1+revision%7) * time.Hour }
	document := func(revision int) []byte {
		rules := fmt.Appendf(nil, "rules: [{name: r%d, evidence: [token]}]\n", revision)
		return servertest.Policy(t, rules, func(name string, c *ca.ProfileConfig) {
			if name == "device" {
				c.Lifetime, c.Backdate, c.Keys = ca.Duration(hours(revision).String()), "", []string{"P-256"}
			}
		})
	}
	if err := applyPolicy(t, w, 1, document(2)); err != nil {
		t.Fatal(err)
	}
	var done atomic.Bool
	var group sync.WaitGroup
	var mu sync.Mutex
	lifetimes := map[string]time.Duration{} // by identity
	for caller := range callers {
		group.Go(func() {
			for n := 0; !done.Load(); n++ {
				h := w.Enrolled(t, "device", fmt.Sprintf("device/%d-%d", caller, n))
				mu.Lock()
				lifetimes[h.ID] = lifetime(h.Certificate)
				mu.Unlock()
			}
		})
	}
	for revision := 3; revision < 3+changes; revision++ {
		if err := applyPolicy(t, w, int64(revision-1), document(revision)); err != nil {
			t.Error(err)
		}
	}
	done.Store(true)
	group.Wait()
	revisions := map[uint64]int{}
	for _, e := range w.Entries(t, 0) {
		issued, ok := e.Event.(*translog.IssuedCertificate)
		got, known := lifetimes[e.Identity.String()]
		if !ok || !known {
			continue
		}
		revision := issued.Evidence.Policy
		revisions[revision]++
		if want := hours(int(revision)); issued.Evidence.Rule != fmt.Sprintf("r%d", revision) || got != want {
			t.Errorf("revision %d, rule %s: the certificate is valid for %s, want %s", revision, issued.Evidence.Rule, got, want)
		}
	}
	if len(revisions) < 2 {
		t.Errorf("all certificates were issued with revisions %v, want several", revisions)
	}
}
