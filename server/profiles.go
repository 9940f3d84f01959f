package server

import (
	"context"
	"fmt"
	"slices"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation/crl"
)

// issuer issues the certificates of a revision's profiles. It implements revisions.Issuer.
type issuer struct{ *Server }

// Prepare implements revisions.Issuer. It refuses profiles of which the server could not get its own certificates, or
// operators theirs.
func (s issuer) Prepare(all, before *ca.Profiles) (*ca.Profiles, error) {
	if err := s.checkOwnProfiles(all); err != nil {
		return nil, err
	}
	prepared, err := s.authority.Prepare(all, before)
	if err != nil {
		return nil, err
	}
	return prepared, s.checkPoints(prepared)
}

// checkPoints refuses profiles whose distribution points of CRLs cannot be served. Otherwise Activate would fail for a
// revision that is on record. The error names the first profile that adds a point too much.
func (s issuer) checkPoints(all *ca.Profiles) error {
	var points []crl.Point
	for _, name := range all.Names() {
		more, err := pointsOf(s.config, all, name)
		if err != nil {
			return err
		}
		points = append(points, more...)
		if err := s.crlUpdater.CheckPoints(points); err != nil {
			return &ca.ProfileError{Profile: name, Key: "crl_url", Err: err}
		}
	}
	return nil
}

// Activate implements revisions.Issuer. It records the distribution points of CRLs in the profiles' certificates, and
// creates the metrics of the profiles.
func (s issuer) Activate(ctx context.Context, all *ca.Profiles) error {
	points, err := pointsOf(s.config, all, all.Names()...)
	if err != nil {
		return err
	}
	if err := s.crlUpdater.AddPoints(ctx, points); err != nil {
		return err
	}
	s.telemetry.AddProfiles(all.Names())
	return nil
}

// pointsOf returns the distribution points of future certificates with some of the profiles.
func pointsOf(c Config, all *ca.Profiles, names ...string) ([]crl.Point, error) {
	var points []crl.Point
	for _, name := range names {
		p, err := all.Profile(name)
		if err != nil {
			return nil, err
		}
		for _, iss := range c.Issuers {
			for n := range c.CRLs.partitions() {
				partition := uint16(n + 1)
				if url, delta := p.CRLPoint(iss.ID, partition); url != "" {
					points = append(points, crl.Point{Issuer: iss.ID, Partition: partition, URL: url, DeltaURL: delta})
				}
			}
		}
	}
	return points, nil
}

// checkOwnProfiles returns a [*ca.ProfileError] if the profiles do not allow a certificate that a server needs: its own,
// that of its OCSP delegates, or that of an operator.
func (s *Server) checkOwnProfiles(all *ca.Profiles) error {
	for _, own := range []struct {
		profile string
		kind    pki.Kind
		check   func(p *ca.Profile) error // nil for none
	}{
		{pki.Server.String(), pki.Server, s.checkServerProfile}, {ra.DelegateProfile, pki.VA, s.checkDelegateProfile},
		{pki.Operator.String(), pki.Operator, nil},
	} {
		p, err := all.Profile(own.profile)
		if err != nil {
			return err
		}
		if !p.Permits(own.kind) {
			return &ca.ProfileError{
				Profile: own.profile, Key: "kinds", Err: fmt.Errorf("the profile is for identities of the kind %s: add %s", own.kind, own.kind),
			}
		}
		if own.check == nil {
			continue
		}
		if err := own.check(p); err != nil {
			return &ca.ProfileError{Profile: own.profile, Err: err}
		}
	}
	return nil
}

// checkServerProfile returns an error if a profile does not allow the server's own certificate.
func (s *Server) checkServerProfile(p *ca.Profile) error {
	if !slices.Contains(p.Keys(), serverKeys) {
		return fmt.Errorf("the server's own key is of the type %s: add it to keys", serverKeys)
	}
	id, err := pki.ServerID(s.config.TrustDomain, s.config.Server)
	if err != nil {
		return err
	}
	names, err := CheckNames(s.config.Names)
	if err != nil {
		return err
	}
	if err := p.CheckNames(id, names); err != nil {
		return fmt.Errorf("the server's own certificate has the names %v: %w", s.config.Names, err)
	}
	return nil
}

// checkDelegateProfile returns an error if the OCSP delegates cannot renew their certificates with a profile. A running
// server does not change the type of their keys.
func (s *Server) checkDelegateProfile(p *ca.Profile) error {
	if now := s.delegateKeys; now != "" && !slices.Contains(p.Keys(), now) {
		return fmt.Errorf("the OCSP delegates of the running server have keys of the type %s: keep it in keys until the server was restarted", now)
	}
	return nil
}
