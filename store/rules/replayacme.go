package rules

import (
	"errors"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/translog"
)

// These operations are about accounts and external keys of ACME.
type (
	// AddExternalKey records a new external key without its HMAC key.
	AddExternalKey struct{ acme.ExternalKey }
	// SetExternalKeyRevoked revokes an external key and its account.
	SetExternalKeyRevoked struct {
		ID    acme.ID
		Cause string
	}
	// SetExternalKeysRevoked revokes all unused external keys that an identity has created so far.
	SetExternalKeysRevoked struct {
		Creator pki.SPIFFEID
		Cause   string
	}
	// AddAccount records a new account, and uses up its external key.
	AddAccount struct{ acme.Account }
	// SetAccountKey replaces the key of an account.
	SetAccountKey struct{ acme.Account }
	// SetAccountDeactivated deactivates an account.
	SetAccountDeactivated struct{ ID acme.ID }
	// SetAccountRevoked revokes an account without an external key.
	SetAccountRevoked struct{ ID acme.ID }
)

func (AddExternalKey) operation()         {}
func (SetExternalKeyRevoked) operation()  {}
func (SetExternalKeysRevoked) operation() {}
func (AddAccount) operation()             {}
func (SetAccountKey) operation()          {}
func (SetAccountDeactivated) operation()  {}
func (SetAccountRevoked) operation()      {}

// replayACME returns the operation of an event of ACME.
func replayACME(e translog.Entry) ([]Operation, error) {
	switch event := e.Event.(type) {
	case *translog.CreatedExternalKey:
		k := acme.ExternalKey{
			ID: acme.ID(event.ID), Identity: e.Identity, Rule: event.Rule, CreatedBy: e.Actor, CreatedAt: e.Time, ExpiresAt: event.ExpiresAt,
		}
		if k.Identity.IsZero() == (k.Rule == "") {
			return nil, errors.New("the external key does not name exactly one identity or rule")
		}
		if !event.CreatorCertificate.IsZero() {
			creator, err := pki.ParseSPIFFEID(e.Actor.String())
			if err != nil {
				return nil, err
			}
			k.CreatedBy = pki.ActorCaller(creator, event.CreatorCertificate)
		}
		return []Operation{AddExternalKey{k}}, nil
	case *translog.RevokedExternalKey:
		if event.ID == (translog.ACMEID{}) {
			return []Operation{SetExternalKeysRevoked{e.Identity, event.Cause}}, nil
		}
		return []Operation{SetExternalKeyRevoked{acme.ID(event.ID), event.Cause}}, nil
	case *translog.ACMEAccount:
		return replayAccount(e, event)
	default:
		return nil, errors.New("the entry has no event")
	}
}

func replayAccount(e translog.Entry, event *translog.ACMEAccount) ([]Operation, error) {
	a := acme.Account{
		ID: acme.ID(event.ID), Key: event.Key, Thumbprint: event.Thumbprint, Status: acme.AccountValid,
		ExternalKey: acme.ID(event.ExternalKey), CreatedAt: e.Time,
	}
	hasEnded := e.Action == translog.ACMEAccountDeactivated || e.Action == translog.ACMEAccountRevoked
	if hasEnded != (len(event.Key) == 0) {
		return nil, errors.New("the entry of an account has a key although it was deactivated or revoked, or has none")
	}
	switch e.Action {
	case translog.ACMEAccountRevoked:
		return []Operation{SetAccountRevoked{a.ID}}, nil
	case translog.ACMEAccountDeactivated:
		return []Operation{SetAccountDeactivated{a.ID}}, nil
	case translog.ACMEAccountKeyChanged:
		return []Operation{SetAccountKey{a}}, nil
	default:
		return []Operation{AddAccount{a}}, nil
	}
}
