package jwt

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/ra"
)

// Config is a [Source] as an operator writes it in YAML. Unlike a Source, it does not contain the path of a credential:
// the author of a policy must not be able to send a secret of the server to a host of their choice. The host of the API
// server determines the credential.
type Config struct {
	Issuer      string        `yaml:"issuer"`
	Audience    string        `yaml:"audience"`
	Algorithms  []string      `yaml:"algorithms"`
	JWKS        string        `yaml:"jwks"` // a JWK Set in JSON
	Discovery   bool          `yaml:"discovery"`
	Roots       string        `yaml:"roots"` // PEM
	MaxLifetime time.Duration `yaml:"max_lifetime"`
	Claims      []struct {
		Fact    string `yaml:"fact"`
		Pointer string `yaml:"pointer"`
		Type    string `yaml:"type"`
	} `yaml:"claims"`
	Kubernetes *struct {
		Server string `yaml:"server"`
		Keys   bool   `yaml:"keys"`
		Review bool   `yaml:"review"`
	} `yaml:"kubernetes"`
}

// factTypes are the names of the types that a claim can have.
var factTypes = map[string]ra.FactType{
	"string": ra.FactString, "int": ra.FactInt, "bool": ra.FactBool, "strings": ra.FactStrings,
}

// Source converts the configuration of the source with a name. credential returns the path of the file with the bearer
// token for a host, which is a name or an address with its port, such as 10.20.0.1:6443. The path may be empty. New checks
// the result.
func (c Config) Source(name string, credential func(host string) string) (Source, error) {
	s := Source{
		Name: name, Issuer: c.Issuer, Audience: c.Audience, Algorithms: c.Algorithms, MaxLifetime: c.MaxLifetime,
		Keys: Keys{Discovery: c.Discovery},
	}
	if c.JWKS != "" {
		s.Keys.Static = []byte(c.JWKS)
	}
	if c.Roots != "" {
		s.Roots = x509.NewCertPool()
		if !s.Roots.AppendCertsFromPEM([]byte(c.Roots)) {
			return s, errors.New("roots: write CA certificates in PEM")
		}
	}
	if k := c.Kubernetes; k != nil {
		s.Keys.Cluster = k.Keys
		s.Kubernetes = &Kubernetes{Server: k.Server, Review: k.Review}
		if k.Server != "" {
			host, err := hostOf(k.Server)
			if err != nil {
				return s, fmt.Errorf("the API server: %w", err)
			}
			s.Kubernetes.Credential = credential(host)
		}
	}
	for _, f := range c.Claims {
		t, ok := factTypes[f.Type]
		if !ok {
			return s, fmt.Errorf("claims: %.100q is not a type: use string, int, bool or strings", f.Type)
		}
		s.Claims = append(s.Claims, ClaimFact{Fact: f.Fact, Pointer: f.Pointer, Type: t})
	}
	return s, nil
}
