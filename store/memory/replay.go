package memory

import (
	"context"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/translog"
)

// Replay appends entries that continue the log, and restores their records without DER. It fails for entries of records
// that this store does not support.
func (st *Store) Replay(ctx context.Context, entries []translog.Sequenced) error {
	return st.write(ctx, func(s *state) error {
		verifier := translog.NewVerifier(s.head())
		for _, sequenced := range entries {
			if err := verifier.Add(sequenced); err != nil {
				return err
			}
			e, err := translog.ParseEntry(sequenced.Entry)
			if err != nil {
				return err
			}
			ops, err := rules.Replay(sequenced.Index, e)
			if err != nil {
				return err
			}
			for _, op := range ops {
				if err := s.carry(op); err != nil {
					return fmt.Errorf("replay log entry %d, %s: %w", sequenced.Index, e.Action, err)
				}
			}
			s.log, s.sequenced = append(s.log, sequenced.Entry), append(s.sequenced, sequenced.Chain)
		}
		return nil
	})
}

// carry executes one operation.
func (s *state) carry(op rules.Operation) error {
	switch op := op.(type) {
	case rules.AddIdentity:
		s.identities[op.ID] = identity{Identity: op.Identity}
	case rules.SetIdentity:
		id := s.identities[op.ID]
		id.Profile, id.Labels, id.DNSNames, id.IPAddresses, id.Revision = op.Profile, op.Labels, op.DNSNames, op.IPAddresses, op.Revision
		id.Subject, id.Roles = op.Subject, op.Roles
		s.identities[op.ID] = id
	case rules.ChangeIdentity:
		_, err := s.moveIdentity(op.Change)
		return err
	case rules.AddCertificate:
		s.replayCertificate(op)
	case rules.AddAbandoned:
		s.addAbandoned(op.IntentItem, op.Status)
	case rules.SetStatus:
		return s.replayStatus(op)
	case rules.MarkKey:
		s.mark(op.Key)
	case rules.AddPolicy:
		s.policies = append(s.policies, op.PolicyRevision)
	case rules.AddRotation:
		s.rotations = append(s.rotations, op.RecordedRotation)
	case rules.EndRotation:
		s.endRotation(op.End)
	case rules.KnowIssuer: // this store has no records of issuers
	default:
		return s.carryACME(op)
	}
	return nil
}

// carryToken executes an operation on tokens.
func (s *state) carryToken(op rules.Operation) error {
	switch op := op.(type) {
	case rules.AddToken:
		s.addToken(op.Token)
	case rules.SetTokenBinding:
		t := s.token(op.ID)
		if t == nil {
			return rules.NoToken(op.ID)
		}
		t.Request, t.Key = op.Request, op.Key
		if t.Identity.IsZero() {
			t.Identity, t.IdentityRevision = op.Identity, s.identities[op.Identity].Revision
		}
	case rules.SetTokenRevoked:
		t := s.token(op.ID)
		if t == nil {
			return rules.NoToken(op.ID)
		}
		t.RevokedBecause = op.Cause
	case rules.SetTokensRevoked:
		s.setTokensRevoked(op.Creator, op.Cause, time.Time{})
	default:
		return fmt.Errorf("this store does not support the operation %T", op)
	}
	return nil
}

func (s *state) replayCertificate(op rules.AddCertificate) {
	effects := rules.Effects{Superseded: op.Superseded}
	if place, ok := s.serials[op.Guard.Predecessor.Serial]; ok {
		op.Guard.Predecessor = s.certs[place].Ref
		effects.Succeeds = s.certs[place].Successor.IsZero() && !op.Guard.LosesPredecessor()
	}
	s.addIssued(&op.Record, effects)
}

func (s *state) replayStatus(op rules.SetStatus) error {
	c := s.certificate(op.Ref)
	if c == nil {
		return rules.NoCertificate(op.Ref.Serial)
	}
	c.Status, c.InvalidSince = op.Status, op.InvalidSince
	if c.Delivered && !op.CompromisedAt.IsZero() {
		s.mark(c.KeyHash)
	}
	return nil
}
