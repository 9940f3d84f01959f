package policy

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
)

// maxProfiles is the maximum number of profiles in a document. Samples of each are signed and linted.
const maxProfiles = 100

// ownProfiles are the profiles in a document, with the lines of their names and keys by path, such as
// "profiles.pump.lifetime".
type ownProfiles struct {
	all   map[string]*ca.Profile
	lines map[string]int
}

// readProfiles checks the profiles in a document, and adds those to the default profiles. n is nil if the document has
// none.
func (c *compiler) readProfiles(n *yaml.Node) *ca.Profiles {
	c.own = ownProfiles{map[string]*ca.Profile{}, map[string]int{}}
	if n != nil {
		count := 0
		c.pairs(n, "profiles", func(key, value *yaml.Node, at string) {
			if count++; count > maxProfiles {
				if count == maxProfiles+1 {
					c.fault(key, "profiles", "there are more than %d profiles: remove some", maxProfiles)
				}
				return
			}
			c.profile(key, value, at)
		})
	}
	all, err := ca.NewProfiles(c.own.all, c.env.PublicURL)
	if err != nil {
		c.failed = err // the default profiles do not depend on the document
	}
	return all
}

// profile checks one profile. at is its path.
func (c *compiler) profile(key, value *yaml.Node, at string) {
	if key.Value == "" || pki.CheckProfileName(key.Value) != nil {
		c.fault(key, "profiles", "no profile can have this name: use printable ASCII, %d bytes at most", pki.MaxText)
		return
	}
	c.own.lines[at] = key.Line
	before := len(c.faults)
	config := c.profileConfig(value, at)
	if len(c.faults) > before {
		return
	}
	p, err := ca.NewProfile(key.Value, config, c.env.PublicURL)
	if err != nil {
		c.profileFault(err)
		return
	}
	c.own.all[key.Value] = p
}

// profileOf returns the profile of the identities that a rule registers. If there is none, it returns nil, and records a
// fault at a node.
func (c *compiler) profileOf(r *rule, at *yaml.Node) *ca.Profile {
	name := r.register.profile
	if _, written := c.own.lines["profiles."+name]; written && c.own.all[name] == nil {
		return nil // its own faults have been recorded
	}
	p, err := c.profiles.Profile(name)
	if refusal, ok := pki.AsRefusal(err); ok {
		c.fault(at, "profile", "%s: %s", refusal.Detail, refusal.Hint)
	}
	return p
}

// profileConfig decodes the keys of a profile.
func (c *compiler) profileConfig(n *yaml.Node, at string) ca.ProfileConfig {
	var config ca.ProfileConfig
	fields := map[string]field{}
	for f, v := range reflect.ValueOf(&config).Elem().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		fields[name] = func(key string, value *yaml.Node) {
			c.own.lines[key] = value.Line
			if value.Decode(v.Addr().Interface()) != nil {
				c.fault(value, key, "%s belongs here", words(v.Kind()))
			}
		}
	}
	c.keys(n, at, fields)
	return config
}

func words(k reflect.Kind) string {
	switch k {
	case reflect.Slice:
		return "a list of texts, such as [a, b],"
	case reflect.Bool, reflect.Pointer:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	default:
		return "a text"
	}
}

// profileFault records a [*ca.ProfileError] as a fault, at the line of its key or its profile. It records any other error
// as one of the program.
func (c *compiler) profileFault(err error) {
	var e *ca.ProfileError
	if !errors.As(err, &e) {
		c.failed = fmt.Errorf("prepare the profiles of the policy: %w", err)
		return
	}
	line, found := c.own.lines[e.Path()]
	if !found {
		line = c.own.lines[(&ca.ProfileError{Profile: e.Profile}).Path()]
	}
	c.faultAt(line, e.Path(), "%s", e.Err)
}
