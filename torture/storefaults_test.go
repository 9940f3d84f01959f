package torture

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/revocation/rotation"
	"github.com/brevet-pki/brevet/server"
)

// faultRate is the reciprocal of the share of writes that fail. The stores of ACME and of the rotations fail before the
// change or after it. The journal fails before the change only: if the store does not know whether a change is durable,
// it finds out before it returns.
const faultRate = 60

// storeFault is the temporary error of a store whose disk fails.
type storeFault struct{}

func (storeFault) Error() string             { return "the disk fails" }
func (storeFault) Temporary() bool           { return true }
func (storeFault) RetryAfter() time.Duration { return 5 * time.Millisecond }

// failWrites wraps a server's stores so that writes fail at random.
func failWrites(s server.Stores) server.Stores {
	s.CA = failingJournal{s.CA}
	s.ACME = failingACME{s.ACME}
	s.Rotations = failingRotations{s.Rotations}
	return s
}

// failing calls a function, and at random fails before it or after it.
func failing[T any](call func() (T, error)) (T, error) {
	var none T
	n := rand.IntN(faultRate)
	if n == 0 {
		return none, storeFault{}
	}
	v, err := call()
	if err == nil && n == 1 {
		return none, storeFault{}
	}
	return v, err
}

type failingJournal struct{ ca.Journal }

func (j failingJournal) Write(ctx context.Context, e ca.Epoch, commits []ca.BatchCommit, intents []ca.Intent) ([]ca.Results, error) {
	if rand.IntN(faultRate) == 0 {
		return nil, storeFault{}
	}
	return j.Journal.Write(ctx, e, commits, intents)
}

type failingACME struct{ acme.Store }

func (a failingACME) CreateExternalKey(ctx context.Context, k acme.ExternalKey, sealed []byte) (acme.ExternalKey, error) {
	return failing(func() (acme.ExternalKey, error) { return a.Store.CreateExternalKey(ctx, k, sealed) })
}

func (a failingACME) RevokeExternalKey(ctx context.Context, r acme.ExternalKeyRevocation) (acme.ExternalKey, error) {
	return failing(func() (acme.ExternalKey, error) { return a.Store.RevokeExternalKey(ctx, r) })
}

func (a failingACME) CreateAccount(ctx context.Context, in acme.Account) (out acme.Account, created bool, err error) {
	out, err = failing(func() (_ acme.Account, err error) {
		out, created, err = a.Store.CreateAccount(ctx, in)
		return out, err
	})
	return out, created && err == nil, err
}

func (a failingACME) ChangeAccount(ctx context.Context, c acme.AccountChange) (acme.Account, error) {
	return failing(func() (acme.Account, error) { return a.Store.ChangeAccount(ctx, c) })
}

func (a failingACME) CreateOrder(ctx context.Context, o acme.Order, all []acme.Authorization) error {
	_, err := failing(func() (struct{}, error) { return struct{}{}, a.Store.CreateOrder(ctx, o, all) })
	return err
}

func (a failingACME) MoveAuthorization(ctx context.Context, m acme.Move) (out acme.Authorization, moved bool, err error) {
	out, err = failing(func() (_ acme.Authorization, err error) {
		out, moved, err = a.Store.MoveAuthorization(ctx, m)
		return out, err
	})
	return out, moved && err == nil, err
}

type failingRotations struct{ rotation.Store }

func (r failingRotations) StartRotation(ctx context.Context, req rotation.Request) (rotation.Rotation, error) {
	return failing(func() (rotation.Rotation, error) { return r.Store.StartRotation(ctx, req) })
}

func (r failingRotations) EndRotation(ctx context.Context, e rotation.End) (rotation.Rotation, error) {
	return failing(func() (rotation.Rotation, error) { return r.Store.EndRotation(ctx, e) })
}
