package memory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/store/rules"
	"github.com/brevet-pki/brevet/translog"
)

// Begin implements ca.Journal.
func (st *Store) Begin(ctx context.Context) (ca.Epoch, []ca.Intent, error) { return st.begin(ctx, 0) }

// BeginAgain implements ca.Journal.
func (st *Store) BeginAgain(ctx context.Context, process ca.Epoch) (ca.Epoch, []ca.Intent, error) {
	return st.begin(ctx, process)
}

// begin opens an epoch of a process, or of a new one if process is zero.
func (st *Store) begin(ctx context.Context, process ca.Epoch) (ca.Epoch, []ca.Intent, error) {
	var epoch ca.Epoch
	var left []ca.Intent
	err := st.write(ctx, func(s *state) error {
		if process != 0 && process < s.process {
			return s.replaced(process)
		}
		s.epoch++
		if process == 0 {
			s.process = s.epoch
		}
		s.lastBatch = ca.BatchID{}
		epoch, left = s.epoch, slices.Clone(s.pending)
		return nil
	})
	return epoch, left, err
}

// Renew implements ca.Journal. All handles belong to one server, so that there are no epochs of others.
func (st *Store) Renew(ctx context.Context, epoch ca.Epoch) (hasEnded bool, err error) {
	return false, st.read(ctx, func(s *state) error { return s.fence(epoch) })
}

// TakeOver implements ca.Journal. There is nothing to take over.
func (st *Store) TakeOver(ctx context.Context, epoch ca.Epoch) ([]ca.Intent, error) {
	return nil, st.read(ctx, func(s *state) error { return s.fence(epoch) })
}

// Write implements ca.Journal.
func (st *Store) Write(
	ctx context.Context, epoch ca.Epoch, commits []ca.BatchCommit, intents []ca.Intent,
) ([]ca.Results, error) {
	results := make([]ca.Results, len(commits))
	for i, s := range commits {
		results[i] = make(ca.Results, len(s.Records))
	}
	err := st.write(ctx, func(s *state) error {
		if err := s.fence(epoch); err != nil {
			return err
		}
		s.lastBatch = ca.BatchID{}
		if n := len(intents); n > 0 {
			s.lastBatch = intents[n-1].Batch
		}
		for i := range commits {
			if err := s.commit(&commits[i], results[i]); err != nil {
				return fmt.Errorf("commit batch %s: %w", commits[i].Intent.Batch, err)
			}
		}
		for _, intent := range intents {
			if err := s.addIntent(intent); err != nil {
				return fmt.Errorf("write the intent of batch %s: %w", intent.Batch, err)
			}
		}
		return nil
	})
	return results, err
}

// Applied implements ca.Journal.
func (st *Store) Applied(ctx context.Context, epoch ca.Epoch, batch ca.BatchID) (bool, error) {
	var applied bool
	err := st.read(ctx, func(s *state) error {
		applied = batch != ca.BatchID{} && batch == s.lastBatch
		return s.fence(epoch)
	})
	return err == nil && applied, err
}

// fence refuses every epoch but the newest.
func (s *state) fence(epoch ca.Epoch) error {
	switch {
	case epoch < s.process:
		return s.replaced(epoch)
	case epoch != s.epoch:
		return fmt.Errorf("memory: the epoch is %d, and the newest one is %d: %w", epoch, s.epoch, ca.ErrFenced)
	default:
		return nil
	}
}

func (s *state) replaced(epoch ca.Epoch) error {
	return fmt.Errorf("memory: the epoch is %d, and the newest process began with %d: %w", epoch, s.process, ca.ErrReplaced)
}

// intent returns the index of a pending intent, or -1.
func (s *state) intent(batch ca.BatchID) int {
	return slices.IndexFunc(s.pending, func(i ca.Intent) bool { return i.Batch == batch })
}

func (s *state) addIntent(intent ca.Intent) error {
	for _, item := range intent.Items {
		if item.Ref.Issuer.IsZero() || item.Ref.Serial.IsZero() {
			return errors.New("an item has no issuer or serial number")
		}
	}
	if s.intent(intent.Batch) >= 0 {
		return errors.New("the intent is already pending")
	}
	if len(intent.Items) == 0 {
		return nil
	}
	intent.Items = slices.Clone(intent.Items)
	for i := range intent.Items {
		intent.Items[i].IssuedAt, intent.Items[i].NotAfter = stored(intent.Items[i].IssuedAt), stored(intent.Items[i].NotAfter)
	}
	s.pending = append(s.pending, intent)
	return nil
}

// take removes the items of wanted from a pending intent, and returns these items from the recorded intent.
func (s *state) take(wanted ca.Intent) (map[pki.CertRef]ca.IntentItem, []ca.IntentItem, error) {
	place := s.intent(wanted.Batch)
	if place < 0 {
		return nil, nil, errors.New("there is no pending intent")
	}
	want, taken := map[pki.CertRef]bool{}, map[pki.CertRef]ca.IntentItem{}
	for _, item := range wanted.Items {
		want[item.Ref] = true
	}
	var items, left []ca.IntentItem
	for _, item := range s.pending[place].Items {
		if want[item.Ref] {
			taken[item.Ref], items = item, append(items, item)
		} else {
			left = append(left, item)
		}
	}
	if len(taken) != len(wanted.Items) {
		return nil, nil, errors.New("some of the items to commit are not pending")
	}
	if s.pending[place].Items = left; len(left) == 0 {
		s.pending = slices.Delete(s.pending, place, place+1)
	}
	return taken, items, nil
}

// commit records the certificates whose guards hold, and abandons the other items of the batch.
func (s *state) commit(b *ca.BatchCommit, results ca.Results) error {
	left, items, err := s.take(b.Intent)
	if err != nil {
		return err
	}
	for i := range b.Records {
		r := &b.Records[i]
		item, pending := left[r.Ref]
		if !pending {
			return fmt.Errorf("certificate %s is not an item of this commit, or is recorded twice", r.Ref.Serial)
		}
		delete(left, r.Ref)
		superseded, err := s.issue(r, b.At)
		refusal, refused := pki.AsRefusal(err)
		if err != nil && !refused {
			return err
		}
		if !refused {
			results[i] = ca.Result{Superseded: superseded}
			continue
		}
		results[i] = ca.Result{Refusal: refusal}
		err = s.abandon(b.At, []ca.IntentItem{item}, func(items []ca.IntentItem, changes []pki.StatusChange) translog.Entry {
			return rules.RefusedCertificateEntry(r, refusal, b.At, items, changes)
		})
		if err != nil {
			return err
		}
	}
	items = slices.DeleteFunc(items, func(i ca.IntentItem) bool { _, abandoned := left[i.Ref]; return !abandoned })
	return s.abandon(b.At, items, func(items []ca.IntentItem, changes []pki.StatusChange) translog.Entry {
		return rules.AbandonedEntry(b.At, items, changes)
	})
}

// issue records a certificate and its effects. If the error is a *pki.Refusal, issue changed nothing.
func (s *state) issue(r *ca.Record, at time.Time) (superseded pki.StatusChange, err error) {
	if !rules.Renews(r) {
		if err := s.authorize(r.Actor, pki.MayIssue, at); err != nil {
			return superseded, err
		}
		if err := s.checkLabels(r.Actor, s.identities[r.Identity].Labels); err != nil {
			return superseded, err
		}
	}
	if refusal := rules.CheckRecord(r); refusal != nil {
		return superseded, refusal
	}
	on := s.issuance(r, at)
	effects, refusal := on.Check(r, at)
	if refusal != nil {
		return superseded, refusal
	}
	if _, taken := s.serials[r.Ref.Serial]; taken {
		return superseded, rules.SerialTaken(r.Ref.Serial)
	}
	s.addIssued(r, effects)
	return effects.Superseded, s.append(rules.IssuedEntry(r, at, effects.Superseded))
}

// addIssued records a certificate and its effects on other records.
func (s *state) addIssued(r *ca.Record, effects rules.Effects) {
	s.insert(cert{Certificate: ra.Certificate{
		Ref: r.Ref, Identity: r.Identity, Profile: r.Profile, KeyHash: r.KeyHash, IssuedAt: stored(r.IssuedAt), NotBefore: stored(r.NotBefore),
		NotAfter: stored(r.NotAfter), Status: pki.Status{State: pki.Good, Version: 1}, DER: slices.Clone(r.DER),
		Delivered: true, RequestID: r.RequestID,
	}, supersededBy: -1, partition: r.Partition, account: acme.AccountOf(r.Actor)})
	k := s.keys[r.KeyHash]
	k.identity = r.Identity
	s.keys[r.KeyHash] = k
	if r.Guard.Enrolls {
		id := s.identities[r.Identity]
		id.State = pki.Enrolled
		id.Revision++
		id.Terms = r.Guard.Terms
		if !r.Guard.Subject.IsZero() {
			id.Subject = r.Guard.Subject
		}
		s.identities[r.Identity] = id
	}
	if id, ok := s.identities[r.Identity]; ok {
		id.Recoveries = rules.NextRecoveries(&r.Guard, id.Recoveries)
		s.identities[r.Identity] = id
	}
	for _, n := range r.Guard.Nonces {
		s.nonces[nonceOf(n)] = true
	}
	if t := s.token(r.Guard.Token); t != nil {
		t.Spent = true
	}
	if o, ok := s.acme.orders[acme.ID(r.Guard.Order.ID.Bytes())]; ok {
		o.Certificate, o.names, o.notAfter = r.Ref, r.Guard.Order.Names, stored(r.NotAfter)
		s.acme.orders[o.ID] = o
	}
	if before := s.certificate(r.Guard.Predecessor); before != nil {
		if effects.Succeeds || r.Guard.Supersedes && !r.Guard.LosesPredecessor() {
			before.Successor = r.Guard.Key
		}
		if r.Guard.Supersedes {
			before.Status = effects.Superseded.Status
		}
		if r.Guard.Supersedes && !r.Guard.LosesPredecessor() {
			before.supersededBy = len(s.certs) - 1
		}
	}
}

// anyUsed reports whether one of the nonces was consumed.
func (s *state) anyUsed(nonces []pki.Nonce) bool {
	return slices.ContainsFunc(nonces, func(n pki.Nonce) bool { return s.nonces[nonceOf(n)] })
}

// issuance returns the records that the guard of r depends on.
func (s *state) issuance(r *ca.Record, at time.Time) *rules.Issuance {
	id, registered := s.identities[r.Identity]
	on := &rules.Issuance{
		Registered: registered, State: id.State, Revision: id.Revision, Key: s.keyState(r.Guard.Key, r.Identity),
		Answered: s.answer(r.Identity, r.RequestID) >= 0,
		Subject:  id.Subject, Holder: s.holder(r.Guard.Subject, r.Identity),
		NonceUsed: s.anyUsed(r.Guard.Nonces),
	}
	if p := s.certificateOf(r.Identity, r.Guard.Predecessor); p != nil {
		on.Predecessor = rules.Predecessor{
			Found: true, NotBefore: p.NotBefore, NotAfter: p.NotAfter, Status: p.Status, Renewed: !p.Successor.IsZero(),
			SameKey: p.Successor == r.Guard.Key, Superseded: p.supersededBy >= 0,
		}
	}
	if t := s.token(r.Guard.Token); t != nil && t.Identity == r.Identity {
		on.Token = t
	}
	if !r.Guard.Recovery.IsZero() {
		on.Recovery = s.recovery(r.Identity, r.Guard.Recovery, r.Guard.Key, at)
	}
	if want := r.Guard.Order; !want.IsZero() {
		on.Order, on.Unexpired = s.orderState(acme.ID(want.ID.Bytes()), at), s.unexpiredOrders(want.Names, at, r.Guard.MaxUnexpired)
		on.OrdersUnexpired = s.unexpired(r.Identity, at, want.MaxUnexpired, (*cert).isOrdered)
	} else if r.Guard.MaxUnexpired > 0 {
		on.Unexpired = s.unexpired(r.Identity, at, r.Guard.MaxUnexpired, (*cert).isUnordered)
	}
	return on
}

func (s *state) addAbandoned(item ca.IntentItem, status pki.Status) {
	c := ra.Certificate{Ref: item.Ref, IssuedAt: item.IssuedAt, NotAfter: item.NotAfter, Status: status}
	s.insert(cert{Certificate: c, supersededBy: -1, partition: item.Partition})
}

func (s *state) insert(c cert) {
	s.serials[c.Ref.Serial] = len(s.certs)
	s.certs = append(s.certs, c)
}

// abandon stores each intended certificate as one that was revoked and never delivered. It calls entry with those that it
// stored, to create the log entry.
func (s *state) abandon(
	at time.Time, items []ca.IntentItem, entry func([]ca.IntentItem, []pki.StatusChange) translog.Entry,
) error {
	var recorded, duplicates []ca.IntentItem
	var changes []pki.StatusChange
	for _, item := range items {
		if _, taken := s.serials[item.Ref.Serial]; taken {
			duplicates = append(duplicates, item)
			continue
		}
		status := rules.Abandoned(at)
		s.addAbandoned(item, status)
		recorded, changes = append(recorded, item), append(changes, pki.StatusChange{Ref: item.Ref, NotAfter: item.NotAfter, Status: status})
	}
	if len(changes) > 0 {
		if err := s.append(entry(recorded, changes)); err != nil {
			return err
		}
	}
	for _, item := range duplicates {
		if err := s.append(rules.DuplicateEntry(item, at)); err != nil {
			return err
		}
	}
	return nil
}
