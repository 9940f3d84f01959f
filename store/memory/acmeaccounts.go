package memory

import (
	"context"
	"slices"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/store/rules"
)

// Accounts implements acme.AccountInventory.
func (v *ACME) Accounts(
	ctx context.Context, at time.Time, after acme.ID, limit int,
) (page []acme.ListedAccount, next acme.ID, err error) {
	if err := rules.CheckLimit(limit); err != nil {
		return nil, next, err
	}
	err = v.store.read(ctx, func(s *state) error {
		found := after.IsZero()
		for _, id := range slices.Backward(s.acme.accountIDs) {
			switch {
			case !found:
				found = id == after
			case len(page) == limit:
				next = page[limit-1].ID
				return nil
			default:
				page = append(page, acme.ListedAccount{Account: s.acme.accounts[id], Unexpired: s.unexpiredOf(id, at)})
			}
		}
		return nil
	})
	return page, next, err
}

// unexpiredOf counts the certificates that an account has ordered and that expire later than at.
func (s *state) unexpiredOf(account acme.ID, at time.Time) int {
	n := 0
	for i := range s.certs {
		if c := &s.certs[i]; c.account == account && c.NotAfter.After(stored(at)) && n < acme.MaxCounted {
			n++
		}
	}
	return n
}

// RevokeAccount implements acme.AccountInventory.
func (v *ACME) RevokeAccount(ctx context.Context, r acme.AccountRevocation) (have acme.Account, err error) {
	err = v.store.writeBy(ctx, r.By, pki.MayRevoke, r.At, func(s *state) error {
		var known bool
		if have, known = s.acme.accounts[r.ID]; !known {
			return rules.UnknownAccount(r.ID)
		}
		if have.Status == acme.AccountRevoked {
			return nil
		}
		have.Status = acme.AccountRevoked
		if !have.ExternalKey.IsZero() {
			_, err := s.revokeExternalKeyAlone(acme.ExternalKeyRevocation{ID: have.ExternalKey, By: r.By, Comment: r.Comment, At: r.At})
			return err
		}
		if err := s.setAccountStatus(r.ID, have.Status); err != nil {
			return err
		}
		return s.append(rules.AccountRevokedEntry(r))
	})
	return have, err
}

func (s *state) setAccountStatus(id acme.ID, to acme.AccountStatus) error {
	a, ok := s.acme.accounts[id]
	if !ok {
		return rules.NoAccount()
	}
	a.Status = to
	s.acme.accounts[id] = a
	return nil
}
