package jwt

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/brevet-pki/brevet/pki"
)

// DefaultMaxLifetime is the default of Source.MaxLifetime.
const DefaultMaxLifetime = 24 * time.Hour

const maxText = 512 // maximum bytes of an issuer and an audience

// Source is what the tokens of one issuer must satisfy.
type Source struct {
	// Name identifies the source, as the fact jwt.source. It has 1 to 63 lower-case letters, digits and hyphens.
	Name string
	// Issuer is the claim iss of its tokens. No other source may have it, because tokens are identified by their
	// issuer and subject. Clusters therefore need issuers of their own.
	Issuer string
	// Audience must be in the claim aud of its tokens. It should name this CA, so that other services that get tokens of
	// the same issuer cannot enroll with them.
	Audience string
	// Algorithms are the algorithms that its tokens may have, such as RS256 or ES256 (RFC 7518 §3.1).
	Algorithms []string
	// Keys says where its public keys are.
	Keys Keys
	// Roots are the CA certificates with which the servers of the issuer and of the cluster are verified. Nil means
	// those of the system.
	Roots *x509.CertPool
	// MaxLifetime is the maximum time between iat and exp of a token. Zero means DefaultMaxLifetime.
	MaxLifetime time.Duration
	// Claims are the claims that become facts, at most 64. If a token does not have a claim, it does not have the fact.
	Claims []ClaimFact
	// Kubernetes describes the cluster, if the tokens are those of service accounts. Nil means that they are not.
	Kubernetes *Kubernetes
}

// Keys says where the public keys of an issuer are. At most one field is set. If none is set, Kubernetes.Review must be
// true: then the cluster verifies the tokens.
type Keys struct {
	// Static is a JWK Set (RFC 7517) that does not change.
	Static []byte
	// Discovery fetches the keys from the issuer, which must be an HTTPS URL (OpenID Connect Discovery 1.0 §4).
	Discovery bool
	// Cluster fetches the keys from Kubernetes.Server.
	Cluster bool
}

var sourceName = regexp.MustCompile(`^[a-z0-9-]{1,63}$`)

// source is a Source that was checked.
type source struct {
	name       string
	audience   string
	algorithms []jose.SignatureAlgorithm
	lifetime   time.Duration
	facts      []claimFact
	keys       keySource // nil if the cluster verifies the tokens
	kubernetes bool
	cluster    *cluster // nil if there are no TokenReviews
	client     *client
}

// compile checks the source. It starts nothing.
func (s Source) compile(clock func() time.Time, log *slog.Logger) (*source, error) {
	if !sourceName.MatchString(s.Name) {
		return nil, fmt.Errorf("%.100q is not the name of a source: use 1 to 63 lower-case letters, digits and hyphens",
			s.Name)
	}
	c := &source{
		name: s.Name, audience: s.Audience, lifetime: s.MaxLifetime, kubernetes: s.Kubernetes != nil,
		client: newClient(s.Roots),
	}
	if c.lifetime == 0 {
		c.lifetime = DefaultMaxLifetime
	}
	for what, text := range map[string]string{"issuer": s.Issuer, "audience": s.Audience} {
		if text == "" || len(text) > maxText {
			return nil, fmt.Errorf("source %s needs an %s of 1 to %d bytes", s.Name, what, maxText)
		}
	}
	if c.lifetime < 0 {
		return nil, fmt.Errorf("source %s has a negative maximum lifetime", s.Name)
	}
	var err error
	if c.algorithms, err = s.compileAlgorithms(); err != nil {
		return nil, err
	}
	if err := s.compileCluster(c); err != nil {
		return nil, fmt.Errorf("source %s: %w", s.Name, err)
	}
	if c.keys, err = s.compileKeys(c.client, clock, log); err != nil {
		return nil, fmt.Errorf("source %s: %w", s.Name, err)
	}
	if len(s.Claims) > maxClaimFacts {
		return nil, fmt.Errorf("source %s has %d claims, and may have %d", s.Name, len(s.Claims), maxClaimFacts)
	}
	for _, f := range s.Claims {
		fact, err := f.compile()
		if err != nil {
			return nil, fmt.Errorf("source %s: %w", s.Name, err)
		}
		if slices.ContainsFunc(c.facts, func(other claimFact) bool { return other.Fact == f.Fact }) {
			return nil, fmt.Errorf("source %s has two claims for the fact %s", s.Name, f.Fact)
		}
		c.facts = append(c.facts, fact)
	}
	return c, nil
}

func (s Source) compileAlgorithms() ([]jose.SignatureAlgorithm, error) {
	if len(s.Algorithms) == 0 {
		return nil, fmt.Errorf("source %s allows no algorithm: list those of its issuer, such as RS256", s.Name)
	}
	var all []jose.SignatureAlgorithm
	for _, name := range s.Algorithms {
		if !slices.Contains(algorithms, jose.SignatureAlgorithm(name)) {
			return nil, fmt.Errorf("source %s allows the algorithm %.20q: use %s", s.Name, name, joinAlgorithms(algorithms))
		}
		all = append(all, jose.SignatureAlgorithm(name))
	}
	return all, nil
}

func (s Source) compileCluster(c *source) error {
	k := s.Kubernetes
	if k == nil {
		if s.Keys.Cluster {
			return errors.New("its keys are those of a cluster: describe the cluster")
		}
		return nil
	}
	if !k.Review && !s.Keys.Cluster {
		return nil
	}
	if _, err := parseBase(k.Server); err != nil {
		return fmt.Errorf("the API server: %w", err)
	}
	if k.Review {
		c.cluster = &cluster{
			source: s.Name, server: strings.TrimSuffix(k.Server, "/"), credential: k.Credential, client: c.client,
			limits: newReviewLimits(s.Keys.Static == nil && !s.Keys.Discovery && !s.Keys.Cluster),
		}
	}
	return nil
}

func (s Source) compileKeys(c *client, clock func() time.Time, log *slog.Logger) (keySource, error) {
	chosen := 0
	for _, is := range []bool{s.Keys.Static != nil, s.Keys.Discovery, s.Keys.Cluster} {
		if is {
			chosen++
		}
	}
	switch {
	case chosen > 1:
		return nil, errors.New("its keys are in several places: choose a JWK Set, discovery or the cluster")
	case s.Keys.Static != nil:
		set, err := parseKeySet(s.Keys.Static)
		if err != nil {
			return nil, err
		}
		return staticKeys{set}, nil
	case s.Keys.Discovery:
		if _, err := parseBase(s.Issuer); err != nil {
			return nil, fmt.Errorf("discovery needs an issuer that is a URL: %w", err)
		}
		fetch := func(ctx context.Context) (*keySet, error) { return discover(ctx, c, s.Issuer) }
		return newRemoteKeys(s.Name, origin{s.Issuer, "", s.Roots}, fetch, clock, log), nil
	case s.Keys.Cluster:
		from := origin{strings.TrimSuffix(s.Kubernetes.Server, "/") + clusterKeysPath, s.Kubernetes.Credential, s.Roots}
		fetch := func(ctx context.Context) (*keySet, error) { return fetchKeys(ctx, c, from.location, from.credential) }
		return newRemoteKeys(s.Name, from, fetch, clock, log), nil
	case s.Kubernetes == nil || !s.Kubernetes.Review:
		return nil, errors.New("it has no keys: configure a JWK Set, or discovery")
	}
	return nil, nil
}

// verify verifies the signature of a token with the keys of the source. If the source has none, verify checks only the
// algorithm.
func (s *source) verify(ctx context.Context, t *token) error {
	if !slices.Contains(s.algorithms, t.algorithm) {
		return pki.Refuse(pki.RuleEvidenceAlgorithm, "sign tokens with one of "+joinAlgorithms(s.algorithms),
			"the source %s does not allow the algorithm %s", s.name, t.algorithm)
	}
	if s.keys == nil {
		return nil
	}
	set, err := s.keys.current(ctx)
	if err != nil {
		return err
	}
	key, err := set.find(t)
	if errors.Is(err, errNoKey) {
		if set, err = s.keys.newer(set); err != nil {
			return err
		}
		if err = errNoKey; set != nil {
			key, err = set.find(t)
		}
	}
	if errors.Is(err, errNoKey) {
		return pki.Refuse(pki.RuleEvidenceUntrusted, "request a token from the issuer that the source names",
			"the source %s has no key %.64q for the algorithm %s", s.name, t.keyID, t.algorithm)
	}
	if err != nil {
		return err
	}
	return key.verify(t)
}

// start begins to fetch the keys. If previous fetches them from the same place, its keys are used until then.
func (s *source) start(previous *source) {
	r, ok := s.keys.(*remoteKeys)
	if !ok {
		return
	}
	if previous != nil {
		if from, ok := previous.keys.(*remoteKeys); ok {
			r.adopt(from)
		}
	}
	r.refresh()
}

func (s *source) close() {
	if s.keys != nil {
		s.keys.close()
	}
	s.client.close()
}
