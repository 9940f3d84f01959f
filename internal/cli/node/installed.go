package node

import (
	"context"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/store/sqlite"
)

// InstalledCAs returns the installed CAs in the store of a configuration, removed ones included. A server may be
// running.
func InstalledCAs(ctx context.Context, c Config) ([]ca.InstalledCA, error) {
	return sqlite.PeekInstalled(ctx, c.StorePath())
}

// HSMs returns the HSMs of a configuration: the one that is looked in first, and then the others.
func (c *Config) HSMs() []HSMConfig { return append([]HSMConfig{c.HSM}, c.FurtherHSMs...) }
