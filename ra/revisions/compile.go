package revisions

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/ra/jwt"
	"github.com/brevet-pki/brevet/ra/nonce"
	"github.com/brevet-pki/brevet/ra/policy"
	"github.com/brevet-pki/brevet/ra/recovery"
	"github.com/brevet-pki/brevet/ra/token"
	"github.com/brevet-pki/brevet/ra/tpm"
	"github.com/brevet-pki/brevet/ra/x5c"
)

// Issuer issues the certificates of a revision's profiles. It is safe for concurrent use.
type Issuer interface {
	// Prepare returns the profiles in a form in which certificates of them can be issued. If they cannot be issued, the
	// error is a [*ca.ProfileError]. Profiles that are the same in before, which is nil for the first revision, need no
	// new checks. Prepare changes nothing.
	Prepare(all, before *ca.Profiles) (*ca.Profiles, error)
	// Activate makes durable what certificates of prepared profiles refer to, such as the URLs of CRLs. It may be repeated.
	Activate(ctx context.Context, all *ca.Profiles) error
}

// Compiler compiles documents. Issuer, Tokens, Certificates, Nonces and Orders may be nil for documents that are only checked,
// and serve no requests.
type Compiler struct {
	TrustDomain string
	PublicURL   string // replaces {public_url} in profiles
	Issuer      Issuer
	Tokens      token.Store
	// Certificates reads the certificates with which identities recover, and Retention is how long it keeps them after
	// their expiry. Without Certificates, the grace of recoveries is not compared with Retention.
	Certificates recovery.Store
	Retention    time.Duration
	Nonces       *nonce.Sealer
	Orders       acme.OrderReader // of ACME
	Files        *Files
	Clock        func() time.Time
	Log          *slog.Logger
}

// Compiled is a document that was compiled: a revision of the policy, and its rules.
type Compiled struct {
	ra.Revision
	Rules *policy.Policy
}

// Compile checks a document, and returns what serves requests with it. If the document has faults, the error is a
// [policy.Faults].
func (c Compiler) Compile(document []byte, revision uint64) (Compiled, error) {
	return c.compile(document, revision, nil)
}

// compile is Compile for a document that replaces one with the profiles before.
func (c Compiler) compile(document []byte, revision uint64, before *ca.Profiles) (Compiled, error) {
	e := policy.Environment{TrustDomain: c.TrustDomain, PublicURL: c.PublicURL}
	if c.Issuer != nil {
		e.Prepare = func(all *ca.Profiles) (*ca.Profiles, error) { return c.Issuer.Prepare(all, before) }
	}
	all := map[pki.EvidenceKind]ra.Authenticator{}
	sections := map[pki.EvidenceKind]*section{}
	for _, k := range c.kinds() {
		if !k.configured {
			a, err := k.make(nil)
			if err != nil {
				return Compiled{}, err
			}
			all[k.kind] = a
			e.Kinds = append(e.Kinds, policy.KindOf(k.kind, a, nil))
			continue
		}
		s := &section{of: k}
		sections[k.kind] = s
		e.Kinds = append(e.Kinds, policy.KindOf(k.kind, k.sample, s))
	}
	e.Kinds = append(e.Kinds, policy.KindOf(pki.EvidenceX5CTLS, new(x5c.TLSAuthenticator), nil)) // its sources are those of x5c
	p, err := policy.Compile(document, revision, e)
	if err != nil {
		return Compiled{}, err
	}
	for k, s := range sections {
		a, err := s.authenticator()
		if err != nil {
			return Compiled{}, err
		}
		if a != nil {
			all[k] = a
		}
	}
	if a, ok := all[pki.EvidenceX5C].(*x5c.Authenticator); ok {
		all[pki.EvidenceX5CTLS] = a.TLS()
	}
	for _, k := range p.Kinds() {
		if all[k] == nil {
			return Compiled{}, missing(k)
		}
	}
	return Compiled{ra.Revision{
		Authenticators: all, Policy: p, Profiles: p.Profiles(), Labels: p.Labels(), OrderRules: p.OrderRules(), OrderProfiles: p.OrderProfiles(),
	}, p}, nil
}

// missing returns the fault of a document with a rule for a kind of evidence, and without its section.
func missing(k pki.EvidenceKind) policy.Faults {
	section := k
	if k == pki.EvidenceX5CTLS {
		section = pki.EvidenceX5C
	}
	add := fmt.Sprintf("the section %s with its trust sources", section)
	switch section {
	case pki.EvidenceRecovery:
		add = "`recovery: {grace: 30d, times: 3}`"
	case pki.EvidenceACME:
		add = "`acme: {binding: required}`"
	}
	return policy.Faults{{Key: section.String(), Problem: fmt.Sprintf("a rule is for evidence of the kind %s: add %s", k, add)}}
}

// jwts returns the authenticator of JWTs, or nil if the revision accepts none.
func (c Compiled) jwts() *jwt.Authenticator {
	a, _ := c.Authenticators[pki.EvidenceJWT].(*jwt.Authenticator)
	return a
}

// Grace returns how long after its expiry a certificate can recover its identity. It is zero if the revision allows no
// recoveries.
func (c Compiled) Grace() time.Duration {
	a, ok := c.Authenticators[pki.EvidenceRecovery].(*recovery.Authenticator)
	if !ok {
		return 0
	}
	return a.Grace()
}

// section makes the authenticator of a kind of evidence from the part of a document that configures it. It implements
// [policy.Section] and [policy.Declarer].
type section struct {
	of   kind
	made ra.Authenticator // nil if the document has no such part
}

// Check implements policy.Section.
func (s *section) Check(values *yaml.Node) (err error) {
	s.made, err = s.of.make(values)
	return err
}

// Declare implements policy.Declarer. It returns the facts that the sample does not have.
func (s *section) Declare(*yaml.Node) (facts map[string]ra.FactType, unique []ra.UniqueFact) {
	made, sample := policy.KindOf(s.of.kind, s.made, nil), policy.KindOf(s.of.kind, s.of.sample, nil)
	facts = map[string]ra.FactType{}
	for name, t := range made.Facts {
		if _, known := sample.Facts[name]; !known {
			facts[name] = t
		}
	}
	for _, fact := range made.Unique {
		if !slices.ContainsFunc(sample.Unique, func(known ra.UniqueFact) bool { return known.Name == fact.Name }) {
			unique = append(unique, fact)
		}
	}
	return facts, unique
}

// authenticator returns the authenticator for the document that was checked, or nil if it does not accept the kind.
func (s *section) authenticator() (ra.Authenticator, error) {
	if s.made != nil {
		return s.made, nil
	}
	return s.of.make(nil)
}

// kind says how the authenticator of a kind of evidence is made.
type kind struct {
	kind       pki.EvidenceKind
	configured bool             // whether a document can have a section for the kind
	sample     ra.Authenticator // declares the facts if the document has no section
	// make returns the authenticator for a section, which is nil if the document has none. It returns nil if the kind is
	// not accepted without a section.
	make func(section *yaml.Node) (ra.Authenticator, error)
}

// kinds returns all kinds of evidence but x5c-tls, which has the trust sources of x5c.
func (c Compiler) kinds() []kind {
	return []kind{
		{pki.EvidenceToken, false, nil, func(*yaml.Node) (ra.Authenticator, error) { return token.New(c.Tokens), nil }},
		{pki.EvidenceX5C, true, new(x5c.Authenticator), func(section *yaml.Node) (ra.Authenticator, error) {
			from, err := x5cSources(section, c.Files.crlsOf)
			if err != nil || section == nil {
				return nil, err
			}
			return orNil(x5c.New(c.TrustDomain, from, c.Nonces))
		}},
		{pki.EvidenceTPM, true, new(tpm.Authenticator), func(section *yaml.Node) (ra.Authenticator, error) {
			from, err := tpmSources(section)
			if err != nil {
				return nil, err
			}
			return orNil(tpm.New(c.TrustDomain, from, c.Nonces))
		}},
		{pki.EvidenceJWT, true, new(jwt.Authenticator), func(section *yaml.Node) (ra.Authenticator, error) {
			from, err := jwtSources(section, c.Files.credential)
			if err != nil || section == nil {
				return nil, err
			}
			return orNil(jwt.New(from, c.Clock, c.Log))
		}},
		{pki.EvidenceRecovery, true, new(recovery.Authenticator), func(section *yaml.Node) (ra.Authenticator, error) {
			if section == nil {
				return nil, nil //nolint:nilnil // the kind is not accepted
			}
			return orNil(c.recovery(section))
		}},
		{pki.EvidenceACME, true, new(acme.Authenticator), func(section *yaml.Node) (ra.Authenticator, error) {
			if section == nil {
				return nil, nil //nolint:nilnil // ACME is off
			}
			settings, err := acmeSettings(section)
			return orNil(acme.NewAuthenticator(settings, c.Orders), err)
		}},
	}
}

// orNil returns a nil interface instead of an interface that holds a nil pointer.
func orNil[A ra.Authenticator](a A, err error) (ra.Authenticator, error) {
	if err != nil {
		return nil, err
	}
	return a, nil
}
