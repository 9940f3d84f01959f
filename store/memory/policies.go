package memory

import (
	"context"
	"crypto/rand"
	"slices"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/rules"
)

// ApplyPolicy implements ra.PolicyStore.
func (st *Store) ApplyPolicy(ctx context.Context, c ra.PolicyChange) (ra.PolicyRevision, error) {
	if err := rules.CheckPolicy(c); err != nil {
		return ra.PolicyRevision{}, err
	}
	var next ra.PolicyRevision
	err := st.writeBy(ctx, c.By, pki.MayAdminister, c.At, func(s *state) error {
		var newest ra.PolicyRevision
		n := len(s.policies)
		if n > 0 {
			newest = s.policies[n-1]
		}
		var changed bool
		var err error
		if next, changed, err = rules.NextPolicy(newest, c); err != nil {
			return err
		}
		next.Document = slices.Clone(c.Document)
		if !changed {
			s.policies[n-1] = next // a revision that was restored from the log has no document
			return nil
		}
		s.policies = append(s.policies, next)
		return s.append(rules.PolicyEntry(next, c.By))
	})
	if err != nil {
		return ra.PolicyRevision{}, err
	}
	return next, nil
}

// Policy implements ra.PolicyStore.
func (st *Store) Policy(ctx context.Context, revision uint64) (ra.PolicyRevision, error) {
	var have ra.PolicyRevision
	err := st.read(ctx, func(s *state) error {
		n := revision
		if n == 0 {
			n = uint64(len(s.policies))
		}
		if n == 0 || n > uint64(len(s.policies)) {
			return rules.NoPolicy(revision)
		}
		if s.policies[n-1].Document == nil {
			return rules.NoPolicyDocument(n)
		}
		have = s.policies[n-1]
		return nil
	})
	return have, err
}

// Policies implements ra.PolicyStore.
func (st *Store) Policies(
	ctx context.Context, after uint64, limit int,
) (page []ra.PolicyRevision, next uint64, err error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, 0, err
	}
	err = st.read(ctx, func(s *state) error {
		for _, p := range slices.Backward(s.policies) {
			if len(page) < limit && (after == 0 || p.Revision < after) {
				p.Document = nil
				page = append(page, p)
			}
		}
		return nil
	})
	return page, rules.NextPolicies(page, limit), err
}

// SealingKey returns the secret key that seals challenges.
func (st *Store) SealingKey(ctx context.Context) ([32]byte, error) {
	var key [32]byte
	err := st.write(ctx, func(s *state) error {
		if s.sealingKey == [32]byte{} {
			_, _ = rand.Read(s.sealingKey[:]) // never fails: crypto/rand ends the process if it cannot read random bytes
		}
		key = s.sealingKey
		return nil
	})
	return key, err
}
