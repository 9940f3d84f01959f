package fill

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/brevet-pki/brevet/internal/bench/acmeload"
	"github.com/brevet-pki/brevet/internal/cli/devca"
	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/store/sqlite"
)

// accountMakers is the number of accounts that are recorded concurrently, in shared transactions.
const accountMakers = 256

// Accounts fills the store of a development CA that is not running with ACME accounts. The first of them have a pending
// order each. Clients cannot create so many soon, because a server limits the new accounts of an address.
func Accounts(ctx context.Context, d devca.CA, accounts, orders int) (made []acmeload.Account, err error) {
	c := node.Config{StateDir: d.Dir}
	db, err := sqlite.Open(ctx, c.StorePath())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	made = make([]acmeload.Account, accounts)
	group, making := errgroup.WithContext(ctx)
	group.SetLimit(accountMakers)
	for i := range made {
		group.Go(func() error {
			var err error
			made[i], err = makeAccount(making, db.ACME(), i, i < orders)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for {
		sequenced, err := db.Log().Sequence(ctx, 2*batchSize)
		if err != nil || len(sequenced) == 0 {
			return made, err
		}
	}
}

// makeAccount records the account with a number, with or without an order.
func makeAccount(ctx context.Context, store acme.Store, n int, ordered bool) (made acmeload.Account, err error) {
	if made.Key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return made, err
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	account := acme.Account{
		ID: acme.NewID(), Thumbprint: acmeload.Thumbprint(made.Key), Status: acme.AccountValid, CreatedAt: now,
		Contact: []string{fmt.Sprintf("mailto:host-%d@bench.example", n)},
	}
	if account.Key, err = x509.MarshalPKIXPublicKey(made.Key.Public()); err != nil {
		return made, err
	}
	made.ID = account.ID.String()
	if _, _, err := store.CreateAccount(ctx, account); err != nil || !ordered {
		return made, err
	}
	o := acme.Order{
		ID: acme.NewID(), Account: account.ID, Status: acme.StatusPending, Profile: "acme", CreatedAt: now, ExpiresAt: now.Add(acme.OrderLifetime),
		Identifiers: []acme.Identifier{{Type: acme.DNS, Value: fmt.Sprintf("host-%d.bench.example", n)}},
	}
	authorization := acme.Authorization{
		ID: acme.NewID(), Account: o.Account, Order: o.ID, Identifier: o.Identifiers[0], Status: acme.StatusPending, ExpiresAt: o.ExpiresAt,
	}
	token := acme.NewToken()
	for _, t := range acme.ChallengeTypes() {
		authorization.Challenges = append(authorization.Challenges, acme.Challenge{Type: t, Token: token, Status: acme.StatusPending})
	}
	o.Authorizations, made.Order = []acme.ID{authorization.ID}, o.ID.String()
	return made, store.CreateOrder(ctx, o, []acme.Authorization{authorization})
}
