package acme

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// NewExternalKey is an operator's request for an external key. Exactly one of Identity and Rule is set.
type NewExternalKey struct {
	Identity pki.SPIFFEID
	Rule     string
	// Lifetime is the time in which the key can create its account. Zero means MaxUnused.
	Lifetime time.Duration
	By       pki.Actor
}

// CreateExternalKey creates an external key, and returns it with its HMAC key, which no later call returns.
func (a *Authority) CreateExternalKey(ctx context.Context, n NewExternalKey) (ExternalKey, []byte, error) {
	if err := a.checkNew(n); err != nil {
		return ExternalKey{}, nil, err
	}
	if n.Lifetime == 0 {
		n.Lifetime = MaxUnused
	}
	now := a.Clock().Truncate(time.Millisecond)
	k := ExternalKey{ID: NewID(), Identity: n.Identity, Rule: n.Rule, CreatedBy: n.By, CreatedAt: now, ExpiresAt: now.Add(n.Lifetime)}
	hmacKey := make([]byte, hmacKeySize)
	_, _ = rand.Read(hmacKey) // never fails
	k, err := a.Store.CreateExternalKey(ctx, k, a.Sealer.seal(k.ID, hmacKey))
	if err != nil {
		return ExternalKey{}, nil, err
	}
	return k, hmacKey, nil
}

// checkNew refuses a request that does not name exactly one identity or rule.
func (a *Authority) checkNew(n NewExternalKey) error {
	if n.Identity.IsZero() == (n.Rule == "") {
		return pki.Refuse(pki.RuleRequest, "name an identity or a rule", "the request does not name exactly one of them")
	}
	rev := a.Revision()
	if _, err := settingsOf(rev); err != nil {
		return err
	}
	switch {
	case n.Identity.Reserved():
		return pki.Refuse(pki.RuleReserved, "name a device or a workload", "%s cannot have certificates by ACME", n.Identity)
	case n.Lifetime < 0 || n.Lifetime > MaxUnused:
		return pki.Refuse(pki.RuleLifetime, "use at most 720h", "an external key cannot stay unused for %s", n.Lifetime)
	case n.Rule != "":
		return checkRule(rev, n.Rule)
	default:
		return nil
	}
}

// checkRule refuses a rule that is not for orders.
func checkRule(rev ra.Revision, name string) error {
	for _, rule := range rev.OrderRules {
		if rule == name {
			return nil
		}
	}
	return pki.Refuse(pki.RuleNotFound, "name a rule with evidence: [acme] and the key identity",
		"the policy has no rule %.64q that forms an identity from the name of an order", name)
}

// ExternalKeys returns a page of the external keys, newest first. See ExternalKeyStore.
func (a *Authority) ExternalKeys(ctx context.Context, after ID, limit int) ([]ExternalKey, ID, error) {
	return a.Store.ExternalKeys(ctx, after, limit)
}

// maxRevoked is the number of certificates that revokeCertificates reads at a time.
const maxRevoked = 100

// RevokeExternalKey revokes an external key and its account. If certificates is true, it also revokes the unexpired
// certificates of the account, with the reason privilegeWithdrawn, and returns how many. An interrupted call can be
// repeated.
func (a *Authority) RevokeExternalKey(ctx context.Context, r ExternalKeyRevocation, certificates bool) (ExternalKey, int, error) {
	r.At = a.Clock()
	k, err := a.Store.RevokeExternalKey(ctx, r)
	if err != nil || !certificates || k.Account.IsZero() {
		return k, 0, err
	}
	count, err := a.revokeCertificates(ctx, AccountRevocation{ID: k.Account, By: r.By, Comment: r.Comment, At: r.At})
	return k, count, err
}

// Accounts returns a page of the accounts, newest first. See AccountInventory.
func (a *Authority) Accounts(ctx context.Context, after ID, limit int) ([]ListedAccount, ID, error) {
	return a.Store.Accounts(ctx, a.Clock(), after, limit)
}

// RevokeAccount revokes an account, and its external key if it has one. If certificates is true, it also revokes the
// unexpired certificates of the account, as RevokeExternalKey does.
func (a *Authority) RevokeAccount(ctx context.Context, r AccountRevocation, certificates bool) (Account, int, error) {
	r.At = a.Clock()
	have, err := a.Store.RevokeAccount(ctx, r)
	if err != nil || !certificates {
		return have, 0, err
	}
	count, err := a.revokeCertificates(ctx, r)
	return have, count, err
}

// revokeCertificates revokes the unexpired certificates of an account, and returns how many.
func (a *Authority) revokeCertificates(ctx context.Context, r AccountRevocation) (int, error) {
	count := 0
	for after := (pki.CertRef{}); ; {
		page, err := a.Store.Certificates(ctx, r.ID, r.At, after, maxRevoked)
		if err != nil || len(page) == 0 {
			return count, err
		}
		for _, ref := range page {
			err := a.Revoker.Revoke(ctx, Revocation{Certificate: ref, Reason: pki.PrivilegeWithdrawn, By: r.By, Comment: r.Comment})
			if refusal, ok := pki.AsRefusal(err); ok && refusal.Rule == pki.RuleAlreadyRevoked {
				continue
			}
			if err != nil {
				return count, err
			}
			count++
		}
		after = page[len(page)-1]
	}
}
