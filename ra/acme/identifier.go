package acme

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// IdentifierType is the type of a name.
type IdentifierType string

// The types of identifiers.
const (
	DNS IdentifierType = "dns" // RFC 8555 section 9.7.7
	IP  IdentifierType = "ip"  // RFC 8738
)

// Identifier is a name for which a client requests a certificate. In orders it is normalized: a DNS name is in lower case
// and in ASCII and may begin with "*.", and an IP address is in its canonical form.
type Identifier struct {
	Type  IdentifierType
	Value string
}

// wildcard is the leftmost label of a DNS name that stands for any one label (RFC 6125 section 6.4.3).
const wildcard = "*."

// String formats the identifier as its type, a colon and its value.
func (i Identifier) String() string { return string(i.Type) + ":" + i.Value }

// IsWildcard reports whether the identifier is a DNS name that begins with "*.".
func (i Identifier) IsWildcard() bool { return i.Type == DNS && strings.HasPrefix(i.Value, wildcard) }

// Base returns the identifier without "*.".
func (i Identifier) Base() Identifier {
	if i.IsWildcard() {
		i.Value = i.Value[len(wildcard):]
	}
	return i
}

// hintNames is the hint of a name that is not valid.
const hintNames = "request DNS names in lower case, with punycode labels for other characters, and IP addresses with the type ip"

// ParseIdentifiers normalizes the identifiers of an order: it sorts them, and removes repetitions. It refuses more than
// MaxIdentifiers, types other than dns and ip, and values that cannot be in a certificate.
func ParseIdentifiers(all []Identifier) ([]Identifier, error) {
	if len(all) == 0 || len(all) > MaxIdentifiers {
		return nil, pki.Refuse(pki.RuleACMEIdentifier, "request 1 to 100 names in one order", "the order has %d identifiers", len(all))
	}
	names := make([]Identifier, 0, len(all))
	var refused []IdentifierRefusal
	for _, i := range all {
		n, err := i.parse()
		if refusal, ok := pki.AsRefusal(err); ok {
			refused = append(refused, IdentifierRefusal{i, refusal})
		} else if err != nil {
			return nil, err
		}
		names = append(names, n)
	}
	if err := joinRefusals(refused); err != nil {
		return nil, err
	}
	slices.SortFunc(names, func(a, b Identifier) int { return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Value, b.Value)) })
	return slices.Compact(names), nil
}

func (i Identifier) parse() (Identifier, error) {
	switch i.Type {
	case DNS:
		return i.parseDNS()
	case IP:
		addr, err := netip.ParseAddr(i.Value)
		if err != nil {
			return i, pki.Refuse(pki.RuleACMEIdentifier, hintNames, "%.100q is not an IP address", i.Value)
		}
		_, addrs, err := ra.CheckNames(nil, []netip.Addr{addr})
		if err != nil {
			return i, refuseName(err)
		}
		return Identifier{IP, addrs[0].String()}, nil
	default:
		return i, pki.Refuse(pki.RuleACMEIdentifierType, "request identifiers of the type dns or ip",
			"identifiers of the type %.40q are not supported", string(i.Type))
	}
}

// parseDNS normalizes a DNS name. Only ASCII letters are converted to lower case: other characters with a lower-case form
// in ASCII, such as the Kelvin sign, are refused.
func (i Identifier) parseDNS() (Identifier, error) {
	isASCII := !strings.ContainsFunc(i.Value, func(c rune) bool { return c > unicode.MaxASCII })
	base, isWildcard := strings.CutPrefix(i.Value, wildcard)
	if !isASCII || isWildcard && !strings.Contains(base, ".") {
		return i, pki.Refuse(pki.RuleACMEIdentifier, hintNames, "%.300q is not a DNS name for a certificate", i.Value)
	}
	names, _, err := ra.CheckNames([]string{base}, nil)
	if err != nil {
		return i, refuseName(err)
	}
	if isWildcard {
		return Identifier{DNS, wildcard + names[0]}, nil
	}
	return Identifier{DNS, names[0]}, nil
}

// refuseName returns the refusal of an identifier for which err says what is wrong.
func refuseName(err error) error {
	refusal, ok := pki.AsRefusal(err)
	if !ok {
		return err
	}
	return pki.Refuse(pki.RuleACMEIdentifier, refusal.Hint, "%s", refusal.Detail)
}

// commonDomain returns the longest domain that contains all names, which are normalized. A domain contains itself, and a
// wildcard is in the domain after "*.". The result is empty if a name is an IP address, or if there is no such domain.
func commonDomain(all []Identifier) string {
	var common []string // labels
	for i, n := range all {
		if n.Type != DNS {
			return ""
		}
		labels := strings.Split(n.Base().Value, ".")
		if i == 0 {
			common = labels
		}
		same := 0
		for same < min(len(labels), len(common)) && labels[len(labels)-1-same] == common[len(common)-1-same] {
			same++
		}
		common = common[len(common)-same:]
	}
	return strings.Join(common, ".")
}

// NamesOf returns the names of a certificate with these identifiers, which are normalized.
func NamesOf(all []Identifier) ca.Names {
	var n ca.Names
	for _, i := range all {
		if addr, err := netip.ParseAddr(i.Value); i.Type == IP && err == nil {
			n.IPs = append(n.IPs, addr)
		} else {
			n.DNS = append(n.DNS, i.Value)
		}
	}
	return n
}

// covers reports whether a certificate for the identifier is also one for a name, which is no wildcard.
func (i Identifier) covers(name Identifier) bool {
	if i == name {
		return true
	}
	_, parent, found := strings.Cut(name.Value, ".")
	return found && i.IsWildcard() && name.Type == DNS && i.Base().Value == parent
}

// checkOwnNames refuses names of this server: another holder of a certificate for them could pose as the server.
func (a *Authority) checkOwnNames(all []Identifier) error {
	var refused []IdentifierRefusal
	for _, i := range all {
		if slices.ContainsFunc(a.OwnNames, i.covers) {
			refused = append(refused, IdentifierRefusal{i, pki.Refuse(pki.RuleACMEIdentifier,
				"order without this name; the server gets its certificates by itself", "%s is a name of this server", i.Value)})
		}
	}
	return joinRefusals(refused)
}
