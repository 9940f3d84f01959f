package revisions

import (
	"fmt"
	"log/slog"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/jwt"
	"github.com/brevet-pki/brevet/ra/nonce"
	"github.com/brevet-pki/brevet/ra/policy"
	"github.com/brevet-pki/brevet/ra/recovery"
	"github.com/brevet-pki/brevet/ra/token"
	"github.com/brevet-pki/brevet/ra/tpm"
	"github.com/brevet-pki/brevet/ra/x5c"
)

// Compiler compiles documents. Tokens, Certificates and Nonces may be nil for documents that are only checked, and serve no
// requests.
type Compiler struct {
	TrustDomain string
	Profiles    policy.Profiles
	Tokens      token.Store
	// Certificates reads the certificates with which identities recover, and Retention is how long it keeps them after
	// their expiry.
	Certificates recovery.Store
	Retention    time.Duration
	Nonces       *nonce.Sealer
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
	e := policy.Environment{TrustDomain: c.TrustDomain, Profiles: c.Profiles}
	all := map[pki.EvidenceKind]ra.Authenticator{}
	for _, k := range c.kinds() {
		a, err := k.make(sectionOf(document, k.kind.String()))
		var section policy.Section
		if k.configured {
			section = sectionError{err}
		}
		if a == nil {
			a = k.sample
		} else {
			all[k.kind] = a
		}
		e.Kinds = append(e.Kinds, policy.KindOf(k.kind, a, section))
	}
	p, err := policy.Compile(document, revision, e)
	if err != nil {
		return Compiled{}, err
	}
	for _, k := range p.Kinds() {
		if all[k] == nil {
			return Compiled{}, policy.Faults{{Key: k.String(), Problem: fmt.Sprintf("a rule is for evidence of the kind %s: add the section %s with its trust sources", k, k)}}
		}
	}
	return Compiled{ra.Revision{Authenticators: all, Policy: p}, p}, nil
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

// sectionError is a policy.Section that was decoded before: it reports what was found.
type sectionError struct{ err error }

// Check implements policy.Section.
func (s sectionError) Check(*yaml.Node) error { return s.err }

// kind says how the authenticator of a kind of evidence is made.
type kind struct {
	kind       pki.EvidenceKind
	configured bool             // whether a document can have a section for the kind
	sample     ra.Authenticator // declares the facts if the document has no section
	// make returns the authenticator for a section, which is nil if the document has none. It returns nil if the kind is
	// not accepted without a section.
	make func(section *yaml.Node) (ra.Authenticator, error)
}

// kinds returns all kinds of evidence.
func (c Compiler) kinds() []kind {
	return []kind{
		{pki.EvidenceToken, false, nil, func(*yaml.Node) (ra.Authenticator, error) { return token.New(c.Tokens), nil }},
		{pki.EvidenceX5C, true, new(x5c.Authenticator), func(section *yaml.Node) (ra.Authenticator, error) {
			from, err := x5cSources(section, c.Files.crlsOf)
			if err != nil || section == nil {
				return nil, err
			}
			return orNil(x5c.New(from, c.Nonces))
		}},
		{pki.EvidenceTPM, true, new(tpm.Authenticator), func(section *yaml.Node) (ra.Authenticator, error) {
			from, err := tpmSources(section)
			if err != nil {
				return nil, err
			}
			return orNil(tpm.New(from, c.Nonces))
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
	}
}

// orNil returns a nil interface instead of an interface that holds a nil pointer.
func orNil[A ra.Authenticator](a A, err error) (ra.Authenticator, error) {
	if err != nil {
		return nil, err
	}
	return a, nil
}

// sectionOf returns the value of a top-level key, or nil if the document has none or does not parse. policy.Compile
// reports that it does not parse.
func sectionOf(document []byte, key string) *yaml.Node {
	if len(document) > ra.MaxPolicy {
		return nil
	}
	var root yaml.Node
	if err := yaml.Unmarshal(document, &root); err != nil || len(root.Content) != 1 || root.Content[0].Kind != yaml.MappingNode {
		return nil
	}
	top := root.Content[0]
	for i := 0; i+1 < len(top.Content); i += 2 {
		if top.Content[i].Value == key {
			return top.Content[i+1]
		}
	}
	return nil
}
