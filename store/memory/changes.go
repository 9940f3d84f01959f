package memory

import (
	"context"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/translog"
)

// Apply implements revocation.StatusStore. It changes expired certificates too.
func (st *Store) Apply(ctx context.Context, o revocation.Change) (revocation.ChangeResult, error) {
	var out revocation.ChangeResult
	err := st.writeOnce(ctx, o.Actor, rules.ChangePermission(o, o.Identity), o.At, func(s *state) (rules.Outcome, error) {
		err := o.CheckSubject()
		switch {
		case err != nil:
		case !o.Certificate.IsZero():
			out, err = s.orderCertificate(o)
		case !o.Identity.IsZero():
			out, err = s.orderIdentity(o)
		default:
			out, err = s.orderKey(o)
		}
		return rules.OutcomeOf(out, o.At), err
	}, func(s *state, have *rules.RecordedRequest) error {
		out = have.Outcome.Repeated(s.scope(o))
		return nil
	})
	if err != nil {
		return revocation.ChangeResult{}, err
	}
	return out, nil
}

// scope returns the current statuses of the certificates that o would change.
func (s *state) scope(o revocation.Change) []pki.StatusChange {
	var scope []pki.StatusChange
	first := s.certificate(o.Certificate)
	for i := range s.certs {
		c := &s.certs[i]
		sameKey := rules.CompromisesKeys(o) && first != nil && c.Delivered && c.KeyHash == first.KeyHash
		if c.Ref == o.Certificate || sameKey || c.Delivered && c.Identity == o.Identity {
			scope = append(scope, s.subject(c).Unchanged())
		}
	}
	return scope
}

// subject converts c for the functions of package rules.
func (s *state) subject(c *cert) *rules.Certificate {
	return &rules.Certificate{
		Ref: c.Ref, NotAfter: c.NotAfter, Status: c.Status, InvalidSince: c.InvalidSince, Delivered: c.Delivered,
		Identity: c.Identity, IdentityState: s.identities[c.Identity].State,
	}
}

// set sets the status of a certificate, and marks its key if o revokes for keyCompromise.
func (s *state) set(c *cert, next pki.StatusChange, invalidSince time.Time, o revocation.Change) {
	c.Status, c.InvalidSince = next.Status, invalidSince
	if c.Delivered && rules.CompromisesKeys(o) {
		s.mark(c.KeyHash)
	}
}

func (s *state) mark(hash pki.KeyHash) {
	k := s.keys[hash]
	k.compromised = true
	s.keys[hash] = k
}

// changeAll applies o to the certificates for which is returns true.
func (s *state) changeAll(o revocation.Change, out *rules.Applied, is func(c *cert) bool) error {
	for i := range s.certs {
		c := &s.certs[i]
		if !c.Delivered || !is(c) {
			continue
		}
		next, invalidSince, changed, err := s.subject(c).ChangeMember(o)
		if err != nil {
			return err
		}
		if !changed {
			out.Unchanged = append(out.Unchanged, next)
			continue
		}
		s.set(c, next, invalidSince, o)
		out.Add(next, invalidSince)
	}
	return nil
}

func (s *state) orderCertificate(o revocation.Change) (revocation.ChangeResult, error) {
	var out rules.Applied
	c := s.certificate(o.Certificate)
	if c == nil {
		return out.ChangeResult, rules.NoCertificate(o.Certificate.Serial)
	}
	if err := s.authorize(o.Actor, rules.ChangePermission(o, c.Identity), o.At); err != nil {
		return out.ChangeResult, err
	}
	next, invalidSince, changed, err := s.subject(c).Change(o)
	if err != nil {
		return out.ChangeResult, fmt.Errorf("certificate %s: %w", o.Certificate.Serial, err)
	}
	if !changed {
		return revocation.ChangeResult{Unchanged: []pki.StatusChange{next}}, nil
	}
	if err := s.subject(c).CheckHold(o, false); err != nil {
		return out.ChangeResult, err
	}
	s.set(c, next, invalidSince, o)
	out.Add(next, invalidSince)
	if rules.CompromisesKeys(o) && c.Delivered { // a renewal may have the same key
		err := s.changeAll(o, &out, func(other *cert) bool { return other.KeyHash == c.KeyHash && other.Ref != c.Ref })
		if err != nil {
			return out.ChangeResult, err
		}
	}
	return out.ChangeResult, s.record(o, c.Identity, rules.CertificateEntry(o, c.Identity, out))
}

func (s *state) orderKey(o revocation.Change) (revocation.ChangeResult, error) {
	var out rules.Applied
	k, ok := s.keys[o.Key]
	if !ok {
		return out.ChangeResult, rules.NoKey(o.Key)
	}
	err := s.changeAll(o, &out, func(c *cert) bool { return c.KeyHash == o.Key })
	if err != nil || len(out.Changed) == 0 && k.compromised {
		return out.ChangeResult, err // the change was made before
	}
	s.mark(o.Key)
	return out.ChangeResult, s.record(o, k.identity, rules.KeyEntry(o, k.identity, out))
}

func (s *state) orderIdentity(o revocation.Change) (revocation.ChangeResult, error) {
	var out rules.Applied
	move, err := s.moveIdentity(o)
	if err != nil {
		return out.ChangeResult, err
	}
	err = s.changeAll(o, &out, func(c *cert) bool { return c.Identity == o.Identity })
	if err != nil || !move.Changed && len(out.Changed) == 0 {
		return out.ChangeResult, err // the change was made before
	}
	return out.ChangeResult, s.record(o, o.Identity, rules.IdentityEntry(o, move.Action, out))
}

func (s *state) moveIdentity(o revocation.Change) (rules.IdentityMove, error) {
	id, ok := s.identities[o.Identity]
	if !ok {
		return rules.IdentityMove{}, rules.NoIdentity(o.Identity)
	}
	move, err := rules.MoveIdentity(o, id.State, id.resumes)
	if err == nil && move.Changed {
		id.State, id.resumes = move.State, move.Resumes
		id.Revision++
		s.identities[o.Identity] = id
	}
	return move, err
}

// record appends the entry of a change to the log, and revokes the tokens of the creator if [rules.Distrust] has a cause.
func (s *state) record(o revocation.Change, creator pki.SPIFFEID, e translog.Entry) error {
	if err := s.append(e); err != nil {
		return err
	}
	why := rules.Distrust(o)
	if why == "" {
		return nil
	}
	_, err := s.revokeTokensOf(creator, why, ra.TokenRevocation{By: o.Actor, At: o.At})
	return err
}
