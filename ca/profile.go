package ca

import (
	"crypto/x509"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/pki"
)

// MaxDelegateLifetime bounds a delegated OCSP certificate, which nobody can revoke (RFC 6960 §4.2.2.2.1).
const MaxDelegateLifetime = 7 * 24 * time.Hour

// maxBackdate bounds how far notBefore may lie behind the clock: longer would vouch for a time nobody saw.
const maxBackdate = 24 * time.Hour

// Duration is a span of time as an operator writes it, such as 90s, 24h or 7d: what pki.ParseDuration reads.
type Duration string

// ProfileConfig is a profile as an operator writes it. NewProfile turns it into a Profile, once. What is said about the
// fields is part of the reference in docs/configuration.md.
type ProfileConfig struct {
	// Required. The kinds of identity that may have it: `device`, `workload`, `operator`, `server`, or `va`, which is for
	// OCSP responders and stands alone.
	Kinds []string `yaml:"kinds"`
	// Required. How long a certificate lives when its request names no lifetime, such as `24h` or `7d`: 1 second at
	// least, `max_lifetime` at most.
	Lifetime Duration `yaml:"lifetime"`
	// Required. The longest that a request may name, such as `30d`. A certificate that would outlive the CA's ends with it. With
	// `OCSPSigning` it is 7 days at most, for nobody can revoke such a certificate.
	MaxLifetime Duration `yaml:"max_lifetime"`
	// How far notBefore lies in the past, for relying parties whose clocks are late, such as `5m`: 24 hours at most. Left
	// out, a certificate begins when it is issued.
	Backdate Duration `yaml:"backdate"`
	// Required. The keys that are certified: `P-256`, `P-384`, `Ed25519`, `RSA-2048`, `RSA-3072`, `RSA-4096`.
	Keys []string `yaml:"keys"`
	// Required. The bits of the key usage extension: `digitalSignature`, `keyEncipherment`, `keyAgreement`,
	// `contentCommitment`.
	KeyUsage []string `yaml:"key_usage"`
	// Required. What the certificate is for: `clientAuth`, `serverAuth`, `codeSigning`, `emailProtection`,
	// `timeStamping`, or `OCSPSigning`, which stands alone and is for the kind `va`.
	ExtendedKeyUsage []string `yaml:"extended_key_usage"`
	// Whether DNS names stand beside the SPIFFE ID: `forbidden`, `allowed` or `required`. Left out, they are forbidden.
	// Which ones they are, `brevet identity create --dns` says.
	DNSNames string `yaml:"dns_names"`
	// Whether IP addresses stand beside the SPIFFE ID: `forbidden`, `allowed` or `required`. Left out, they are forbidden.
	// Which ones they are, `brevet identity create --ip` says.
	IPAddresses string `yaml:"ip_addresses"`
	// What the subject says: `uid`, `common_name` or `none`. Left out, it is `uid`: the identity's path as user identifier (UID,
	// 0.9.2342.19200300.100.1.1), which no TLS client takes for a host. `common_name` has the path as common name, for software
	// that knows clients by that. TLS clients take a common name for a host where no DNS name stands beside the SPIFFE ID, so
	// identities whose path has no slash have to have it as DNS name or IP address too, and the path has 64 characters at most.
	// With `none` the subject is empty, and the subject alternative name critical (RFC 5280 section 4.2.1.6).
	Subject string `yaml:"subject"`
	// Where the certificate says that its CRL is, an `http://` URL. `"{public_url}/crl/{issuer}.crl"` is where Brevet serves
	// it: `{public_url}` is filled in from the key of that name, `{issuer}` with the issuing CA's identifier. With
	// `{partition}` in it, as in `"{public_url}/crl/{issuer}/{partition}.crl"`, each certificate gets one of `crl.partitions`
	// parts of the CRL when it is issued, and keeps it. Left out, the certificate says nothing of it.
	CRLURL string `yaml:"crl_url"`
	// Where the certificate says that the delta CRL of its partition is (freshest CRL, RFC 5280 section 4.2.1.15), an
	// `http://` URL, filled in as `crl_url` is, such as `"{public_url}/crl/{issuer}/{partition}-delta.crl"`. Both have to have
	// `{issuer}` and `{partition}`. Left out, the certificate says nothing of it.
	DeltaCRLURL string `yaml:"delta_crl_url"`
	// Where the certificate says that OCSP is asked, an `http://` URL, filled in as `crl_url` is. `"{public_url}/ocsp"` is
	// where Brevet answers. Left out, the certificate says nothing of it.
	OCSPURL string `yaml:"ocsp_url"`
	// Where the certificate says that the issuing CA's certificate is, an `http://` URL, filled in as `crl_url` is.
	// `"{public_url}/ca/{issuer}.cer"` is where Brevet serves it. Left out, the certificate says nothing of it.
	CAURL string `yaml:"ca_url"`
	// Whether the certificate says that there is nothing to learn of its revocation (noRevAvail, RFC 9608), and relying parties
	// accept it until it ends: for lives so short that a revocation would come too late. `max_lifetime` is then 7 days at
	// most, and `crl_url`, `delta_crl_url` and `ocsp_url` are left out. Brevet itself refuses it once it is revoked.
	NoRevAvail bool `yaml:"no_rev_avail"`
	// Whether a renewal revokes the certificate that it renews, as superseded, and not only follows it. Calls with that one
	// are refused from then on, on connections that are open too, and it stays in the CRL until it ends; a device that never heard
	// the answer may repeat its request with it. Left out, it is good until it ends.
	RenewalRevokes bool `yaml:"renewal_revokes"`
	// How many certificates of an identity may not have ended, revoked ones included: 1 to 1000. At the bound, a renewal before
	// half of the predecessor's life is refused until then; later it always passes. Tokens with `--replace` and orders in bulk
	// may come to sixteen times as many. Left out, it is 6.
	MaxUnexpired int `yaml:"max_unexpired"`
	// Whether each certificate is checked with zlint before it is signed, which takes time, and not only samples when the
	// server starts.
	Lint bool `yaml:"lint"`
}

//go:embed profiles.yaml
var defaultProfiles []byte

// DefaultProfiles returns the profiles that every Brevet has, by name.
func DefaultProfiles() (map[string]ProfileConfig, error) {
	var p map[string]ProfileConfig
	if err := yaml.Unmarshal(defaultProfiles, &p); err != nil {
		return nil, fmt.Errorf("ca: read the default profiles: %w", err)
	}
	return p, nil
}

// nameRule says whether certificates carry a kind of name beside the SPIFFE ID.
type nameRule uint8

const (
	forbidden nameRule = iota
	allowed
	required
)

// Profile is a validated profile. It is immutable and safe for concurrent use.
type Profile struct {
	name        string
	kinds       []pki.Kind
	lifetime    time.Duration
	maxLifetime time.Duration
	backdate    time.Duration
	keys        []pki.KeyType
	keyUsage    x509.KeyUsage
	extKeyUsage []x509.ExtKeyUsage
	dnsNames    nameRule
	ipAddresses nameRule
	subjectRule subjectRule
	crlURL      string
	deltaCRLURL string
	ocspURL     string
	caURL       string
	// Its certificates are spread over the partitions of their CA's CRL.
	partitioned    bool
	noRevAvail     bool
	renewalRevokes bool
	maxUnexpired   int
	lintEach       bool
}

// NewProfile checks a profile. publicURL is where the CA's public HTTP port is reached, such as
// http://pki.fleet.example; it fills {public_url}. Errors begin with the path of the key, such as
// profiles.device.lifetime, and say what would pass.
func NewProfile(name string, c ProfileConfig, publicURL string) (*Profile, error) {
	p := &Profile{name: name, noRevAvail: c.NoRevAvail, renewalRevokes: c.RenewalRevokes, lintEach: c.Lint}
	for _, step := range []func(ProfileConfig) error{p.readKinds, p.readTimes, p.readKeys, p.readUsages, p.readNames, p.readBound} {
		if err := step(c); err != nil {
			return nil, fmt.Errorf("profiles.%s.%w", name, err)
		}
	}
	if err := p.readURLs(c, publicURL); err != nil {
		return nil, fmt.Errorf("profiles.%s.%w", name, err)
	}
	if err := p.checkUnchecked(c); err != nil {
		return nil, fmt.Errorf("profiles.%s.%w", name, err)
	}
	if err := p.checkDelegate(); err != nil {
		return nil, fmt.Errorf("profiles.%s.%w", name, err)
	}
	return p, nil
}

// Name returns the profile's name.
func (p *Profile) Name() string { return p.name }

// Lifetime returns the lifetime of a certificate whose request asks for none.
func (p *Profile) Lifetime() time.Duration { return p.lifetime }

// MaxLifetime returns the longest lifetime that a request may name.
func (p *Profile) MaxLifetime() time.Duration { return p.maxLifetime }

// RenewalRevokes reports whether a renewal revokes the certificate that it renews.
func (p *Profile) RenewalRevokes() bool { return p.renewalRevokes }

// MaxUnexpired returns how many certificates of an identity may not have ended before early renewals are refused.
func (p *Profile) MaxUnexpired() int { return p.maxUnexpired }

// Keys returns the kinds of keys that are certified, in the order of the configuration: at least one.
func (p *Profile) Keys() []pki.KeyType { return slices.Clone(p.keys) }

// Permits reports whether a kind of identity may hold the profile.
func (p *Profile) Permits(k pki.Kind) bool { return slices.Contains(p.kinds, k) }

func (p *Profile) readKinds(c ProfileConfig) error {
	for _, text := range c.Kinds {
		k, err := pki.ParseKind(text)
		if err != nil {
			return fmt.Errorf("kinds: %w", err)
		}
		p.kinds = append(p.kinds, k)
	}
	if len(p.kinds) == 0 {
		return fmt.Errorf("kinds: name at least one kind of identity that may hold it")
	}
	return nil
}

func (p *Profile) readTimes(c ProfileConfig) error {
	for _, d := range []struct {
		key, text string
		to        *time.Duration
		least     time.Duration
	}{
		{"lifetime", string(c.Lifetime), &p.lifetime, time.Second},
		{"max_lifetime", string(c.MaxLifetime), &p.maxLifetime, time.Second},
		{"backdate", string(c.Backdate), &p.backdate, 0},
	} {
		if d.text == "" && d.least == 0 {
			continue
		}
		v, err := pki.ParseDuration(d.text)
		if err != nil {
			return fmt.Errorf("%s: %w", d.key, err)
		}
		if v < d.least {
			return fmt.Errorf("%s: %s is too short: use %s or more", d.key, d.text, d.least)
		}
		*d.to = v
	}
	if p.lifetime > p.maxLifetime {
		return fmt.Errorf("lifetime: %s is longer than max_lifetime, %s", c.Lifetime, c.MaxLifetime)
	}
	if p.backdate > maxBackdate {
		return fmt.Errorf("backdate: %s is too far: use %s or less", c.Backdate, maxBackdate)
	}
	return nil
}

// Bounds of max_unexpired: a request that it holds for reads as many entries of an index.
const (
	defaultUnexpired = 6
	maxUnexpired     = 1000
)

func (p *Profile) readBound(c ProfileConfig) error {
	p.maxUnexpired = c.MaxUnexpired
	if c.MaxUnexpired == 0 {
		p.maxUnexpired = defaultUnexpired
	}
	if p.maxUnexpired < 1 || p.maxUnexpired > maxUnexpired {
		return fmt.Errorf("max_unexpired: %d cannot be: use 1 to %d, or leave it out for %d", c.MaxUnexpired, maxUnexpired, defaultUnexpired)
	}
	return nil
}

func (p *Profile) readKeys(c ProfileConfig) error {
	for _, text := range c.Keys {
		k, err := pki.ParseKeyType(text)
		if err != nil {
			return fmt.Errorf("keys: %w", err)
		}
		p.keys = append(p.keys, k)
	}
	if len(p.keys) == 0 {
		return fmt.Errorf("keys: name at least one kind of key, such as P-256")
	}
	return nil
}

var keyUsages = map[string]x509.KeyUsage{
	"digitalSignature":  x509.KeyUsageDigitalSignature,
	"contentCommitment": x509.KeyUsageContentCommitment,
	"keyEncipherment":   x509.KeyUsageKeyEncipherment,
	"keyAgreement":      x509.KeyUsageKeyAgreement,
}

var extKeyUsages = map[string]x509.ExtKeyUsage{
	"clientAuth":      x509.ExtKeyUsageClientAuth,
	"serverAuth":      x509.ExtKeyUsageServerAuth,
	"OCSPSigning":     x509.ExtKeyUsageOCSPSigning,
	"codeSigning":     x509.ExtKeyUsageCodeSigning,
	"emailProtection": x509.ExtKeyUsageEmailProtection,
	"timeStamping":    x509.ExtKeyUsageTimeStamping,
}

func (p *Profile) readUsages(c ProfileConfig) error {
	for _, text := range c.KeyUsage {
		bit, ok := keyUsages[text]
		if !ok {
			return fmt.Errorf("key_usage: %q is not one of %s", text, names(keyUsages))
		}
		p.keyUsage |= bit
	}
	for _, text := range c.ExtendedKeyUsage {
		purpose, ok := extKeyUsages[text]
		if !ok {
			return fmt.Errorf("extended_key_usage: %q is not one of %s", text, names(extKeyUsages))
		}
		p.extKeyUsage = append(p.extKeyUsage, purpose)
	}
	switch {
	case p.keyUsage == 0:
		return errors.New("key_usage: name at least one: a key for anything is for nothing")
	case len(p.extKeyUsage) == 0:
		return errors.New("extended_key_usage: name at least one: a certificate for anything is for nothing")
	}
	return nil
}

func (p *Profile) readNames(c ProfileConfig) error {
	rules := map[string]nameRule{"forbidden": forbidden, "allowed": allowed, "required": required}
	for _, n := range []struct {
		key, text string
		to        *nameRule
	}{{"dns_names", c.DNSNames, &p.dnsNames}, {"ip_addresses", c.IPAddresses, &p.ipAddresses}} {
		if n.text == "" {
			continue // forbidden: what nobody granted is denied
		}
		r, ok := rules[n.text]
		if !ok {
			return fmt.Errorf("%s: %q is not one of %s", n.key, n.text, names(rules))
		}
		*n.to = r
	}
	if c.Subject == "" {
		return nil
	}
	subjects := map[string]subjectRule{"uid": subjectUID, "common_name": subjectCommonName, "none": subjectNone}
	r, ok := subjects[c.Subject]
	if !ok {
		return fmt.Errorf("subject: %q is not one of %s", c.Subject, names(subjects))
	}
	p.subjectRule = r
	return nil
}

// checkDelegate keeps OCSPSigning to validation authorities, alone in its certificate and short-lived.
func (p *Profile) checkDelegate() error {
	if !p.delegate() {
		if p.Permits(pki.VA) {
			return errors.New("kinds: va is for extended_key_usage [OCSPSigning] only")
		}
		return nil
	}
	switch {
	case len(p.kinds) != 1 || p.kinds[0] != pki.VA:
		return errors.New("extended_key_usage: OCSPSigning is for kinds: [va] only")
	case len(p.extKeyUsage) != 1:
		return errors.New("extended_key_usage: OCSPSigning stands alone")
	case p.maxLifetime > MaxDelegateLifetime:
		return fmt.Errorf("max_lifetime: a certificate that nobody checks lives %s at most", MaxDelegateLifetime)
	case p.renewalRevokes:
		return errors.New("renewal_revokes: nobody looks up an OCSP responder's certificate: leave it out")
	}
	return nil
}

func (p *Profile) delegate() bool { return slices.Contains(p.extKeyUsage, x509.ExtKeyUsageOCSPSigning) }

func names[V any](m map[string]V) string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return strings.Join(keys, ", ")
}
