package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// Limits of the facts of one piece of evidence. Grant refuses evidence with facts above them, so that the cost of a
// condition is bounded.
const (
	maxFactBytes = 1024
	maxFactItems = 256
)

// Distinguisher is implemented by an [ra.Authenticator] whose claims have a subject. The claims of other authenticators
// name the identity themselves.
type Distinguisher interface {
	// Unique returns the facts that distinguish two subjects. The template of an identity must contain at least one of
	// them, and the rule must fix its scope, so that two devices do not get the same identity.
	Unique() []ra.UniqueFact
}

// Alias is implemented by an [ra.Authenticator] whose claims have the facts and the subjects of another kind of evidence.
type Alias interface{ SameAs() pki.EvidenceKind }

// Itemizer is implemented by an [ra.Authenticator] with a fact that lists the ways in which parts of the evidence were proved,
// such as the challenges of the names of an ACME order. A rule matches only if its condition holds for each item alone.
// Otherwise a condition about one way would hold although another part was proved in another way. If it holds for some items,
// the request is refused.
type Itemizer interface {
	// Itemized returns the name of the fact, which is a list of texts.
	Itemized() string
}

// HardwareProver is implemented by an [ra.Authenticator] whose claims can say that a key is in hardware.
type HardwareProver interface {
	// Certified returns the names of the facts that a claim has only if a manufacturer has certified the hardware. Other
	// hardware can be a simulation.
	Certified() []string
}

// Section checks the part of one document that configures a kind of evidence, such as its trust sources.
type Section interface {
	// Check returns an error if the values are not valid. If the error is a [Faults], the faults keep their lines. It is
	// called at most once, and must not change the values.
	Check(values *yaml.Node) error
}

// Declarer is implemented by a Section whose values declare facts, such as claims of JWTs with their types.
type Declarer interface {
	// Declare returns the facts that valid values declare, and which of them distinguish two subjects. The names begin
	// with the name of the kind and a dot.
	Declare(values *yaml.Node) (facts map[string]ra.FactType, unique []ra.UniqueFact)
}

// Kind describes a kind of evidence to the policy.
type Kind struct {
	Evidence pki.EvidenceKind
	Name     string // as in the list evidence of a rule
	// SameAs is the name of the kind whose facts and subjects the evidence has. If it is empty, they are its own.
	SameAs string
	Facts  map[string]ra.FactType
	// Unique are the facts that distinguish two subjects. It is empty if the evidence names the identity itself.
	Unique []ra.UniqueFact
	// Itemized is the fact of Itemizer. It is empty if the evidence has none.
	Itemized string
	// Certified are the facts of HardwareProver. It is empty if the evidence says nothing about hardware.
	Certified []string
	// Section checks the top-level key with the name of the kind. If it is nil, the document cannot have that key.
	Section Section
}

// KindOf returns the description of the kind that an authenticator verifies.
func KindOf(kind pki.EvidenceKind, a ra.Authenticator, section Section) Kind {
	k := Kind{Evidence: kind, Name: kind.String(), Facts: a.Facts(), Section: section}
	if d, ok := a.(Distinguisher); ok {
		k.Unique = d.Unique()
	}
	if same, ok := a.(Alias); ok {
		k.SameAs = same.SameAs().String()
	}
	if i, ok := a.(Itemizer); ok {
		k.Itemized = i.Itemized()
	}
	if h, ok := a.(HardwareProver); ok {
		k.Certified = h.Certified()
	}
	return k
}

// prefix returns the kind whose facts the evidence has.
func (k Kind) prefix() string { return cmp.Or(k.SameAs, k.Name) }

// namesIdentity reports whether evidence of the kind can name the identity itself. An ACME order does so if the external
// key of its account is for an identity.
func (k Kind) namesIdentity() bool { return len(k.Unique) == 0 || k.isOrder() }

// isOrder reports whether the evidence is an ACME order.
func (k Kind) isOrder() bool { return k.Evidence == pki.EvidenceACME }

// Environment is what a document is checked against. All fields are required unless they say otherwise.
type Environment struct {
	TrustDomain string
	Kinds       []Kind
	// PublicURL replaces {public_url} in the profiles. See [ca.NewProfile].
	PublicURL string
	// Prepare returns the profiles in a form in which certificates of them can be issued, as [ca.Authority.Prepare] does. If
	// certificates of a profile cannot be issued, the error is a [*ca.ProfileError]. Prepare is nil for documents that are
	// only checked.
	Prepare func(*ca.Profiles) (*ca.Profiles, error)
}

// check returns an error if the kinds contradict each other, which is an error in the program and not in the document.
func (e Environment) check() error {
	for i, k := range e.Kinds {
		if err := k.check(); err != nil {
			return err
		}
		for _, other := range e.Kinds[:i] {
			if other.Name == k.Name || other.Evidence == k.Evidence {
				return fmt.Errorf("two kinds of evidence have the name %s or the number %d", k.Name, k.Evidence)
			}
		}
	}
	return nil
}

// check returns an error if the facts of a kind contradict each other.
func (k Kind) check() error {
	for _, name := range slices.Sorted(maps.Keys(k.Facts)) {
		if t := k.Facts[name]; !strings.HasPrefix(name, k.prefix()+".") || t < ra.FactString || t > ra.FactStrings {
			return fmt.Errorf("evidence of the kind %s cannot have the fact %q of type %d", k.Name, name, t)
		}
	}
	if k.Itemized != "" && k.Facts[k.Itemized] != ra.FactStrings {
		return fmt.Errorf("the itemized fact %q of the kind %s is no list of texts", k.Itemized, k.Name)
	}
	for _, u := range k.Unique {
		for _, name := range slices.Concat([]string{u.Name}, slices.Concat(u.Within...)) {
			if t := k.Facts[name]; t != ra.FactString && t != ra.FactInt {
				return fmt.Errorf("the unique fact %q of the kind %s, or its scope, is neither a text nor a number", name, k.Name)
			}
		}
	}
	return nil
}

// with returns the kind with the facts that a document declares. It returns an error if they are not valid.
func (k Kind) with(facts map[string]ra.FactType, unique []ra.UniqueFact) (Kind, error) {
	all := maps.Clone(k.Facts)
	for _, name := range slices.Sorted(maps.Keys(facts)) {
		if _, exists := all[name]; exists {
			return k, fmt.Errorf("the fact %s exists already: choose another name", name)
		}
		all[name] = facts[name]
	}
	k.Facts, k.Unique = all, append(slices.Clone(k.Unique), unique...)
	return k, k.check()
}

// kindSet is a set of one or two kinds of evidence, in ascending order. If there is one, the second is zero. Rules for
// ACME orders that name the identity themselves have a set of their own, namedOrders.
type kindSet [2]pki.EvidenceKind

// namedOrders is the set of the rules for ACME orders that name the identity. Orders cannot be combined with other
// evidence, so the second place is free.
var namedOrders = kindSet{pki.EvidenceACME, 255}

func newKindSet(kinds ...pki.EvidenceKind) kindSet {
	var s kindSet
	copy(s[:], kinds)
	if s[1] != 0 && s[0] > s[1] {
		s[0], s[1] = s[1], s[0]
	}
	return s
}

// A declaration is the type of a fact, the kind whose evidence has it, and its position among all facts of the schema.
type declaration struct {
	kind     pki.EvidenceKind
	is       ra.FactType
	position int
}

// A schema declares the facts of a set of kinds.
type schema struct {
	names    []string // sorted
	facts    map[string]declaration
	itemized string // the fact of the kinds that is itemized; empty if there is none
}

func newSchema(kinds []Kind) *schema {
	s := &schema{facts: map[string]declaration{}}
	for _, k := range kinds {
		s.itemized = cmp.Or(s.itemized, k.Itemized)
		for name, is := range k.Facts {
			s.facts[name] = declaration{kind: k.Evidence, is: is}
		}
	}
	s.names = slices.Sorted(maps.Keys(s.facts))
	for i, name := range s.names {
		d := s.facts[name]
		d.position = i
		s.facts[name] = d
	}
	return s
}
