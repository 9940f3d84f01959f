package hsm

import (
	"context"
	"errors"
)

// Watched is an HSM with the keys in it that must work. A monitor uses it to find a failure before a caller needs a
// signature.
type Watched struct {
	*HSM
	Keys []*Key
}

// Prove lets each key sign the self-test, a fixed text, and verifies the signatures. They are not counted as signatures
// of certificates. Like every call, Prove recovers a lost HSM: if the self-test fails for any reason except a wrong
// PIN, the library is restarted.
func (w Watched) Prove(ctx context.Context) error {
	var errs []error
	for _, k := range w.Keys {
		errs = append(errs, k.prove(ctx))
	}
	return errors.Join(errs...)
}

// Calls returns the number of calls of this HSM that are inside the library, and the maximum. A call that never returns
// stays counted.
func (t *HSM) Calls() (now, maximum int) { return len(t.calls), cap(t.calls) }

// Failures returns the number of failures of the HSM, its library or its storage since the last success. It returns at
// once, even if the HSM hangs.
func (t *HSM) Failures() int { return int(t.failures.Load()) }
