package revisions

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/ra/jwt"
	"github.com/brevet-pki/brevet/ra/policy"
	"github.com/brevet-pki/brevet/ra/recovery"
	"github.com/brevet-pki/brevet/ra/tpm"
	"github.com/brevet-pki/brevet/ra/x5c"
)

// maxSources is the maximum number of trust sources of one kind of evidence.
const maxSources = 256

// x5cSource is a trust source of factory certificates, as a document has it.
type x5cSource struct {
	Roots         string   `yaml:"roots"`         // PEM
	Intermediates string   `yaml:"intermediates"` // PEM
	Keys          []string `yaml:"keys"`
	MaxChain      int      `yaml:"max_chain"`
	RequireCRLs   bool     `yaml:"require_crls"`
}

// tpmSource is a trust source of certificates of endorsement keys, as a document has it.
type tpmSource struct {
	Roots         string `yaml:"roots"`         // PEM
	Intermediates string `yaml:"intermediates"` // PEM
}

// x5cSources returns the sources in the section x5c. crls returns the CRLs of the source with a name.
func x5cSources(section *yaml.Node, crls func(name string) *x5c.CRLs) ([]x5c.Source, error) {
	return sources(section, func(name string, raw x5cSource) (x5c.Source, error) {
		s := x5c.Source{Name: name, MaxChain: raw.MaxChain, RequireCRLs: raw.RequireCRLs}
		if err := x5c.CheckName(name); err != nil { // the name becomes a part of a path
			return s, err
		}
		s.CRLs = crls(name)
		for _, text := range raw.Keys {
			k, err := pki.ParseKeyType(text)
			if err != nil {
				return s, fmt.Errorf("keys: %w", err)
			}
			s.Keys = append(s.Keys, k)
		}
		var err error
		s.Roots, s.Intermediates, err = authorities(raw.Roots, raw.Intermediates)
		return s, err
	})
}

// tpmSources returns the sources in the section tpm.
func tpmSources(section *yaml.Node) ([]tpm.Source, error) {
	return sources(section, func(name string, raw tpmSource) (tpm.Source, error) {
		roots, intermediates, err := authorities(raw.Roots, raw.Intermediates)
		return tpm.Source{Name: name, Roots: roots, Intermediates: intermediates}, err
	})
}

// jwtSources returns the sources in the section jwt. credential returns the path of the credential for a host.
func jwtSources(section *yaml.Node, credential func(host string) string) ([]jwt.Source, error) {
	return sources(section, func(name string, raw jwt.Config) (jwt.Source, error) { return raw.Source(name, credential) })
}

// recoverySection is the section recovery, as a document has it.
type recoverySection struct {
	Grace string `yaml:"grace"`
	Times int    `yaml:"times"`
}

// recovery returns the authenticator for the section recovery. If the compiler has certificates, it
// refuses a grace after which the store may have removed the record of one.
func (c Compiler) recovery(section *yaml.Node) (*recovery.Authenticator, error) {
	var raw recoverySection
	if err := strictly(section, &raw); err != nil {
		return nil, err
	}
	grace, err := pki.ParseDuration(raw.Grace)
	if err != nil {
		return nil, fmt.Errorf("grace: %w", err)
	}
	if c.Certificates != nil && grace > c.Retention {
		return nil, fmt.Errorf("grace: %s is longer than the retention of %s, after which a certificate's record is removed: "+
			"shorten it, or raise retention in the configuration", pki.FormatDuration(grace), pki.FormatDuration(c.Retention))
	}
	return recovery.New(recovery.Config{
		TrustDomain: c.TrustDomain, Store: c.Certificates, Nonces: c.Nonces, Grace: grace, Times: raw.Times,
	})
}

// acmeSection is the section about ACME.
type acmeSection struct {
	Binding    string   `yaml:"binding"`
	Challenges []string `yaml:"challenges"`
}

// acmeSettings decodes the section about ACME.
func acmeSettings(section *yaml.Node) (acme.Settings, error) {
	if section.Kind != yaml.MappingNode {
		return acme.Settings{}, errors.New("write keys with values, such as {binding: required}")
	}
	var raw acmeSection
	if len(section.Content) > 0 {
		if err := strictly(section, &raw); err != nil {
			return acme.Settings{}, err
		}
	}
	var s acme.Settings
	switch raw.Binding {
	case "", "required":
	case "optional":
		s.OptionalBinding = true
	default:
		return s, fmt.Errorf("binding: %.40q is not one of required, optional", raw.Binding)
	}
	all := acme.ChallengeTypes()
	for _, text := range raw.Challenges {
		t := acme.ChallengeType(text)
		if !slices.Contains(all, t) || slices.Contains(s.Challenges, t) {
			return s, fmt.Errorf("challenges: %.40q is not one of http-01, dns-01, tls-alpn-01, or occurs twice", text)
		}
		s.Challenges = append(s.Challenges, t)
	}
	if raw.Challenges != nil && len(s.Challenges) == 0 {
		return s, errors.New("challenges: name at least one type, or remove the key to allow all")
	}
	if s.Challenges == nil {
		s.Challenges = all
	}
	return s, nil
}

// sources decodes a section: a map from the names of sources to their values.
func sources[Raw, Source any](section *yaml.Node, convert func(name string, raw Raw) (Source, error)) ([]Source, error) {
	if section == nil {
		return nil, nil
	}
	if section.Kind != yaml.MappingNode || len(section.Content) > 2*maxSources {
		return nil, policy.Faults{{Line: section.Line, Problem: fmt.Sprintf("write a map from names to trust sources, at most %d", maxSources)}}
	}
	var all []Source
	var faults policy.Faults
	for i := 0; i+1 < len(section.Content); i += 2 {
		name, value := section.Content[i], section.Content[i+1]
		var raw Raw
		err := strictly(value, &raw)
		if err == nil {
			var s Source
			if s, err = convert(name.Value, raw); err == nil {
				all = append(all, s)
				continue
			}
		}
		if inner := (policy.Faults)(nil); errors.As(err, &inner) {
			for _, f := range inner {
				faults = append(faults, policy.Fault{Line: f.Line, Key: name.Value + "." + f.Key, Problem: f.Problem})
			}
			continue
		}
		faults = append(faults, policy.Fault{Line: value.Line, Key: name.Value, Problem: err.Error()})
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return all, nil
}

// authorities parses the CA certificates of a source.
func authorities(roots, intermediates string) (r, i []*x509.Certificate, err error) {
	if r, err = certificates(roots); err != nil {
		return nil, nil, fmt.Errorf("roots: %w", err)
	}
	if len(r) == 0 {
		return nil, nil, errors.New("roots: write at least one certificate in PEM")
	}
	if i, err = certificates(intermediates); err != nil {
		return nil, nil, fmt.Errorf("intermediates: %w", err)
	}
	return r, i, nil
}

// certificates parses certificates in PEM, with nothing but white space between them.
func certificates(text string) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for rest := []byte(text); len(bytes.TrimSpace(rest)) > 0; {
		rest = bytes.TrimSpace(rest)
		block, after := pem.Decode(rest)
		if block == nil || !bytes.HasPrefix(rest, []byte("-----BEGIN")) || block.Type != "CERTIFICATE" {
			return nil, errors.New("write certificates in PEM, and nothing else")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d does not parse: %w", len(all)+1, err)
		}
		all, rest = append(all, c), after
	}
	return all, nil
}
