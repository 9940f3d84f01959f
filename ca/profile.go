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

// MaxDelegateLifetime limits the lifetime of a delegated OCSP certificate, which cannot be revoked (RFC 6960 section
// 4.2.2.2.1).
const MaxDelegateLifetime = 7 * 24 * time.Hour

// maxBackdate limits how far notBefore may precede the time of issue.
const maxBackdate = 24 * time.Hour

// Duration is a duration as written in a document, such as 90s, 24h or 7d. pki.ParseDuration parses it.
type Duration string

// ProfileConfig is a profile in the document of the policy. NewProfile validates it and turns it into a Profile. The
// comments of the fields are part of docs/policy.md.
type ProfileConfig struct {
	// Required. The kinds of identity that may have the profile: `device`, `workload`, `operator`, `server`, or `va`.
	// `va` is for OCSP responders and cannot be combined with other kinds.
	Kinds []string `yaml:"kinds"`
	// Required. The lifetime of a certificate if the request for it names none, such as `24h` or `7d`: at least 1
	// second, at most `max_lifetime`.
	Lifetime Duration `yaml:"lifetime"`
	// Required. The maximum lifetime that a request may name, such as `30d`. A certificate never outlives its issuing
	// CA. With `OCSPSigning` in `extended_key_usage`, the key is at most 7 days, because such a certificate cannot be
	// revoked.
	MaxLifetime Duration `yaml:"max_lifetime"`
	// How long before the time of issue a certificate's validity starts (notBefore), such as `5m`: at most 24 hours.
	// Set the key for relying parties whose clocks are behind. By default a certificate is valid from the time of
	// issue.
	Backdate Duration `yaml:"backdate"`
	// Required. The accepted types of keys: `P-256`, `P-384`, `Ed25519`, `RSA-2048`, `RSA-3072`, `RSA-4096`.
	Keys []string `yaml:"keys"`
	// Required. The bits of the key usage extension: `digitalSignature`, `keyEncipherment`, `keyAgreement`,
	// `contentCommitment`.
	KeyUsage []string `yaml:"key_usage"`
	// Required. The purposes of the certificate: `clientAuth`, `serverAuth`, `codeSigning`, `emailProtection`,
	// `timeStamping`, or `OCSPSigning`. `OCSPSigning` is for the kind `va` and cannot be combined with other purposes.
	ExtendedKeyUsage []string `yaml:"extended_key_usage"`
	// Whether certificates contain DNS names: `forbidden`, `allowed` or `required`. The default is `forbidden`. `brevet
	// identity create --dns` sets the names of an identity.
	DNSNames string `yaml:"dns_names"`
	// Whether certificates contain IP addresses: `forbidden`, `allowed` or `required`. The default is `forbidden`.
	// `brevet identity create --ip` sets the addresses of an identity.
	IPAddresses string `yaml:"ip_addresses"`
	// The content of the certificate's subject: `uid`, `common_name` or `none`. The default, `uid`, is the identity's
	// path as user ID (UID, 0.9.2342.19200300.100.1.1), which no TLS client takes for a host name. `common_name` is the
	// path as common name, for software that identifies clients by it. If a certificate has no DNS name, TLS clients
	// may take its common name for a host name. Therefore a path without a slash must also be among the identity's DNS
	// names or IP addresses, and a path may have at most 64 characters. With `none`, the subject is empty, and the
	// subject alternative name is critical (RFC 5280 section 4.2.1.6).
	Subject string `yaml:"subject"`
	// Whether certificates contain the identity's SPIFFE ID, as a URI. Set it to false for public names alone, as of web
	// servers. Such a certificate needs a DNS name or an IP address, and cannot call the server. By default certificates
	// contain the SPIFFE ID.
	SPIFFEID *bool `yaml:"spiffe_id,omitempty"`
	// The URL of the CRL that certificates contain, starting with `http://`. The server publishes full CRLs at
	// `"{public_url}/crl/{issuer}.crl"`. It replaces `{public_url}` by the value of that key of its configuration, and
	// `{issuer}` by the issuing CA's identifier. With `{partition}`, as in `"{public_url}/crl/{issuer}/{partition}.crl"`, the server
	// assigns each certificate to one of `crl.partitions` partitions (in the configuration), for the certificate's
	// lifetime. By default certificates contain no CRL URL.
	CRLURL string `yaml:"crl_url"`
	// The URL of the delta CRL of the certificate's partition (freshest CRL, RFC 5280 section 4.2.1.15), starting with
	// `http://`. The server publishes delta CRLs at `"{public_url}/crl/{issuer}/{partition}-delta.crl"`. Both this URL
	// and `crl_url` must contain `{issuer}` and `{partition}`, which the server replaces as in `crl_url`. By default
	// certificates contain no delta CRL URL.
	DeltaCRLURL string `yaml:"delta_crl_url"`
	// The URL of the OCSP responder that certificates contain, starting with `http://`. Brevet's responder is at
	// `"{public_url}/ocsp"`. The server replaces placeholders as in `crl_url`. By default certificates contain no OCSP
	// URL.
	OCSPURL string `yaml:"ocsp_url"`
	// The URL of the issuing CA's certificate that certificates contain, starting with `http://`. The server publishes
	// that certificate at `"{public_url}/ca/{issuer}.cer"`. It replaces placeholders as in `crl_url`. By default
	// certificates contain no URL of their issuing CA's certificate.
	CAURL string `yaml:"ca_url"`
	// Whether certificates state that no revocation information is available (noRevAvail, RFC 9608). Relying parties
	// that support the extension accept such a certificate until it expires, even if it is revoked. Brevet's own server
	// still refuses it then. Set the key only for short lifetimes: `max_lifetime` is at most 7 days with it. `crl_url`,
	// `delta_crl_url` and `ocsp_url` must be omitted.
	NoRevAvail bool `yaml:"no_rev_avail"`
	// Whether a renewal revokes the renewed certificate, with the reason superseded. The server then refuses requests
	// with that certificate, even on open connections, and the CRL lists it until it expires. If a device has lost the
	// response to the renewal, it may still repeat the renewal with that certificate. By default the renewed
	// certificate stays good until it expires.
	RenewalRevokes bool `yaml:"renewal_revokes"`
	// The maximum number of unexpired certificates of an identity, including revoked ones: 1 to 1000, by default 6. At
	// the limit, the server refuses to renew a certificate in the first half of its lifetime; after that it always
	// renews. Enrollments with tokens made with `--replace` and bulk issuance may create up to sixteen times as many
	// certificates.
	MaxUnexpired int `yaml:"max_unexpired"`
	// Where the holder of a certificate can renew it: `grpc` (as `brevet-agent` does) and `est` (RFC 7030). By default
	// both. `[]` is for none: the holder enrolls again with evidence. The profile of the certificate that is renewed
	// decides, not the one that the identity has now. A recovery after expiry counts as a renewal by `grpc`.
	Renewals []string `yaml:"renewals"`
	// Whether the server lints each certificate with zlint before it is signed, which takes time. By default the server
	// lints only samples of each profile, when it starts and when the policy is applied.
	Lint bool `yaml:"lint"`
}

//go:embed profiles.yaml
var defaultProfiles []byte

// DefaultProfiles returns the built-in profiles by name.
func DefaultProfiles() (map[string]ProfileConfig, error) {
	var p map[string]ProfileConfig
	if err := yaml.Unmarshal(defaultProfiles, &p); err != nil {
		return nil, fmt.Errorf("read the default profiles: %w", err)
	}
	return p, nil
}

// nameRule says whether certificates contain a kind of name besides the SPIFFE ID.
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
	anonymous   bool // the certificates do not contain the SPIFFE ID
	crlURL      string
	deltaCRLURL string
	ocspURL     string
	caURL       string
	// partitioned means that the certificates are spread over the partitions of their CA's CRL.
	partitioned    bool
	noRevAvail     bool
	renewalRevokes bool
	renewals       []pki.Door
	maxUnexpired   int
	lintEach       bool
	// encoders encode the certificates of each issuing CA. They are nil unless Authority.Prepare has returned the profile.
	encoders map[pki.IssuerID]*tbsEncoder
}

// NewProfile validates a profile. publicURL is the URL of the CA's public HTTP port, such as http://pki.fleet.example,
// and replaces {public_url}. If the profile is not valid, the error is a [*ProfileError].
func NewProfile(name string, c ProfileConfig, publicURL string) (*Profile, error) {
	p := &Profile{name: name, noRevAvail: c.NoRevAvail, renewalRevokes: c.RenewalRevokes, lintEach: c.Lint}
	readURLs := func(c ProfileConfig) error { return p.readURLs(c, publicURL) }
	checkDelegate := func(ProfileConfig) error { return p.checkDelegate() }
	for _, step := range []func(ProfileConfig) error{
		p.readKinds, p.readTimes, p.readKeys, p.readUsages, p.readNames, p.readRenewals, p.readBound, readURLs, p.checkNoRevAvail, checkDelegate,
	} {
		if err := step(c); err != nil { // its text begins with the key
			key, problem, _ := strings.Cut(err.Error(), ": ")
			return nil, &ProfileError{Profile: name, Key: key, Err: errors.New(problem)}
		}
	}
	return p, nil
}

// Name returns the profile's name.
func (p *Profile) Name() string { return p.name }

// Lifetime returns the lifetime of a certificate if the request names none.
func (p *Profile) Lifetime() time.Duration { return p.lifetime }

// MaxLifetime returns the maximum lifetime that a request may name.
func (p *Profile) MaxLifetime() time.Duration { return p.maxLifetime }

// RenewalRevokes reports whether a renewal revokes the renewed certificate.
func (p *Profile) RenewalRevokes() bool { return p.renewalRevokes }

// RenewableAt reports whether a certificate of the profile can be renewed at a door.
func (p *Profile) RenewableAt(d pki.Door) bool { return slices.Contains(p.renewals, d) }

// MaxUnexpired returns how many unexpired certificates an identity may have before early renewals are refused.
func (p *Profile) MaxUnexpired() int { return p.maxUnexpired }

// Keys returns the accepted types of keys in the order of the document. There is at least one.
func (p *Profile) Keys() []pki.KeyType { return slices.Clone(p.keys) }

// Permits reports whether a kind of identity may have certificates of the profile.
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
		return fmt.Errorf("kinds: name at least one kind of identity")
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

// These constants bound max_unexpired. A renewal reads up to the greatest max_unexpired of all profiles entries of an
// index, and a request of an operator up to 16 times as many.
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
		return fmt.Errorf("max_unexpired: %d is out of range: use 1 to %d, or omit it for %d",
			c.MaxUnexpired, maxUnexpired, defaultUnexpired)
	}
	return nil
}

func (p *Profile) readRenewals(c ProfileConfig) error {
	if c.Renewals == nil {
		p.renewals = pki.Doors()
		return nil
	}
	for _, text := range c.Renewals {
		d := pki.Door(text)
		if !slices.Contains(pki.Doors(), d) {
			return fmt.Errorf("renewals: %q is not one of grpc, est", text)
		}
		p.renewals = append(p.renewals, d)
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
		return fmt.Errorf("keys: name at least one type of key, such as P-256")
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
		return errors.New("key_usage: name at least one")
	case len(p.extKeyUsage) == 0:
		return errors.New("extended_key_usage: name at least one")
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
			continue // forbidden by default
		}
		r, ok := rules[n.text]
		if !ok {
			return fmt.Errorf("%s: %q is not one of %s", n.key, n.text, names(rules))
		}
		*n.to = r
	}
	p.anonymous = c.SPIFFEID != nil && !*c.SPIFFEID
	if p.anonymous && p.dnsNames == forbidden && p.ipAddresses == forbidden {
		return errors.New("spiffe_id: certificates without it need other names: allow dns_names or ip_addresses")
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

// checkDelegate restricts OCSPSigning to the kind va, without other purposes and with a short lifetime.
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
		return errors.New("extended_key_usage: OCSPSigning cannot be combined with others")
	case p.maxLifetime > MaxDelegateLifetime:
		return fmt.Errorf("max_lifetime: an OCSP responder's certificate cannot be revoked: use %s or less",
			MaxDelegateLifetime)
	case p.renewalRevokes:
		return errors.New("renewal_revokes: relying parties do not check an OCSP responder's certificate: remove it")
	}
	return nil
}

// delegate reports whether the profile is for delegated OCSP responders.
func (p *Profile) delegate() bool { return slices.Contains(p.extKeyUsage, x509.ExtKeyUsageOCSPSigning) }

// names returns the keys of a map, sorted and separated by commas.
func names[V any](m map[string]V) string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return strings.Join(keys, ", ")
}
