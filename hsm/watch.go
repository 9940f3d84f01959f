package hsm

import (
	"context"
	"errors"
)

// Watched is an HSM and the keys on it that must work, for a monitor that finds a failure before a caller needs a
// signature.
type Watched struct {
	*HSM
	Keys []*Key
}

// Prove has each key sign the self-test, a fixed text, and verifies the signatures. They do not count as signatures of
// issuance. Like every call, Prove recovers an HSM that was lost: if the self-test fails with any code but that of a
// wrong PIN, the library is restarted.
func (w Watched) Prove(ctx context.Context) error {
	var errs []error
	for _, k := range w.Keys {
		errs = append(errs, k.prove(ctx))
	}
	return errors.Join(errs...)
}

// Calls returns how many calls of this HSM are inside the library now, and the maximum. A call that never returns
// counts forever.
func (t *HSM) Calls() (now, maximum int) { return len(t.calls), cap(t.calls) }

// Failures returns the number of failures of the HSM, its library or its storage since the last success. It never
// blocks, even if the HSM hangs.
func (t *HSM) Failures() int { return int(t.failures.Load()) }
