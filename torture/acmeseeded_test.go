package torture

import (
	"context"

	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/revocation/rotation"
	"github.com/brevet-pki/brevet/server"
)

// The bugs of ACME and of rotations that can be seeded into a server.
const (
	keepAccounts    = "keep accounts that were deactivated or revoked"
	unboundAccounts = "forget that an external key was used"
	idleRotations   = "do not activate rotations"
	keepRotations   = "do not stop rotations"
)

// seedACMEBug wraps a server's stores so that the server has a bug of ACME or of rotations. It reports whether it knows
// the bug.
func seedACMEBug(name string, s *server.Stores) bool {
	switch name {
	case keepAccounts:
		s.ACME = keepingACME{s.ACME}
	case unboundAccounts:
		s.ACME = unbindingACME{s.ACME}
	case idleRotations:
		s.Rotations = idleRotationStore{s.Rotations}
	case keepRotations:
		s.Rotations = keepingRotations{s.Rotations}
	default:
		return false
	}
	return true
}

// keepingACME confirms the end of accounts, and changes nothing.
type keepingACME struct{ acme.Store }

func (a keepingACME) ChangeAccount(ctx context.Context, c acme.AccountChange) (acme.Account, error) {
	if c.Deactivate {
		return a.Account(ctx, c.ID)
	}
	return a.Store.ChangeAccount(ctx, c)
}

// unbindingACME records accounts without their external key.
type unbindingACME struct{ acme.Store }

func (a unbindingACME) CreateAccount(ctx context.Context, in acme.Account) (acme.Account, bool, error) {
	in.ExternalKey = acme.ID{}
	return a.Store.CreateAccount(ctx, in)
}

// idleRotationStore hides the open rotations from the server.
type idleRotationStore struct{ rotation.Store }

func (idleRotationStore) OpenRotations(context.Context) ([]rotation.Rotation, error) { return nil, nil }

// keepingRotations confirms the end of rotations, and changes nothing.
type keepingRotations struct{ rotation.Store }

func (r keepingRotations) EndRotation(ctx context.Context, e rotation.End) (rotation.Rotation, error) {
	return r.Rotation(ctx, e.ID)
}
