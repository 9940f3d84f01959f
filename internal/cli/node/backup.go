package node

import (
	"context"
	"path/filepath"

	"github.com/brevet-pki/brevet/internal/backup"
	"github.com/brevet-pki/brevet/store/postgres"
	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/store/tables"
)

// BackupSource returns the files of which a backup consists. PINs and the keys of the HSM are not among them, nor are the
// server's own credentials.
func (l *Loaded) BackupSource() (backup.Source, error) {
	if err := checkOwner(l.StateDir); err != nil {
		return backup.Source{}, err
	}
	s := backup.Source{
		TrustDomain: l.TrustDomain, Archive: l.ArchivePath(), CRLs: l.crlPath(), Evidence: l.evidencePath(),
		Config: map[string]string{"brevet.yaml": l.file.ConfigFileUsed()},
	}
	if l.Policy != "" {
		s.Config["policy"+filepath.Ext(l.Policy)] = l.Policy
	}
	if l.Store.Postgres == "" {
		s.Store = l.StorePath()
	}
	return s, nil
}

// OpenForRestore opens the configured store, whether or not a server may use it, unless another process has it open. The state
// directory must belong to the account of the process.
func (c *Config) OpenForRestore(ctx context.Context) (*tables.DB, error) {
	if err := checkOwner(c.StateDir); err != nil {
		return nil, err
	}
	if c.Store.Postgres != "" {
		return postgres.OpenForRestore(ctx, c.Store.Postgres, c.Store.Server)
	}
	return sqlite.Open(ctx, c.StorePath())
}

// CheckOwner returns an error if the state directory belongs to another account than that of the process.
func (c *Config) CheckOwner() error { return checkOwner(c.StateDir) }
