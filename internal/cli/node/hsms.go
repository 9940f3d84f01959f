package node

import (
	"cmp"
	"context"
	"crypto"
	"errors"
	"log/slog"

	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/telemetry"
)

// issuingToken is a configured token, with the keys of installed CAs in it.
type issuingToken struct {
	name    string
	token   *hsm.Token // nil if the token was unavailable when it was opened
	err     error      // the reason if it was unavailable
	keys    []*hsm.Key
	issuers []pki.IssuerID // the CAs of these keys
}

// name returns the token's name in the log and in metrics.
func (c HSMConfig) name() string { return cmp.Or(c.Label, c.Serial) }

// openTokens opens all configured tokens. If some are unavailable, it logs a warning and continues with the others. It
// fails if none is available.
func openTokens(ctx context.Context, c Config, pin hsm.PIN, log *slog.Logger) (tokens []*issuingToken, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, closeTokens(tokens))
		}
	}()
	for i, tc := range append([]HSMConfig{c.HSM}, c.FurtherHSMs...) {
		if i > 0 {
			if pin, err = hsm.ReadPINFile(tc.PINFile); err != nil {
				return tokens, err
			}
		}
		t := &issuingToken{name: tc.name()}
		if t.token, err = OpenHSM(ctx, tc, pin); err != nil && !errors.Is(err, hsm.ErrUnavailable) {
			return tokens, err
		}
		t.err = err
		tokens = append(tokens, t)
	}
	absent, available := absence(tokens)
	if !available {
		return tokens, absent
	}
	for _, t := range tokens {
		if t.err != nil {
			log.Warn("a token is not available: the keys in it serve after the next start", "token", t.name, "error", t.err)
		}
	}
	return tokens, nil
}

// absence returns the errors of unavailable tokens, or nil if all are available, and whether any is available.
func absence(tokens []*issuingToken) (err error, available bool) {
	for _, t := range tokens {
		err = errors.Join(err, t.err)
		available = available || t.token != nil
	}
	return err, available
}

func closeTokens(tokens []*issuingToken) error {
	var err error
	for _, t := range tokens {
		if t.token != nil {
			err = errors.Join(err, t.token.Close())
		}
	}
	return err
}

// findKey returns the key with a label and a public key, and the token that contains it. If there is none, it returns
// the most specific error of the tokens: [hsm.ErrNotFound] only if no token has a key with the label.
func findKey(ctx context.Context, tokens []*issuingToken, label string, public crypto.PublicKey) (*issuingToken, *hsm.Key, error) {
	var notFound, failed error
	var other *hsm.Key
	var holder *issuingToken
	for _, t := range tokens {
		if t.token == nil {
			continue
		}
		key, err := t.token.Find(ctx, hsm.KeyRef{Label: label, Public: public})
		switch {
		case errors.Is(err, hsm.ErrNotFound):
			notFound = errors.Join(notFound, err)
		case err != nil:
			failed = errors.Join(failed, err)
		case isPublic(key.Public(), public):
			return t, key, nil
		default:
			holder, other = t, key
		}
	}
	switch {
	case failed != nil:
		return nil, nil, failed
	case other != nil:
		return holder, other, nil // ca.NewIssuer returns an error about the mismatch
	default:
		return nil, nil, notFound
	}
}

func isPublic(have, want crypto.PublicKey) bool {
	k, ok := have.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(want)
}

// issuingTokens returns the tokens that the server monitors: those with keys in use, and those that were unavailable.
func issuingTokens(tokens []*issuingToken) []telemetry.IssuingToken {
	var all []telemetry.IssuingToken
	for _, t := range tokens {
		switch {
		case t.token == nil:
			all = append(all, telemetry.IssuingToken{Token: absentToken{t.err}, Name: t.name})
		case len(t.keys) > 0:
			all = append(all, telemetry.IssuingToken{Token: hsm.Watched{Token: t.token, Keys: t.keys}, Name: t.name, Issuers: t.issuers})
		}
	}
	return all
}

// absentToken stands for a token that was unavailable when it was opened. It stays unavailable until the next start.
type absentToken struct{ err error }

// Prove returns why the token was not available.
func (a absentToken) Prove(context.Context) error { return a.err }

// Calls returns zero calls of one possible.
func (absentToken) Calls() (now, most int) { return 0, 1 }

// Failures returns 1, for the failure to open the token.
func (absentToken) Failures() int { return 1 }
