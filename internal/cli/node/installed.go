package node

import (
	"context"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/store/postgres"
	"github.com/brevet-pki/brevet/store/sqlite"
)

// InstalledCAs returns the installed CAs in the store of a configuration, including removed ones. It also works while a
// server uses the store.
func InstalledCAs(ctx context.Context, c Config) ([]ca.InstalledCA, error) {
	if c.Store.Postgres != "" {
		return postgres.PeekInstalled(ctx, c.Store.Postgres)
	}
	return sqlite.PeekInstalled(ctx, c.StorePath())
}

// HSMs returns the configured HSMs, in the order in which the server looks for a key.
func (c *Config) HSMs() []HSMConfig { return append([]HSMConfig{c.HSM}, c.FurtherHSMs...) }
