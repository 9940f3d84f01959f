package hsm

import (
	"context"
	"errors"
)

// Watched is a token with the keys in it that have to work, for whoever wants to know whether they do before somebody
// needs them.
type Watched struct {
	*Token
	Keys []*Key
}

// Prove has each key sign the self-test, which attests nothing, and checks what comes of it. Nothing that a key
// issues counts these signatures. It brings back a token that was lost, as every call does: a self-test that fails, with whatever code
// but that of a wrong PIN, starts the library afresh.
func (w Watched) Prove(ctx context.Context) error {
	var errs []error
	for _, k := range w.Keys {
		errs = append(errs, k.prove(ctx))
	}
	return errors.Join(errs...)
}

// Calls returns how many calls are inside the library for this token just now, and how many there can be. A call that
// never returns keeps its place.
func (t *Token) Calls() (now, most int) { return len(t.calls), cap(t.calls) }

// Failures returns how many failures of the token, its library or its storage there have been since it last worked.
// It does not wait, whatever the token does.
func (t *Token) Failures() int { return int(t.failures.Load()) }
