package ca_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

const publicURL = "http://pki.fleet.example"

func defaults(t testing.TB) map[string]ca.ProfileConfig {
	t.Helper()
	all, err := ca.DefaultProfiles()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func profiles(t testing.TB) map[string]*ca.Profile {
	t.Helper()
	out := map[string]*ca.Profile{}
	for name, c := range defaults(t) {
		p, err := ca.NewProfile(name, c, publicURL)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = p
	}
	return out
}

func TestDefaultProfilesPermitTheirKinds(t *testing.T) {
	all := profiles(t)
	for name, kinds := range map[string][]pki.Kind{
		"device": {pki.Device}, "workload": {pki.Workload}, "client": {pki.Device, pki.Workload},
		"server": {pki.Server, pki.Device, pki.Workload}, "operator": {pki.Operator}, "ocsp": {pki.VA}, "acme": {pki.Device, pki.Workload},
	} {
		p, ok := all[name]
		if !ok {
			t.Errorf("there is no profile %s", name)
			continue
		}
		for k := pki.Device; k <= pki.VA; k++ {
			want := false
			for _, w := range kinds {
				want = want || w == k
			}
			if p.Permits(k) != want {
				t.Errorf("profile %s permits %s: %v, want %v", name, k, p.Permits(k), want)
			}
		}
	}
	if got := all["ocsp"].MaxLifetime(); got > ca.MaxDelegateLifetime {
		t.Errorf("maximum lifetime of OCSP delegates is %s", got)
	}
}

// withNoRevAvail changes a profile to one with noRevAvail.
func withNoRevAvail(c *ca.ProfileConfig) {
	c.NoRevAvail, c.CRLURL, c.OCSPURL, c.MaxLifetime = true, "", "", "7d"
}

// withPartitions changes a profile to a partitioned one with delta CRLs.
func withPartitions(c *ca.ProfileConfig) {
	c.CRLURL, c.DeltaCRLURL = "{public_url}/crl/{issuer}/{partition}.crl", "{public_url}/crl/{issuer}/{partition}-delta.crl"
}

// profile returns the default profile for devices with a change.
func profile(t testing.TB, change func(*ca.ProfileConfig)) *ca.Profile {
	t.Helper()
	c := defaults(t)["device"]
	change(&c)
	p, err := ca.NewProfile("device", c, publicURL)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestBadProfilesAreRefusedByNameAndKey(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*ca.ProfileConfig)
		want   string
	}{
		"no kinds":              {func(c *ca.ProfileConfig) { c.Kinds = nil }, "kinds"},
		"unknown kind":          {func(c *ca.ProfileConfig) { c.Kinds = []string{"toaster"} }, `"toaster"`},
		"no lifetime":           {func(c *ca.ProfileConfig) { c.Lifetime = "" }, "lifetime"},
		"lifetime without unit": {func(c *ca.ProfileConfig) { c.Lifetime = "24" }, "12h or 7d"},
		"negative lifetime":     {func(c *ca.ProfileConfig) { c.Lifetime = "-1h" }, "lifetime"},
		"too short":             {func(c *ca.ProfileConfig) { c.Lifetime = "10ms" }, "too short"},
		"over the longest":      {func(c *ca.ProfileConfig) { c.Lifetime = "31d" }, "max_lifetime"},
		"backdated for years":   {func(c *ca.ProfileConfig) { c.Backdate = "400d" }, "backdate"},
		"no keys":               {func(c *ca.ProfileConfig) { c.Keys = nil }, "keys"},
		"weak key":              {func(c *ca.ProfileConfig) { c.Keys = []string{"RSA-1024"} }, `"RSA-1024"`},
		"unknown usage":         {func(c *ca.ProfileConfig) { c.KeyUsage = []string{"keyCertSign"} }, "key_usage"},
		"unknown door":          {func(c *ca.ProfileConfig) { c.Renewals = []string{"grpc", "acme"} }, `renewals: "acme"`},
		"no purpose":            {func(c *ca.ProfileConfig) { c.ExtendedKeyUsage = nil }, "extended_key_usage"},
		"any purpose":           {func(c *ca.ProfileConfig) { c.ExtendedKeyUsage = []string{"any"} }, "extended_key_usage"},
		"unknown name rule":     {func(c *ca.ProfileConfig) { c.DNSNames = "yes" }, "dns_names"},
		"no name at all":        {func(c *ca.ProfileConfig) { c.SPIFFEID, c.DNSNames, c.IPAddresses = new(bool), "", "" }, "spiffe_id"},
		"unknown subject":       {func(c *ca.ProfileConfig) { c.Subject = "cn" }, "subject"},
		"https CRL":             {func(c *ca.ProfileConfig) { c.CRLURL = "https://pki.fleet.example/x.crl" }, "crl_url"},
		"relative OCSP":         {func(c *ca.ProfileConfig) { c.OCSPURL = "/ocsp" }, "ocsp_url"},
		"delegate for devices":  {func(c *ca.ProfileConfig) { c.ExtendedKeyUsage = []string{"OCSPSigning"} }, "kinds: [va]"},
		"va for anything":       {func(c *ca.ProfileConfig) { c.Kinds = []string{"va"} }, "OCSPSigning"},
		"long-lived delegate": {func(c *ca.ProfileConfig) {
			c.Kinds, c.ExtendedKeyUsage, c.MaxLifetime = []string{"va"}, []string{"OCSPSigning"}, "8d"
		}, "max_lifetime"},
		"delegate that revokes": {func(c *ca.ProfileConfig) {
			c.Kinds, c.ExtendedKeyUsage, c.MaxLifetime, c.RenewalRevokes = []string{"va"}, []string{"OCSPSigning"}, "7d", true
		}, "renewal_revokes"},
		"delegate with noRevAvail": {func(c *ca.ProfileConfig) {
			withNoRevAvail(c)
			c.Kinds, c.ExtendedKeyUsage = []string{"va"}, []string{"OCSPSigning"}
		}, "id-pkix-ocsp-nocheck"},
		"unchecked for long":           {func(c *ca.ProfileConfig) { withNoRevAvail(c); c.MaxLifetime = "8d" }, "max_lifetime"},
		"unchecked with a CRL":         {func(c *ca.ProfileConfig) { withNoRevAvail(c); c.CRLURL = "{public_url}/x.crl" }, "together with crl_url"},
		"unchecked with a delta CRL":   {func(c *ca.ProfileConfig) { withNoRevAvail(c); withPartitions(c); c.CRLURL = "" }, "delta_crl_url"},
		"unchecked with OCSP":          {func(c *ca.ProfileConfig) { withNoRevAvail(c); c.OCSPURL = "{public_url}/ocsp" }, "together with ocsp_url"},
		"partition of OCSP":            {func(c *ca.ProfileConfig) { c.OCSPURL = "{public_url}/ocsp/{partition}" }, "ocsp_url"},
		"partition of a CA":            {func(c *ca.ProfileConfig) { c.CAURL = "{public_url}/{partition}.cer" }, "ca_url"},
		"delta of the whole":           {func(c *ca.ProfileConfig) { withPartitions(c); c.CRLURL = "{public_url}/x.crl" }, "delta_crl_url"},
		"delta of nothing":             {func(c *ca.ProfileConfig) { withPartitions(c); c.CRLURL = "" }, "delta_crl_url"},
		"one delta for all partitions": {func(c *ca.ProfileConfig) { withPartitions(c); c.DeltaCRLURL = "{public_url}/delta.crl" }, "delta_crl_url"},
		"partition of any CA":          {func(c *ca.ProfileConfig) { withPartitions(c); c.CRLURL = "{public_url}/crl/{partition}.crl" }, "add {issuer}"},
		"delta of any CA":              {func(c *ca.ProfileConfig) { withPartitions(c); c.DeltaCRLURL = "{public_url}/{partition}-delta.crl" }, "add {issuer}"},
		"delta that is the CRL":        {func(c *ca.ProfileConfig) { withPartitions(c); c.DeltaCRLURL = c.CRLURL }, "delta_crl_url"},
		"https delta":                  {func(c *ca.ProfileConfig) { withPartitions(c); c.DeltaCRLURL = "https://x/{partition}.crl" }, "delta_crl_url"},
		"delegate with more": {func(c *ca.ProfileConfig) {
			c.Kinds, c.ExtendedKeyUsage, c.MaxLifetime = []string{"va"}, []string{"OCSPSigning", "clientAuth"}, "7d"
		}, "combined"},
	} {
		t.Run(name, func(t *testing.T) {
			config := defaults(t)["device"]
			c.change(&config)
			_, err := ca.NewProfile("pumps", config, publicURL)
			if err == nil {
				t.Fatal("the profile was accepted")
			}
			var typed *ca.ProfileError
			if !errors.As(err, &typed) || !strings.HasPrefix(err.Error(), "profiles.pumps."+typed.Key+": ") || strings.Contains(typed.Key, " ") {
				t.Errorf("error %q does not begin with the key", err)
			}
			if !strings.Contains(err.Error(), "pumps") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q does not name both the profile and %q", err, c.want)
			}
		})
	}
}

// TestProfilesReplaceDefaults adds a profile, and replaces a default profile.
func TestProfilesReplaceDefaults(t *testing.T) {
	pumps := profile(t, func(c *ca.ProfileConfig) { c.MaxUnexpired, c.Lifetime = 17, "2h" })
	all := merged(t, map[string]*ca.Profile{"device": pumps, "pumps": pumps})
	if p, err := all.Profile("device"); err != nil || p.Lifetime() != 2*time.Hour {
		t.Errorf("the replaced profile is %+v: %v", p, err)
	}
	if n := len(all.Names()); n != len(defaults(t))+1 || all.MaxUnexpired() != 17 {
		t.Errorf("there are %d profiles with a max_unexpired of %d, want one more than the default profiles and 17", n, all.MaxUnexpired())
	}
	_, err := all.Profile("toaster")
	if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != pki.RuleProfile || !strings.Contains(refusal.Hint, "pumps") {
		t.Errorf("an unknown profile: %v", err)
	}
}

// TestOnlyChangedProfilesArePrepared prepares profiles twice. Those without a change are not linted again.
func TestOnlyChangedProfilesArePrepared(t *testing.T) {
	w := newWorld(t)
	a := w.open(t, w.store.CA())
	defer closeAuthority(t, a)
	before := w.profiles
	after, err := a.Prepare(merged(t, map[string]*ca.Profile{"device": profile(t, func(c *ca.ProfileConfig) { c.Lifetime = "2h" })}), before)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range after.Names() {
		was, err := before.Profile(name)
		if err != nil {
			t.Fatal(err)
		}
		if now, err := after.Profile(name); err != nil || (now == was) != (name != "device") {
			t.Errorf("profile %s is prepared again: %v, %v", name, now != was, err)
		}
	}
	// A draft of the earlier profile can still be issued, and a request with each has the lifetime of its own.
	for _, p := range []*ca.Profiles{before, after} {
		w.profiles = p
		req := w.request(t)
		c, err := issue(t.Context(), a, req)
		if err != nil || c.NotAfter.Sub(c.IssuedAt).Round(time.Minute) != req.Profile.Lifetime() {
			t.Errorf("the certificate is valid for %s, want %s: %v", c.NotAfter.Sub(c.IssuedAt), req.Profile.Lifetime(), err)
		}
	}
}

// TestPrepareRefusesProfiles prepares profiles whose certificates break a rule, or which relying parties would refuse.
func TestPrepareRefusesProfiles(t *testing.T) {
	w := newWorld(t)
	a := w.open(t, w.store.CA())
	defer closeAuthority(t, a)
	req := w.request(t)
	req.Profile = profile(t, func(*ca.ProfileConfig) {})
	if _, err := a.Draft(req); err == nil || !strings.Contains(err.Error(), "was not prepared") {
		t.Errorf("a draft of a profile that was not prepared: %v", err)
	}
	bad := profile(t, func(c *ca.ProfileConfig) {
		c.KeyUsage, c.ExtendedKeyUsage = []string{"keyAgreement"}, []string{"emailProtection"}
	})
	_, err := a.Prepare(merged(t, map[string]*ca.Profile{"pumps": bad}), w.profiles)
	var typed *ca.ProfileError
	if !errors.As(err, &typed) || typed.Profile != "pumps" {
		t.Errorf("a profile that lint refuses: %v", err)
	}
}
