package ca

import (
	"context"
	"time"
)

// admit takes a place among the certificates in flight: at once or never, unless the draft is of a patient request.
func (a *Authority) admit(ctx context.Context, d *Draft) (release func(), err error) {
	if d.mayWait {
		return a.writer.await(ctx)
	}
	return a.writer.admit()
}

// await takes a place for one certificate in flight, when there is one. Whoever waits comes before those who do not: how
// many wait is for their callers to bound.
func (w *writer) await(ctx context.Context) (release func(), err error) {
	if !w.isClosing() {
		select {
		case w.slots <- struct{}{}:
			return func() { <-w.slots }, nil
		case <-w.closing:
		case <-ctx.Done():
			return nil, &unavailable{what: "the caller gave up before the certificate was announced", cause: ctx.Err()}
		}
	}
	return nil, &unavailable{what: "the server is stopping", after: time.Second}
}
