package ca

import (
	"crypto/x509"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Profiles are the certificate profiles of one revision of the policy, by name. They are immutable and safe for
// concurrent use.
type Profiles struct {
	byName       map[string]*Profile
	maxUnexpired int
}

// NewProfiles returns the default profiles and own. A profile of own replaces the default profile with its name.
// publicURL is that of [NewProfile].
func NewProfiles(own map[string]*Profile, publicURL string) (*Profiles, error) {
	configs, err := DefaultProfiles()
	if err != nil {
		return nil, err
	}
	all := map[string]*Profile{}
	for name, c := range configs {
		if all[name], err = NewProfile(name, c, publicURL); err != nil {
			return nil, err
		}
	}
	maps.Copy(all, own)
	return collect(all), nil
}

func collect(all map[string]*Profile) *Profiles {
	ps := &Profiles{byName: all}
	for _, p := range all {
		ps.maxUnexpired = max(ps.maxUnexpired, p.maxUnexpired)
	}
	return ps
}

// Profile returns a profile by its name. It refuses a name that no profile has.
func (ps *Profiles) Profile(name string) (*Profile, error) {
	p, ok := ps.byName[name]
	if !ok {
		return nil, pki.Refuse(pki.RuleProfile, "use one of "+names(ps.byName), "there is no profile %q", name)
	}
	return p, nil
}

// Names returns the names of the profiles, sorted.
func (ps *Profiles) Names() []string { return slices.Sorted(maps.Keys(ps.byName)) }

// MaxUnexpired returns the greatest max_unexpired of all profiles.
func (ps *Profiles) MaxUnexpired() int { return ps.maxUnexpired }

// ProfileError is an error in a profile.
type ProfileError struct {
	Profile string
	Key     string // of the profile, such as "lifetime"; empty if the error is about the whole profile
	Err     error  // what was found, and what would pass
}

// Error returns "profiles.device.lifetime: problem". It omits an unknown key.
func (e *ProfileError) Error() string { return e.Path() + ": " + e.Err.Error() }

// Path returns the path of the key, such as "profiles.device.lifetime".
func (e *ProfileError) Path() string {
	return strings.TrimSuffix("profiles."+e.Profile+"."+e.Key, ".")
}

// Unwrap returns the problem.
func (e *ProfileError) Unwrap() error { return e.Err }

// Prepare returns the profiles in a form in which [Authority.Draft] accepts them. It signs samples of each profile with
// ephemeral keys, lints those of the current CA, and verifies that relying parties would accept them. If they would not,
// the error is a [*ProfileError].
//
// Profiles that do not differ from those in before are not prepared again. before was returned by Prepare, or is nil.
func (a *Authority) Prepare(all, before *Profiles) (*Profiles, error) {
	now := a.clock()
	if err := a.Current().checkTime(now); err != nil {
		return nil, &unavailable{what: err.Error(), after: time.Minute}
	}
	prepared := map[string]*Profile{}
	for _, name := range all.Names() {
		p := all.byName[name]
		if before != nil && p.sameAs(before.byName[name]) {
			prepared[name] = before.byName[name]
			continue
		}
		var err error
		if prepared[name], err = a.prepare(p, now); err != nil {
			return nil, &ProfileError{Profile: name, Err: err}
		}
	}
	return collect(prepared), nil
}

// sameAs reports whether two profiles have the same content, whether or not they are prepared.
func (p *Profile) sameAs(o *Profile) bool {
	if o == nil {
		return false
	}
	one, other := *p, *o
	one.encoders, other.encoders = nil, nil
	return reflect.DeepEqual(one, other)
}

// prepare returns the profile with its encoders for every CA, including CAs that are not valid now.
func (a *Authority) prepare(p *Profile, now time.Time) (*Profile, error) {
	prepared := *p
	prepared.encoders = map[pki.IssuerID]*tbsEncoder{}
	for id, u := range a.lints {
		l, err := u.encoder(p, within(u.issuer.Certificate, now))
		if err != nil {
			return nil, err
		}
		prepared.encoders[id] = l
	}
	if err := a.lints[a.current].lintProfile(p, prepared.encoders[a.current], now); err != nil {
		return nil, err
	}
	return &prepared, a.trialCAs[a.current].checkProfile(p, a.sample, now)
}

// within returns now, or the nearest time at which a certificate is valid.
func within(c *x509.Certificate, now time.Time) time.Time {
	switch {
	case now.Before(c.NotBefore):
		return c.NotBefore
	case !now.Before(c.NotAfter):
		return c.NotAfter.Add(-time.Second)
	default:
		return now
	}
}

// CheckProfiles verifies samples of the profiles, as [IssuingCA.CheckIssues] does. If relying parties would refuse one,
// the error is a [*ProfileError].
func (iss IssuingCA) CheckProfiles(all *Profiles, server pki.SPIFFEID, now time.Time) error {
	s, err := newTrialCA(iss)
	if err != nil {
		return err
	}
	for _, name := range all.Names() {
		if err := s.checkProfile(all.byName[name], server, now); err != nil {
			return &ProfileError{Profile: name, Err: err}
		}
	}
	return nil
}

// checkProfile returns an error if relying parties would refuse certificates of the profile now.
func (s *trialCA) checkProfile(p *Profile, id pki.SPIFFEID, now time.Time) error {
	for _, usage := range p.extKeyUsage {
		err := s.checkUsage(usage)
		if err == nil {
			err = s.verify(id, Names{}, usage, now)
		}
		if err != nil {
			return fmt.Errorf("relying parties would refuse its certificates: %w", err)
		}
	}
	return nil
}
