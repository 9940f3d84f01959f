// Package evidencetest is the test suite for every ra.Authenticator. The tests of a kind of evidence provide a
// [Sample], and call [Run]; the tests of this package call [RunPairs] with a sample of each kind.
//
// The suite checks that an authenticator accepts valid evidence, that its claims contain what it declares, and that it
// refuses everything else by a rule: damaged evidence, evidence for another key or request, expired evidence, responses
// to the challenges of another CA, and evidence of another kind.
package evidencetest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// Sample is a device with evidence of one kind, and the authenticator that accepts the evidence.
type Sample struct {
	Kind          pki.EvidenceKind
	Authenticator ra.Authenticator
	// At is a time at which the evidence is valid. Expired is a time at which evidence that was made at At is not.
	At, Expired time.Time
	// Key is the hash of the key to certify.
	Key pki.KeyHash
	// Make returns the evidence for a request. It returns nil if the device cannot respond to the challenge.
	Make func(t testing.TB, r Request) []byte
	// Public is sent to get a challenge, as in ra.ChallengeRequest. It is nil for kinds without a challenge, and for
	// those whose challenge does not depend on it.
	Public []byte
	// Foreign is the authenticator of another CA. It is nil for kinds without a challenge.
	Foreign ra.Challenger
	// Identity is the record with which single-use evidence is bound. It may be zero for other kinds.
	Identity ra.Identity
	// Bearer means that the evidence is not made for one key and request, so that its holder chooses both, or that the
	// connection of the request proves it. Its claim can have a nonce without a challenge, which the store consumes.
	Bearer bool
	// SameAs is the kind whose facts and subjects the claims have. If it is zero, they are those of Kind.
	SameAs pki.EvidenceKind
}

// Request is the request that evidence is made for.
type Request struct {
	ID  pki.RequestID
	Key pki.KeyHash
	// Challenge is the server's challenge. It is nil for kinds of evidence without one.
	Challenge []byte
}

// Run runs the suite with one kind of evidence.
func Run(t *testing.T, s Sample) {
	t.Helper()
	r := s.request(t)
	evidence := s.Make(t, r)
	t.Run("valid", func(t *testing.T) { s.checkClaim(t, r, evidence) })
	t.Run("damaged", func(t *testing.T) { s.damaged(t, r, evidence) })
	if s.Bearer {
		t.Run("other request", func(t *testing.T) { s.sameClaim(t, r, evidence) })
	} else {
		t.Run("other request", func(t *testing.T) { s.otherRequest(t, r, evidence) })
	}
	t.Run("expired", func(t *testing.T) { refused(t, "expired", s.use(t, r, evidence, s.Expired), evidence) })
	if challenger, ok := s.Authenticator.(ra.Challenger); ok {
		t.Run("challenges", func(t *testing.T) { s.challenges(t, challenger, r) })
	}
}

// RunPairs checks for each pair of samples that the authenticator of one kind refuses the evidence of the other kind,
// and evidence of its own kind that responds to a challenge of the other kind.
func RunPairs(t *testing.T, samples ...Sample) {
	t.Helper()
	for _, a := range samples {
		for _, b := range samples {
			if a.Kind == b.Kind {
				continue
			}
			t.Run(b.Kind.String()+" for "+a.Kind.String(), func(t *testing.T) {
				r := b.request(t)
				evidence := b.Make(t, r)
				refused(t, "evidence of another kind", a.use(t, r, evidence, a.At), evidence)
				if _, ok := a.Authenticator.(ra.Challenger); !ok || r.Challenge == nil {
					return
				}
				r.Key = a.Key
				if evidence := a.Make(t, r); evidence != nil {
					refused(t, "a response to the challenge of another kind", a.use(t, r, evidence, a.At), evidence)
				}
			})
		}
	}
}

// request returns a new request, with a challenge if the kind has one.
func (s Sample) request(t testing.TB) Request {
	t.Helper()
	r := Request{ID: requestID(t), Key: s.Key}
	if challenger, ok := s.Authenticator.(ra.Challenger); ok {
		r.Challenge = s.challenge(t, challenger, r)
	}
	return r
}

func (s Sample) challenge(t testing.TB, by ra.Challenger, r Request) []byte {
	t.Helper()
	c := ra.ChallengeRequest{Kind: s.Kind, Request: r.ID, Key: r.Key, Public: s.Public}
	sealed, err := by.Challenge(context.Background(), c, s.At)
	if err != nil {
		t.Fatalf("a request for a challenge: %v", err)
	}
	return sealed
}

// use presents evidence as an enrollment does.
func (s Sample) use(t testing.TB, r Request, evidence []byte, at time.Time) error {
	t.Helper()
	_, err := s.identify(r, evidence, at)
	if err == nil {
		b := ra.Binding{Request: r.ID, Key: r.Key, Identity: s.Identity, At: at}
		err = s.Authenticator.Bind(context.Background(), evidence, b)
	}
	return err
}

func (s Sample) identify(r Request, evidence []byte, at time.Time) (ra.Claim, error) {
	p := ra.Presented{Evidence: evidence, Request: r.ID, Key: r.Key, At: at}
	return s.Authenticator.Identify(context.Background(), p)
}

// checkClaim checks the claim of valid evidence, and binds the evidence.
func (s Sample) checkClaim(t *testing.T, r Request, evidence []byte) {
	given := bytes.Clone(evidence)
	claim, err := s.identify(r, evidence, s.At)
	if err != nil {
		t.Fatalf("valid evidence: %v", err)
	}
	if again, err := s.identify(r, evidence, s.At); err != nil || !reflect.DeepEqual(again, claim) {
		t.Errorf("the same evidence gives the claims %+v and %+v, %v", claim, again, err)
	}
	if err := s.use(t, r, evidence, s.At); err != nil {
		t.Errorf("binding valid evidence: %v", err)
	}
	if err := s.use(t, r, evidence, s.At); err != nil {
		t.Errorf("the request repeated: %v", err)
	}
	if !bytes.Equal(evidence, given) {
		t.Error("the authenticator changed the evidence")
	}
	if claim.Identity.IsZero() == claim.Subject.IsZero() {
		t.Errorf("the claim names the identity %q and the subject %q, want one of them", claim.Identity, claim.Subject)
	}
	if !claim.Subject.IsZero() && claim.Subject.Kind != s.about() {
		t.Errorf("the subject %s is of another kind", claim.Subject)
	}
	if claim.Digest != sha256.Sum256(evidence) {
		t.Error("the digest is not the SHA-256 of the evidence")
	}
	actor := claim.Actor.String()
	if !strings.HasPrefix(actor, s.Kind.String()+":") || claim.Actor.NeedsAuthorization() {
		t.Errorf("the actor is %s, want one of the kind %s", actor, s.Kind)
	}
	_, challenged := s.Authenticator.(ra.Challenger)
	hasNonce := !claim.Nonce.IsZero()
	if hasNonce != challenged && !s.Bearer || hasNonce && !claim.Nonce.ExpiresAt.After(s.At) {
		t.Errorf("the nonce is %+v", claim.Nonce)
	}
	s.checkFacts(t, claim.Facts)
}

// checkFacts checks that the facts are those that the authenticator declares, with the declared types.
func (s Sample) checkFacts(t *testing.T, facts map[string]any) {
	t.Helper()
	declared := s.Authenticator.Facts()
	for name, value := range facts {
		if !hasType(value, declared[name]) {
			t.Errorf("the fact %s is a %T, and is declared with the type %d", name, value, declared[name])
		}
	}
	for name := range declared {
		if _, ok := facts[name]; !ok {
			t.Errorf("the claim has no fact %s", name)
		}
		if !strings.HasPrefix(name, s.about().String()+".") {
			t.Errorf("the fact %s does not begin with the kind", name)
		}
	}
}

// about returns the kind whose facts and subjects the claims have.
func (s Sample) about() pki.EvidenceKind { return cmp.Or(s.SameAs, s.Kind) }

func hasType(value any, want ra.FactType) bool {
	switch value.(type) {
	case string:
		return want == ra.FactString
	case int64:
		return want == ra.FactInt
	case bool:
		return want == ra.FactBool
	case time.Time:
		return want == ra.FactTime
	case []string:
		return want == ra.FactStrings
	default:
		return false
	}
}

// damaged changes each byte of the evidence, and its length.
func (s Sample) damaged(t *testing.T, r Request, evidence []byte) {
	for i := range evidence {
		changed := bytes.Clone(evidence)
		changed[i] ^= 1 << (i % 8)
		if err := s.use(t, r, changed, s.At); err == nil {
			t.Errorf("evidence with bit %d of byte %d changed is accepted", i%8, i)
		} else {
			refused(t, "changed", err, changed)
		}
		refused(t, "truncated", s.use(t, r, evidence[:i], s.At), evidence[:i])
	}
	for _, n := range []int{1, 4, 1000, 1 << 20} {
		zeros := make([]byte, n)
		for _, longer := range [][]byte{slices.Concat(evidence, zeros), slices.Concat(zeros, evidence)} {
			refused(t, "extended", s.use(t, r, longer, s.At), longer)
		}
		random := make([]byte, n)
		_, _ = rand.Read(random)
		refused(t, "random", s.use(t, r, random, s.At), random)
	}
	refused(t, "twice the evidence", s.use(t, r, slices.Concat(evidence, evidence), s.At), evidence)
	refused(t, "nil", s.use(t, r, nil, s.At), nil)
}

// otherRequest presents the evidence with another key, and with another request ID.
func (s Sample) otherRequest(t *testing.T, r Request, evidence []byte) {
	for name, other := range map[string]Request{
		"another key":     {ID: r.ID, Key: pki.HashSPKI([]byte("another key"))},
		"no key":          {ID: r.ID},
		"another request": {ID: requestID(t), Key: r.Key},
		"no request":      {Key: r.Key},
		"another of both": {ID: requestID(t), Key: pki.HashSPKI([]byte("another key"))},
	} {
		refused(t, name, s.use(t, other, evidence, s.At), evidence)
	}
}

// sameClaim checks that bearer evidence proves the same for every request, so that its nonce or its subject limits it.
func (s Sample) sameClaim(t *testing.T, r Request, evidence []byte) {
	claim, err := s.identify(r, evidence, s.At)
	another := Request{ID: requestID(t), Key: pki.HashSPKI([]byte("another key"))}
	other, otherErr := s.identify(another, evidence, s.At)
	if err != nil || otherErr != nil || !reflect.DeepEqual(claim, other) {
		t.Errorf("for another request, the claims are %+v and %+v, %v, %v", claim, other, err, otherErr)
	}
}

// challenges responds to the challenges of another CA, and to those for another key and another request.
func (s Sample) challenges(t *testing.T, own ra.Challenger, r Request) {
	otherKey := Request{ID: r.ID, Key: pki.HashSPKI([]byte("another key"))}
	for name, challenge := range map[string][]byte{
		"a challenge of another CA":         s.challenge(t, s.Foreign, r),
		"a challenge for another request":   s.challenge(t, own, Request{ID: requestID(t), Key: r.Key}),
		"a challenge for another key":       s.challenge(t, own, otherKey),
		"an empty challenge":                {},
		"a challenge that the device chose": bytes.Repeat([]byte{1}, len(r.Challenge)),
	} {
		if evidence := s.Make(t, Request{ID: r.ID, Key: r.Key, Challenge: challenge}); evidence != nil {
			refused(t, name, s.use(t, r, evidence, s.At), evidence)
		}
	}
}

// refused checks that err is a refusal by a known rule, with a detail and a hint, and that it does not contain the
// evidence.
func refused(t testing.TB, what string, err error, evidence []byte) {
	t.Helper()
	refusal := new(pki.Refusal)
	if !errors.As(err, &refusal) {
		t.Errorf("%s: got %v, want a refusal", what, err)
		return
	}
	if !slices.Contains(pki.Rules(), refusal.Rule) || refusal.Detail == "" || refusal.Hint == "" {
		t.Errorf("%s: the refusal has no known rule, no detail or no hint: %+v", what, *refusal)
	}
	const shortest = 16 // fewer bytes may occur by chance
	for _, form := range []string{
		string(evidence), hex.EncodeToString(evidence),
		base64.RawStdEncoding.EncodeToString(evidence), base64.RawURLEncoding.EncodeToString(evidence),
	} {
		if len(evidence) >= shortest && strings.Contains(err.Error(), form) {
			t.Errorf("%s: the refusal contains the evidence", what)
		}
	}
}

func requestID(t testing.TB) pki.RequestID {
	t.Helper()
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	id, err := pki.RequestIDFromBytes(b)
	if err != nil {
		t.Fatal(err)
	}
	return id
}
