package server

import (
	"context"
	"time"
)

// copyTimeout is the maximum time for which a call that revokes waits until the second copy of the archive has the
// revocation, which is in effect by then.
const copyTimeout = 2 * time.Second

// reconcile completes the archive, and then its copy. It returns an error only if the server must not start.
func (s *Server) reconcile(ctx context.Context) error {
	if err := s.sequencer.Reconcile(ctx); err != nil || s.config.Copy == nil {
		return err
	}
	return s.config.Copy.Reconcile(ctx)
}

// copied reports whether the second copy of the archive has all entries that were committed before. It waits for them
// for copyTimeout at most, and not while the copy fails. It returns nil if there is no second copy.
func (s *Server) copied(ctx context.Context) *bool {
	c := s.config.Copy
	if c == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, copyTimeout)
	defer cancel()
	is := c.Failure() == nil && s.sequencer.Sync(ctx) == nil && c.Await(ctx, s.config.Archive.Head().Size)
	return &is
}
