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

// issuingHSM is a configured HSM.
type issuingHSM struct {
	name    string
	device  *hsm.HSM // nil if the HSM was unavailable when the node was opened
	err     error    // why the HSM was unavailable, or nil
	keys    []*hsm.Key
	issuers []pki.IssuerID // CAs whose keys are in the HSM
}

// name returns the HSM's name in the log and in metrics.
func (c HSMConfig) name() string { return cmp.Or(c.Label, c.Serial) }

// openHSMs opens all configured HSMs. If some are unavailable, it logs a warning and continues with the others. It
// fails if none is available.
func openHSMs(ctx context.Context, c Config, pin hsm.PIN, log *slog.Logger) (hsms []*issuingHSM, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, closeHSMs(hsms))
		}
	}()
	for i, tc := range append([]HSMConfig{c.HSM}, c.FurtherHSMs...) {
		if i > 0 {
			if pin, err = hsm.ReadPINFile(tc.PINFile); err != nil {
				return hsms, err
			}
		}
		t := &issuingHSM{name: tc.name()}
		if t.device, err = OpenHSM(ctx, tc, pin); err != nil && !errors.Is(err, hsm.ErrUnavailable) {
			return hsms, err
		}
		t.err = err
		hsms = append(hsms, t)
	}
	absent, available := absence(hsms)
	if !available {
		return hsms, absent
	}
	for _, t := range hsms {
		if t.err != nil {
			log.Warn("an HSM is not available: the keys in it serve after the next start", "hsm", t.name, "error", t.err)
		}
	}
	return hsms, nil
}

// absence returns the errors of the unavailable HSMs, or nil if all are available. It also reports whether at least one
// is available.
func absence(hsms []*issuingHSM) (err error, available bool) {
	for _, t := range hsms {
		err = errors.Join(err, t.err)
		available = available || t.device != nil
	}
	return err, available
}

func closeHSMs(hsms []*issuingHSM) error {
	var err error
	for _, t := range hsms {
		if t.device != nil {
			err = errors.Join(err, t.device.Close())
		}
	}
	return err
}

// findKey returns the key with a label and a public key, and the HSM that contains it. If no HSM contains that key, it
// returns a key with the same label, which ca.NewIssuer refuses, or an error. The error is [hsm.ErrNotFound] only if no
// HSM has a key with the label.
func findKey(ctx context.Context, hsms []*issuingHSM, label string, public crypto.PublicKey) (*issuingHSM, *hsm.Key, error) {
	var notFound, failed error
	var other *hsm.Key
	var holder *issuingHSM
	for _, t := range hsms {
		if t.device == nil {
			continue
		}
		key, err := t.device.Find(ctx, hsm.KeyRef{Label: label, Public: public})
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

// issuingHSMs returns the HSMs that the server monitors: those that contain keys of CAs, and those that were
// unavailable.
func issuingHSMs(hsms []*issuingHSM) []telemetry.IssuingHSM {
	var all []telemetry.IssuingHSM
	for _, t := range hsms {
		switch {
		case t.device == nil:
			all = append(all, telemetry.IssuingHSM{HSM: absentHSM{t.err}, Name: t.name})
		case len(t.keys) > 0:
			all = append(all, telemetry.IssuingHSM{HSM: hsm.Watched{HSM: t.device, Keys: t.keys}, Name: t.name, Issuers: t.issuers})
		}
	}
	return all
}

// absentHSM is an HSM that was unavailable when the node was opened. The server does not use it until its next start.
type absentHSM struct{ err error }

// Prove returns why the HSM was unavailable.
func (a absentHSM) Prove(context.Context) error { return a.err }

// Calls returns 0 calls in progress, and a maximum of 1.
func (absentHSM) Calls() (now, most int) { return 0, 1 }

// Failures returns 1, for the failed attempt to open the HSM.
func (absentHSM) Failures() int { return 1 }
