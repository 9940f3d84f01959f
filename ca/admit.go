package ca

import (
	"context"
	"time"
)

// admit takes a slot for a certificate in flight. Without a free slot it fails immediately, unless the draft may wait.
func (a *Authority) admit(ctx context.Context, d *Draft) (release func(), err error) {
	if d.mayWait {
		return a.writer.await(ctx)
	}
	return a.writer.admit()
}

// await takes a slot for a certificate in flight, waiting for one if necessary. Waiting callers get a freed slot before
// callers of admit do. The callers of Issue must bound how many of them wait.
func (w *writer) await(ctx context.Context) (release func(), err error) {
	if !w.isClosing() {
		select {
		case w.slots <- struct{}{}:
			return func() { <-w.slots }, nil
		case <-w.closing:
		case <-ctx.Done():
			return nil, &unavailable{what: "the request ended before the certificate was prepared", cause: ctx.Err()}
		}
	}
	return nil, &unavailable{what: "the server is stopping", after: time.Second}
}
