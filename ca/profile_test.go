package ca_test

import (
	"strings"
	"testing"

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
		"server": {pki.Server, pki.Device, pki.Workload}, "operator": {pki.Operator}, "ocsp": {pki.VA},
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
		"no purpose":            {func(c *ca.ProfileConfig) { c.ExtendedKeyUsage = nil }, "extended_key_usage"},
		"any purpose":           {func(c *ca.ProfileConfig) { c.ExtendedKeyUsage = []string{"any"} }, "extended_key_usage"},
		"unknown name rule":     {func(c *ca.ProfileConfig) { c.DNSNames = "yes" }, "dns_names"},
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
			if !strings.Contains(err.Error(), "pumps") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q does not name both the profile and %q", err, c.want)
			}
		})
	}
}
