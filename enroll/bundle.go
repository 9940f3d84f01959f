package enroll

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
)

// maxRoots is the maximum number of roots in a trust bundle.
const maxRoots = 16

// TrustBundle holds the root certificates of a trust domain.
type TrustBundle struct {
	Roots []*x509.Certificate
	// Revision identifies the version of the roots, in hexadecimal.
	Revision string
}

// ParseTrustBundle parses the roots of a trust bundle from DER. revision identifies them.
func ParseTrustBundle(roots [][]byte, revision []byte) (TrustBundle, error) {
	if n := len(roots); n == 0 || n > maxRoots {
		return TrustBundle{}, fmt.Errorf("the trust bundle has %d roots: 1 to %d are accepted", n, maxRoots)
	}
	if len(revision) == 0 {
		return TrustBundle{}, errors.New("the trust bundle has no revision: update the server")
	}
	parsed, err := parseAll(roots)
	if err != nil {
		return TrustBundle{}, fmt.Errorf("a root certificate does not parse: %w", err)
	}
	return TrustBundle{parsed, hex.EncodeToString(revision)}, nil
}

// followBundle compares the revision of the server's trust bundle, in hexadecimal, with that of the one in use. If they
// differ, or if the revision is empty because it is unknown, it gets the trust bundle from the server and installs it,
// beside the same key and certificate. The Authority authenticates the server with the roots in use. The agent keeps the
// root of its own certificate, also if the new trust bundle does not have it. A request in progress stays in progress.
//
// If there is no valid certificate, followBundle does nothing: the next certificate comes with a trust bundle.
func (a *Agent) followBundle(ctx context.Context, revision string) error {
	current := a.Pair()
	if current == nil || !current.validAt(a.now()) || current.Origin.BundleRevision == revision {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, timeoutFor(current, a.now()))
	defer cancel()
	bundle, err := a.config.Authority.TrustBundle(ctx, current)
	if err != nil {
		return fmt.Errorf("get the trust bundle: %w", err)
	}
	if bundle.Revision == current.Origin.BundleRevision {
		return nil
	}
	next, err := current.withBundle(bundle, a.now())
	if err != nil {
		return fmt.Errorf("the new trust bundle is discarded: %w", err)
	}
	dir := a.config.Directory
	if err := dir.install(next); err != nil {
		return err
	}
	if err := dir.prune(); err != nil {
		a.config.Log.Warn("removing an old credential failed, the new one is in use", "error", err)
	}
	a.use(next)
	a.config.Log.Info("new trust bundle", "revision", bundle.Revision, "roots", len(next.Roots))
	return nil
}

// followAtStart installs the server's trust bundle if it differs from the one in use. The bundle may have changed while
// the agent did not run.
func (a *Agent) followAtStart(ctx context.Context) { a.follow(ctx, "") }

// follow calls followBundle, and logs its error.
func (a *Agent) follow(ctx context.Context, revision string) {
	if err := a.followBundle(ctx, revision); err != nil && ctx.Err() == nil {
		a.config.Log.Warn("getting the trust bundle failed, the current one stays in use", "error", err)
	}
}
