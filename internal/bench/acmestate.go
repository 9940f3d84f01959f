package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/brevet-pki/brevet/internal/bench/acmeload"
	"github.com/brevet-pki/brevet/internal/bench/fill"
	"github.com/brevet-pki/brevet/internal/cli/devca"
)

const (
	maxAccounts    = 1_000_000
	orderedPart    = 10 // one account in orderedPart has a pending order
	readers        = 16 // connections that read accounts and orders
	ariConnections = 64
)

// measureAccounts measures how much memory n accounts take. It sets the results in object, and returns the rows of the
// table. They have no spread, because they are measured once. accounts_mib may be below zero if there are few accounts.
func measureAccounts(ctx context.Context, env *bench, n int, object map[string]any) ([][]string, error) {
	none, err := residentAfterReads(ctx, env, n, 0)
	if err != nil {
		return nil, err
	}
	all, err := residentAfterReads(ctx, env, n, n)
	if err != nil {
		return nil, err
	}
	none, all = rounded(none), rounded(all)
	taken := math.Round((all-none)*100) / 100
	env.Logf("%d accounts take %v MiB: the server has %v instead of %v", n, taken, all, none)
	object["accounts"], object["pending_orders"] = n, n/orderedPart
	var rows [][]string
	for _, f := range []struct {
		name  string
		value float64
	}{{"accounts_mib", taken}, {"accounts_rss_mib", all}, {"no_accounts_rss_mib", none}} {
		object[f.name] = f.value
		rows = append(rows, []string{f.name, decimal(f.value), "", ""})
	}
	return rows, nil
}

// residentAfterReads returns the resident memory in MiB of a new server with some accounts in its store, after a number
// of requests. Each account sends one. If there are none, the readers' own accounts send all of them.
func residentAfterReads(ctx context.Context, env *bench, requests, accounts int) (mib float64, err error) {
	issue := issueBench{callers: readers}
	rig := &acmeRig{issueRig: issueRig{bench: env, mode: issue.mode()}}
	defer func() { err = errors.Join(err, rig.close()) }()
	var all []acmeload.Account
	issue.fill = func(ctx context.Context, d devca.CA) error {
		env.Logf("filling its store with %d accounts", accounts)
		var err error
		all, err = fill.Accounts(ctx, d, accounts, accounts/orderedPart)
		return err
	}
	if err := rig.serve(ctx, issue, fmt.Sprintf("accounts-%d", accounts)); err != nil {
		return 0, err
	}
	env.Logf("sending %d requests", requests)
	if err := acmeload.ReadAll(ctx, rig.clients, all, requests); err != nil {
		return 0, err
	}
	if err := rest(ctx, settling); err != nil {
		return 0, err
	}
	return rig.server.ResidentMiB()
}

// pollWindows requests renewal windows for d.
func (r *acmeRig) pollWindows(ctx context.Context, d time.Duration, values map[string]float64) (err error) {
	if r.pollers == nil {
		if r.pollers, err = acmeload.OpenPollers(ctx, ariConnections, r.config, r.clients); err != nil {
			return err
		}
	}
	before, err := r.cpu()
	if err != nil {
		return err
	}
	l, err := putLoad(ctx, r.pollers, (*acmeload.Poller).Poll, d)
	if err != nil {
		return err
	}
	after, err := r.cpu()
	if err != nil {
		return err
	}
	n := float64(len(l.latencies))
	values["ari_per_second"], values["ari_p50_ms"], values["ari_p99_ms"] = l.rate, l.quantile(0.5), l.quantile(0.99)
	values["ari_server_cpu_us"] = micros(after.server-before.server) / n
	values["ari_load_cpu_us"] = micros(after.load-before.load) / n
	return nil
}
