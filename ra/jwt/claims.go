package jwt

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// clockSkew is the tolerated difference between the clocks of an issuer and of the server.
const clockSkew = time.Minute

// claims are the registered claims of a token (RFC 7519 §4.1), and all others. The claims iss, sub and exp are present.
type claims struct {
	issuer   string
	subject  string
	audience []string
	expires  time.Time
	// notBefore and issuedAt are zero if the token does not have them.
	notBefore time.Time
	issuedAt  time.Time
	hasID     bool // whether the token has an ID (jti)
	all       object
}

// readClaims reads the claims. It refuses claims of the wrong type, and tokens without a required claim.
func readClaims(payload object) (claims, error) {
	c := claims{all: payload}
	for name, to := range map[string]*string{"iss": &c.issuer, "sub": &c.subject} {
		var ok bool
		if *to, ok = payload.text(name); !ok || *to == "" {
			return c, pki.Refuse(pki.RuleEvidenceMalformed, "send a token with iss, sub and exp",
				"the claim %s of the token is missing, empty or not a text", name)
		}
	}
	id, ok := payload.text("jti")
	if !ok {
		return c, pki.Refuse(pki.RuleEvidenceMalformed, "send a token with a text as jti, or without one",
			"the claim jti of the token is not a text")
	}
	c.hasID = id != ""
	switch aud := payload["aud"].(type) {
	case nil:
	case string:
		c.audience = []string{aud}
	default:
		if c.audience, ok = texts(aud); !ok {
			return c, pki.Refuse(pki.RuleEvidenceMalformed, "send a token whose audience is a text, or a list of texts",
				"the claim aud of the token is not a text or a list of texts")
		}
	}
	for name, to := range map[string]*time.Time{"exp": &c.expires, "nbf": &c.notBefore, "iat": &c.issuedAt} {
		var err error
		if *to, err = readTime(payload[name]); err != nil {
			return c, pki.Refuse(pki.RuleEvidenceMalformed, "send a token whose times are seconds since 1970",
				"the claim %s of the token %s", name, err)
		}
	}
	if c.expires.IsZero() {
		return c, pki.Refuse(pki.RuleEvidenceMalformed, "send a token that expires", "the token has no claim exp")
	}
	return c, nil
}

// maxTime is the last second of the year 9999.
const maxTime = 253402300799

// readTime reads a NumericDate (RFC 7519 §2), in whole seconds. It returns the zero time if there is none.
func readTime(value any) (time.Time, error) {
	switch v := value.(type) {
	case nil:
		return time.Time{}, nil
	case json.Number:
		seconds, err := v.Float64()
		if err != nil || math.IsNaN(seconds) || seconds <= 0 || seconds > maxTime {
			return time.Time{}, errors.New("is not between the years 1970 and 9999")
		}
		return time.Unix(int64(seconds), 0).UTC(), nil
	default:
		return time.Time{}, errors.New("is not a number")
	}
}

// checkTimes refuses a token that is not valid at a time, or is valid for longer than lifetime. If the token does not
// say when it was issued, its lifetime counts from that time.
func (c claims) checkTimes(at time.Time, lifetime time.Duration) error {
	const checkClocks = "check the clocks of the issuer and of the server, and request a new token"
	if !at.Before(c.expires.Add(clockSkew)) {
		return pki.Refuse(pki.RuleEvidenceExpired, "request a new token", "the token expired at %s (server time is %s)",
			stamp(c.expires), stamp(at))
	}
	for _, start := range []time.Time{c.notBefore, c.issuedAt} {
		if start.After(at.Add(clockSkew)) {
			return pki.Refuse(pki.RuleEvidenceNotYet, checkClocks, "the token is not valid before %s (server time is %s)",
				stamp(start), stamp(at))
		}
	}
	issued := c.issuedAt
	if issued.IsZero() {
		issued = at
	}
	if c.expires.Sub(issued) > lifetime {
		return pki.Refuse(pki.RuleEvidenceUntrusted, fmt.Sprintf("request a token that is valid for %s at most", lifetime),
			"the token is valid from %s until %s, which is too long", stamp(issued), stamp(c.expires))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// checkAudience refuses a token that is not for an audience.
func (c claims) checkAudience(want string) error {
	if !slices.Contains(c.audience, want) {
		return pki.Refuse(pki.RuleEvidenceAudience, fmt.Sprintf("request a token for the audience %q", want),
			"the token has %d audiences, and none is that of the source", len(c.audience))
	}
	return nil
}

// ClaimFact makes a claim of a source's tokens readable for the policy.
type ClaimFact struct {
	// Fact is the name of the fact: "jwt." and a lower-case name, such as jwt.repository.
	Fact string
	// Pointer is the JSON pointer of the claim (RFC 6901), such as /repository.
	Pointer string
	// Type is the type of the claim: ra.FactString, ra.FactInt, ra.FactBool or ra.FactStrings.
	Type ra.FactType
}

const maxClaimFacts = 64 // maximum number of configured claims of a source

var (
	factName = regexp.MustCompile(`^jwt\.[a-z][a-z0-9_]{0,63}$`)
	// reservedNames are literals and operators of CEL.
	reservedNames = []string{"jwt.true", "jwt.false", "jwt.null", "jwt.in", "jwt.kubernetes"}
	typeNames     = map[ra.FactType]string{
		ra.FactString: "a text", ra.FactInt: "a whole number", ra.FactBool: "true or false",
		ra.FactStrings: "a list of texts",
	}
)

// claimFact is a ClaimFact that was checked.
type claimFact struct {
	ClaimFact
	path []string
}

func (f ClaimFact) compile() (claimFact, error) {
	_, isStandard := standardFacts[f.Fact]
	if isStandard || !factName.MatchString(f.Fact) || slices.Contains(reservedNames, f.Fact) {
		return claimFact{}, fmt.Errorf("%.100q cannot be the name of a claim's fact: use jwt. and an unused name of "+
			"lower-case letters, digits and _, such as jwt.repository", f.Fact)
	}
	if _, ok := typeNames[f.Type]; !ok {
		return claimFact{}, fmt.Errorf("the fact %s has the type %d: use a string, an int, a bool or a list of strings",
			f.Fact, f.Type)
	}
	if !strings.HasPrefix(f.Pointer, "/") || len(f.Pointer) > maxKeyID {
		return claimFact{}, fmt.Errorf("%.100q is not the JSON pointer of a claim: use a slash and the name of the claim, "+
			"such as /repository", f.Pointer)
	}
	unescape := strings.NewReplacer("~1", "/", "~0", "~")
	c := claimFact{ClaimFact: f}
	for name := range strings.SplitSeq(f.Pointer[1:], "/") {
		if strings.Contains(strings.NewReplacer("~0", "", "~1", "").Replace(name), "~") {
			return claimFact{}, fmt.Errorf("%.100q is not a JSON pointer: write ~0 for ~, and ~1 for a slash in a name",
				f.Pointer)
		}
		c.path = append(c.path, unescape.Replace(name))
	}
	return c, nil
}

// read returns the value of the fact. It returns nil if the token does not have the claim, and a refusal if the claim
// is of another type.
func (f claimFact) read(all object) (any, error) {
	value := f.find(all)
	if value == nil {
		return nil, nil
	}
	switch f.Type {
	case ra.FactString:
		if text, ok := value.(string); ok {
			return text, nil
		}
	case ra.FactInt:
		if number, ok := value.(json.Number); ok {
			if n, err := number.Int64(); err == nil {
				return n, nil
			}
		}
	case ra.FactBool:
		if b, ok := value.(bool); ok {
			return b, nil
		}
	default:
		if list, ok := texts(value); ok {
			return list, nil
		}
	}
	return nil, pki.Refuse(pki.RuleEvidenceMalformed,
		"an operator corrects the type of this claim in the configuration of the source",
		"the claim %s of the token is not %s", f.Pointer, typeNames[f.Type])
}

// find returns the claim, or nil.
func (f claimFact) find(all object) any {
	value := any(all)
	for _, name := range f.path {
		switch v := value.(type) {
		case object:
			value = v[name]
		case []any:
			i, err := strconv.ParseUint(name, 10, 16)
			if err != nil || i >= uint64(len(v)) || strconv.FormatUint(i, 10) != name {
				return nil
			}
			value = v[i]
		default:
			return nil
		}
	}
	return value
}
