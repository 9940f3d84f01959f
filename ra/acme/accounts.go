package acme

import (
	"context"
	"crypto/x509"
	"strings"

	"github.com/brevet-pki/brevet/pki"
)

// NewAccount returns the account of a key, and creates it if there is none. It reports whether it created the account. It
// refuses the key of an account that is not valid.
func (a *Authority) NewAccount(ctx context.Context, n NewAccount) (Account, bool, error) {
	settings, err := a.settings()
	if err != nil {
		return Account{}, false, err
	}
	have, err := a.Store.AccountByKey(ctx, n.Thumbprint)
	if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != pki.RuleACMEAccount || n.OnlyExisting {
		if err == nil {
			err = have.CheckValid()
		}
		return have, false, err
	}
	if err := checkContact(n.Contact); err != nil {
		return Account{}, false, err
	}
	account := Account{
		ID: NewID(), Key: n.Key, Thumbprint: n.Thumbprint, Status: AccountValid, Contact: n.Contact, CreatedAt: a.Clock(),
	}
	if err := checkKey(n.Key); err != nil {
		return Account{}, false, err
	}
	switch {
	case n.Binding != nil:
		if account.ExternalKey, err = a.verifyBinding(ctx, *n.Binding); err != nil {
			return Account{}, false, err
		}
	case !settings.OptionalBinding:
		return Account{}, false, pki.Refuse(pki.RuleACMEBindingRequired,
			"ask the operator for an external key (brevet acme eab create), and give its ID and HMAC key to the client",
			"accounts need an external account binding here")
	}
	return a.Store.CreateAccount(ctx, account)
}

// verifyBinding returns the external key of a binding. The store checks again that it is open when the account is created.
func (a *Authority) verifyBinding(ctx context.Context, b Binding) (ID, error) {
	const hint = "check the key ID and the HMAC key; each external key creates one account: ask the operator for a new one (brevet acme eab create)"
	refuse := func(detail string, args ...any) (ID, error) {
		return ID{}, pki.Refuse(pki.RuleACMEBinding, hint, detail, args...)
	}
	id, ok := ParseID(b.KeyID)
	if !ok {
		return refuse("%.40q is not the ID of an external key", b.KeyID)
	}
	k, sealed, err := a.Store.ExternalKey(ctx, id)
	if refusal, isRefusal := pki.AsRefusal(err); isRefusal && refusal.Rule.Class() == pki.NotFound {
		return refuse("there is no external key %s", id)
	}
	if err != nil {
		return ID{}, err
	}
	if state := k.State(a.Clock()); state != ExternalKeyOpen {
		return refuse("the external key is %s", state)
	}
	if refusal := k.CheckIdentity(); refusal != nil {
		return ID{}, refusal
	}
	if len(sealed) == 0 {
		return refuse("the HMAC key of the external key was lost when the store was recreated")
	}
	hmacKey, err := a.Sealer.open(id, sealed)
	if err != nil {
		return ID{}, err
	}
	defer clear(hmacKey)
	if !b.Verify(hmacKey) {
		return refuse("the signature of the external account binding does not verify, or is for another account key")
	}
	return id, nil
}

// AccountByKey returns the account of a key, whatever its status.
func (a *Authority) AccountByKey(ctx context.Context, thumbprint [32]byte) (Account, error) {
	if _, err := a.settings(); err != nil {
		return Account{}, err
	}
	return a.Store.AccountByKey(ctx, thumbprint)
}

// Account returns an account, whatever its status. The caller must refuse a request of an account that is not valid
// ([Account.CheckValid]).
func (a *Authority) Account(ctx context.Context, id ID) (Account, error) {
	if _, err := a.settings(); err != nil {
		return Account{}, err
	}
	return a.Store.Account(ctx, id)
}

// ChangeKey replaces the key of an account (RFC 8555 section 7.3.5). The caller has verified signatures with both keys.
func (a *Authority) ChangeKey(
	ctx context.Context, account ID, oldThumbprint [32]byte, newKey []byte, newThumbprint [32]byte,
) (Account, error) {
	if err := checkKey(newKey); err != nil {
		return Account{}, err
	}
	return a.change(ctx, AccountChange{ID: account, NewKey: newKey, NewThumbprint: newThumbprint, OldThumbprint: oldThumbprint})
}

// Deactivate deactivates an account permanently (RFC 8555 section 7.3.6). Its certificates stay.
func (a *Authority) Deactivate(ctx context.Context, account ID) (Account, error) {
	return a.change(ctx, AccountChange{ID: account, Deactivate: true})
}

// SetContact replaces the contacts of an account.
func (a *Authority) SetContact(ctx context.Context, account ID, contact []string) (Account, error) {
	if err := checkContact(contact); err != nil {
		return Account{}, err
	}
	return a.change(ctx, AccountChange{ID: account, SetContact: true, Contact: contact})
}

// IdentityOf returns the identity of all certificates of an account. It is zero if the account's external key names none.
func (a *Authority) IdentityOf(ctx context.Context, account Account) (pki.SPIFFEID, error) {
	if account.ExternalKey.IsZero() {
		return pki.SPIFFEID{}, nil
	}
	k, _, err := a.Store.ExternalKey(ctx, account.ExternalKey)
	return k.Identity, err
}

func (a *Authority) change(ctx context.Context, c AccountChange) (Account, error) {
	if _, err := a.settings(); err != nil {
		return Account{}, err
	}
	c.At = a.Clock()
	return a.Store.ChangeAccount(ctx, c)
}

// maxAccountKey is the maximum size of an account's key in bytes. One of RSA with 4096 bits has 550 bytes.
const maxAccountKey = 1 << 10

// checkKey refuses a key that is not a SubjectPublicKeyInfo.
func checkKey(spki []byte) error {
	if _, err := x509.ParsePKIXPublicKey(spki); err != nil || len(spki) > maxAccountKey {
		return pki.Refuse(pki.RuleRequest, "use a P-256 key", "the key of the account cannot be read, or has over %d bytes", maxAccountKey)
	}
	return nil
}

// checkContact refuses contacts other than email addresses, because nothing else is supported (RFC 8555 section 7.3).
func checkContact(all []string) error {
	const hint = "use up to 10 contacts such as mailto:admin@fleet.example, or none"
	if len(all) > MaxContacts {
		return pki.Refuse(pki.RuleACMEContact, hint, "the account has %d contacts", len(all))
	}
	for _, c := range all {
		address, isMail := strings.CutPrefix(c, "mailto:")
		isPlain := !strings.ContainsFunc(address, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`?,;<>"\`, r) })
		if local, domain, found := strings.Cut(address, "@"); !isMail || !isPlain || len(c) > MaxContact || !found || local == "" || domain == "" {
			return pki.Refuse(pki.RuleACMEContact, hint, "%.300q is not an email address of the form mailto:", c)
		}
	}
	return nil
}
