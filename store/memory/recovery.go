package memory

import (
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/rules"
)

// recovery returns the records that a recovery of an identity with a new key depends on.
func (s *state) recovery(id pki.SPIFFEID, want pki.Recovery, key pki.KeyHash, at time.Time) rules.Recovery {
	identity := s.identities[id]
	on := rules.Recovery{State: identity.State, Count: identity.Recoveries}
	_, on.KeyKnown = s.keys[key]
	var newest *cert
	for i := range s.certs {
		if c := &s.certs[i]; c.Delivered && c.Identity == id {
			newest = c
		}
	}
	if newest == nil {
		return on
	}
	on.Newest = s.recoveryCertificate(newest)
	if proven := s.certificateOf(id, want.Certificate); proven != nil {
		on.Proven = s.recoveryCertificate(proven)
		on.Precedes = proven.Successor == newest.KeyHash
		for i := range s.certs {
			c := &s.certs[i]
			isOther := c.Delivered && c.Identity == id && c != proven
			on.OtherGood = on.OtherGood || isOther && c.Status.State == pki.Good && c.NotAfter.After(stored(at))
		}
	}
	return on
}

func (s *state) recoveryCertificate(c *cert) rules.RecoveryCertificate {
	return rules.RecoveryCertificate{
		Ref: c.Ref, NotAfter: c.NotAfter, Status: c.Status, Superseded: c.supersededBy >= 0, Renewed: !c.Successor.IsZero(),
		Compromised: s.keys[c.KeyHash].compromised,
	}
}
