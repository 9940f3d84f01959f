package memory

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/audit"
	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/store/rules"
)

// CreateIdentity implements ra.IdentityStore.
func (st *Store) CreateIdentity(ctx context.Context, n ra.Registration, by pki.Actor) (ra.Identity, error) {
	id := n.Identity
	var have ra.Identity
	err := st.writeOnce(ctx, by, rules.RegistrationPermission(id.ID), id.CreatedAt, func(s *state) (none rules.Outcome, _ error) {
		if err := s.checkLabels(by, id.Labels); err != nil {
			return none, err
		}
		if on, ok := s.identities[id.ID]; ok {
			have = on.Identity
			return none, rules.CheckSameIdentity(have, id)
		}
		var err error
		have, err = s.register(n, by)
		return none, err
	}, func(s *state, _ *rules.RecordedRequest) error {
		have = s.identities[id.ID].Identity
		return nil
	})
	if err != nil {
		return ra.Identity{}, err
	}
	return have, nil
}

// register registers an identity that is not on record.
func (s *state) register(n ra.Registration, by pki.Actor) (ra.Identity, error) {
	if refusal := rules.CheckSubjectFree(s.holder(n.Subject, n.ID)); refusal != nil {
		return ra.Identity{}, refusal
	}
	if refusal := rules.CheckTotal(n, s.registeredBy(n.Rule)); refusal != nil {
		return ra.Identity{}, refusal
	}
	id := rules.NewIdentity(n.Identity)
	if err := rules.CheckAttributes(id); err != nil {
		return ra.Identity{}, err
	}
	s.identities[id.ID] = identity{Identity: id}
	return id, s.append(rules.RegisteredEntry(id, by))
}

// holder returns the identity other than id that a subject of evidence is tied to, and zero if there is none.
func (s *state) holder(subject pki.EvidenceSubject, id pki.SPIFFEID) pki.SPIFFEID {
	for _, other := range s.identities {
		if other.ID != id && !subject.IsZero() && other.Subject == subject {
			return other.ID
		}
	}
	return pki.SPIFFEID{}
}

// registeredBy returns the number of identities that a rule of the policy has registered.
func (s *state) registeredBy(rule string) int {
	n := 0
	for _, id := range s.identities {
		if id.Rule == rule {
			n++
		}
	}
	return n
}

// UpdateIdentity implements ra.IdentityStore.
func (st *Store) UpdateIdentity(ctx context.Context, id ra.Identity, by pki.Actor, at time.Time) (ra.Identity, error) {
	var have ra.Identity
	err := st.writeOnce(ctx, by, rules.RegistrationPermission(id.ID), at, func(s *state) (none rules.Outcome, _ error) {
		on, ok := s.identities[id.ID]
		if !ok {
			return none, rules.NoIdentity(id.ID)
		}
		before := on.Identity
		if err := s.checkLabels(by, before.Labels); err != nil {
			return none, err
		}
		var changed bool
		var err error
		if on.Identity, changed, err = rules.UpdateIdentity(before, id); err != nil {
			return none, err
		}
		if have = on.Identity; !changed {
			return none, nil
		}
		if err := s.checkLabels(by, have.Labels); err != nil {
			return none, err
		}
		if refusal := rules.CheckOwnRoles(by, before, have); refusal != nil {
			return none, refusal
		}
		if refusal := rules.CheckSubjectFree(s.holder(have.Subject, id.ID)); refusal != nil {
			return none, refusal
		}
		s.identities[id.ID] = on
		if err := s.append(rules.UpdatedEntry(have, by, at)); err != nil {
			return none, err
		}
		if why := rules.DistrustRoles(before, have); why != "" {
			_, err = s.revokeTokensOf(id.ID, why, ra.TokenRevocation{By: by, At: at})
		}
		return none, err
	}, func(s *state, _ *rules.RecordedRequest) error {
		have = s.identities[id.ID].Identity
		return nil
	})
	if err != nil {
		return ra.Identity{}, err
	}
	return have, nil
}

// Identity implements ra.IdentityStore.
func (st *Store) Identity(ctx context.Context, id pki.SPIFFEID) (ra.Identity, error) {
	var have ra.Identity
	err := st.read(ctx, func(s *state) error {
		on, ok := s.identities[id]
		if !ok {
			return rules.NoIdentity(id)
		}
		have = on.Identity
		return nil
	})
	return have, err
}

// token returns a token, or nil if it is not on record.
func (s *state) token(id pki.TokenID) *ra.Token {
	i := slices.IndexFunc(s.tokens, func(t ra.Token) bool { return t.ID == id })
	if i < 0 {
		return nil
	}
	return &s.tokens[i]
}

// CreateToken implements ra.TokenStore.
func (st *Store) CreateToken(ctx context.Context, t ra.Token) (ra.Token, error) {
	made := t
	err := st.writeOnce(ctx, t.CreatedBy, rules.RegistrationPermission(t.Identity), t.CreatedAt, func(s *state) (rules.Outcome, error) {
		return rules.Outcome{Token: t.ID}, s.insertToken(&made)
	}, func(s *state, have *rules.RecordedRequest) error {
		lost := s.token(have.Outcome.Token)
		if lost == nil {
			return rules.NoToken(have.Outcome.Token)
		}
		var err error
		if made, err = rules.ReplaceToken(*lost, t, s.identities[lost.Identity].Revision); err != nil {
			return err
		}
		if _, err := s.revokeToken(rules.TokenReplacement(lost, &made)); err != nil {
			return err
		}
		have.Outcome.Token = made.ID
		return s.insertToken(&made)
	})
	if err != nil {
		return ra.Token{}, err
	}
	return made, nil
}

func (s *state) insertToken(t *ra.Token) error {
	labels := t.Labels // those of the identities of a pattern
	if t.Pattern == "" {
		labels = s.identities[t.Identity].Labels
	}
	if err := s.checkLabels(t.CreatedBy, labels); err != nil {
		return err
	}
	if _, ok := s.identities[t.Identity]; !ok && t.Pattern == "" {
		return rules.NoIdentity(t.Identity)
	}
	if s.token(t.ID) != nil {
		return rules.TokenExists(t.ID)
	}
	s.addToken(*t)
	return s.append(rules.TokenCreatedEntry(t))
}

func (s *state) addToken(t ra.Token) {
	t.CreatorCertificate = t.CreatedBy.Caller().Certificate
	t.ExpiresAt, t.CreatedAt = stored(t.ExpiresAt), stored(t.CreatedAt)
	s.tokens = append(s.tokens, t)
}

// Token implements ra.TokenStore.
func (st *Store) Token(ctx context.Context, id pki.TokenID) (ra.Token, error) {
	var have ra.Token
	err := st.read(ctx, func(s *state) error {
		t := s.token(id)
		if t == nil {
			return rules.NoToken(id)
		}
		have = named(*t)
		return nil
	})
	return have, err
}

// named returns a token as the store returns it: CreatedBy does not contain the creator's certificate.
func named(t ra.Token) ra.Token {
	t.CreatedBy = t.CreatedBy.Named()
	return t
}

// BindToken implements ra.TokenStore.
func (st *Store) BindToken(ctx context.Context, id pki.TokenID, b ra.Binding) (ra.Token, error) {
	var have ra.Token
	err := st.write(ctx, func(s *state) error {
		t := s.token(id)
		if t == nil {
			return rules.NoToken(id)
		}
		var on *ra.Identity
		if claimed, ok := s.identities[b.Identity.ID]; ok {
			on = &claimed.Identity
		}
		var bound bool
		var err error
		if *t, bound, err = rules.BindToken(*t, b, on); err != nil {
			return err
		}
		if have = named(*t); !bound {
			return nil
		}
		if b.Register != nil {
			if _, err := s.register(*b.Register, pki.ActorToken(id)); err != nil {
				return err
			}
		}
		return s.append(rules.TokenBoundEntry(t, b.At))
	})
	if err != nil {
		return ra.Token{}, err
	}
	return have, nil
}

// RevokeTokens implements ra.TokenInventory.
func (st *Store) RevokeTokens(ctx context.Context, v ra.TokenRevocation) (int, error) {
	var n int
	err := st.writeOnce(ctx, v.By, pki.MayRevoke, v.At, func(s *state) (out rules.Outcome, _ error) {
		err := rules.CheckTokenRevocation(v)
		if err != nil {
			return out, err
		}
		if v.ID != "" {
			n, err = s.revokeToken(v)
			return rules.Outcome{Valid: n}, err
		}
		if _, ok := s.identities[v.CreatedBy]; !ok {
			return out, rules.NoIdentity(v.CreatedBy)
		}
		n, err = s.revokeTokensOf(v.CreatedBy, rules.TokensRevokedOfAll, v)
		return rules.Outcome{Valid: n}, err
	}, func(_ *state, have *rules.RecordedRequest) error {
		n = have.Outcome.Valid
		return nil
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

func (s *state) revokeToken(v ra.TokenRevocation) (int, error) {
	prefix, err := rules.TokenPrefix(v.ID)
	if err != nil {
		return 0, err
	}
	i := slices.IndexFunc(s.tokens, func(t ra.Token) bool { return bytes.HasPrefix(t.ID.Bytes(), prefix) })
	if i < 0 {
		return 0, rules.NoTokenNamed(v.ID)
	}
	t := &s.tokens[i]
	revokes, usable := rules.RevokesToken(t, v.At)
	if !revokes {
		return 0, nil
	}
	t.RevokedBecause = rules.TokenRevokedAlone
	n := 0
	if usable {
		n = 1
	}
	return n, s.append(rules.TokenRevokedEntry(v, t, n))
}

// revokeTokensOf revokes the tokens and the unused external keys that an identity has created, and returns how many of the
// tokens could have been used. If there are none since the last such revocation, it writes nothing.
func (s *state) revokeTokensOf(creator pki.SPIFFEID, why string, v ra.TokenRevocation) (int, error) {
	if err := s.revokeExternalKeysOf(creator, why, v.By, v.At); err != nil {
		return 0, err
	}
	made, n := s.setTokensRevoked(creator, why, v.At)
	if !made {
		return 0, nil
	}
	return n, s.append(rules.TokensRevokedEntry(v, creator, why, n))
}

// setTokensRevoked revokes the tokens that an identity has created since the last such revocation. It reports whether there
// are any, and how many of them could have been used at the given time.
func (s *state) setTokensRevoked(creator pki.SPIFFEID, why string, at time.Time) (made bool, n int) {
	for i := s.distrusted[creator]; i < len(s.tokens); i++ {
		t := &s.tokens[i]
		if t.CreatedBy.Caller().Identity != creator || creator.IsZero() {
			continue
		}
		made = true
		revokes, usable := rules.RevokesToken(t, at)
		if revokes {
			t.RevokedBecause = why
		}
		if usable {
			n++
		}
	}
	if made {
		s.distrusted[creator] = len(s.tokens)
	}
	return made, n
}

// Certificate implements ra.CertificateStore.
func (st *Store) Certificate(ctx context.Context, ref pki.CertRef) (ra.Certificate, error) {
	var have ra.Certificate
	err := st.read(ctx, func(s *state) error {
		c := s.certificate(ref)
		if c == nil {
			return rules.NoCertificate(ref.Serial)
		}
		have = c.Certificate
		return nil
	})
	return have, err
}

// CertificateBySerial implements ra.CertificateStore.
func (st *Store) CertificateBySerial(ctx context.Context, serial pki.Serial) (ra.Certificate, error) {
	var have ra.Certificate
	err := st.read(ctx, func(s *state) error {
		place, ok := s.serials[serial]
		if !ok {
			return rules.NoCertificate(serial)
		}
		have = s.certs[place].Certificate
		return nil
	})
	return have, err
}

// answer returns the index of the certificate that was issued for a request of an identity, or -1.
func (s *state) answer(id pki.SPIFFEID, request pki.RequestID) int {
	if request.IsZero() {
		return -1
	}
	return slices.IndexFunc(s.certs, func(c cert) bool {
		return c.Delivered && c.Identity == id && c.RequestID == request
	})
}

// IssuanceState implements ra.IssuanceStore.
func (st *Store) IssuanceState(ctx context.Context, q ra.IssuanceQuery) (ra.IssuanceState, error) {
	var have ra.IssuanceState
	err := st.read(ctx, func(s *state) error {
		have.Caller = s.callerIdentity(q.Caller)
		id, ok := s.identities[q.Identity]
		have.KeyRefusal = s.keyState(q.Key, q.Identity).Check()
		have.SubjectRefusal = rules.CheckSubject(q.Identity, id.Subject, q.Subject, s.holder(q.Subject, q.Identity))
		have.NonceRefusal = rules.CheckNonces(q.Nonces, s.anyUsed(q.Nonces), q.At)
		if !q.Order.IsZero() {
			have.OrderRefusal = rules.CheckACMEOrder(s.orderState(acme.ID(q.Order.ID.Bytes()), q.At))
			have.Unexpired = s.unexpiredOrders(q.Order.Names, q.At, q.MaxUnexpired)
		}
		if !ok {
			return rules.NoIdentity(q.Identity)
		}
		have.Identity = id.Identity
		if q.Order.IsZero() {
			have.Unexpired = s.unexpired(q.Identity, q.At, q.MaxUnexpired, (*cert).isUnordered)
		} else {
			have.OrdersUnexpired = s.unexpired(q.Identity, q.At, q.Order.MaxUnexpired, (*cert).isOrdered)
		}
		if !q.Recovery.IsZero() {
			on := s.recovery(q.Identity, q.Recovery, q.Key, q.At)
			have.Recovery = ra.RecoveryState{Newest: on.Newest.Ref, Refusal: on.Check(q.Identity, q.Recovery, q.At)}
		}
		var before *cert
		if !q.Predecessor.IsZero() {
			if before = s.certificateOf(q.Identity, q.Predecessor); before == nil {
				return rules.NoPredecessor(q.Predecessor)
			}
			have.Predecessor = ra.Predecessor{
				Status: before.Status, Profile: before.Profile, Successor: before.Successor, IssuedAt: before.IssuedAt, NotAfter: before.NotAfter,
				Superseded: before.supersededBy >= 0, SameKey: before.KeyHash == q.Key,
			}
		}
		if place := s.answer(q.Identity, q.Request); place >= 0 {
			have.Prior = answerOf(&s.certs[place])
			have.Prior.Supersedes = before != nil && before.supersededBy == place
		}
		return nil
	})
	return have, err
}

func answerOf(c *cert) *ra.PriorIssuance {
	return &ra.PriorIssuance{Certificate: ca.Certificate{Ref: c.Ref, DER: c.DER, IssuedAt: c.IssuedAt, NotAfter: c.NotAfter}, Key: c.KeyHash}
}

// isOrdered reports whether an ACME account has ordered the certificate.
func (c *cert) isOrdered() bool { return !c.account.IsZero() }

// isUnordered reports whether no ACME account has ordered the certificate.
func (c *cert) isUnordered() bool { return c.account.IsZero() }

// unexpired counts the certificates of an identity that expire later than at and satisfy a condition, up to most.
func (s *state) unexpired(id pki.SPIFFEID, at time.Time, most int, counts func(*cert) bool) int {
	n := 0
	for i := range s.certs {
		if c := &s.certs[i]; c.Delivered && c.Identity == id && c.NotAfter.After(stored(at)) && n < most && counts(c) {
			n++
		}
	}
	return n
}

// Renewed implements ra.IssuanceStore.
func (st *Store) Renewed(ctx context.Context, q ra.IssuanceQuery, at time.Time) (*ra.PriorIssuance, error) {
	var have *ra.PriorIssuance
	err := st.read(ctx, func(s *state) error {
		before, ok := s.serials[q.Predecessor.Serial]
		for i := len(s.certs) - 1; ok && i > before && have == nil; i-- {
			c := &s.certs[i]
			if c.Identity == q.Identity && c.KeyHash == q.Key && c.Status.State == pki.Good && c.NotAfter.After(at) {
				have = answerOf(c)
			}
		}
		return nil
	})
	return have, err
}

// Refused implements audit.Store.
func (st *Store) Refused(ctx context.Context, r audit.Refusal) error {
	return st.write(ctx, func(s *state) error { return s.append(rules.RefusedEntry(r)) })
}
