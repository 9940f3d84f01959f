package backups

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/files"
	"github.com/brevet-pki/brevet/internal/backup"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/file"
	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/store/tables"
	"github.com/brevet-pki/brevet/translog"
)

// restoreFlags are the flags of brevet restore.
type restoreFlags struct {
	archive, keyFile, list, accept string
	certificates, crls             []string
}

// run completes and runs a restore.
func (f *restoreFlags) run(cmd *cobra.Command, c *node.Config, db *tables.DB, r backup.Restore) (backup.Result, error) {
	r.Log, r.Store, r.Authorities, r.Points = db.Log(), db.Restoring(), db.CA(), db.Revocation()
	r.By, r.Now, r.Messages = restorer, time.Now(), c.Logger(cmd)
	for _, path := range f.certificates {
		cert, err := file.ReadCertificate(path)
		if err != nil {
			return backup.Result{}, err
		}
		r.Certificates = append(r.Certificates, cert)
	}
	for _, path := range f.crls {
		list, err := file.ReadCRL(path)
		if err != nil {
			return backup.Result{}, err
		}
		r.CRLs = append(r.CRLs, list)
	}
	if f.list != "" {
		if err := file.Vacant(f.list); err != nil {
			return backup.Result{}, err
		}
		r.List = func(text []byte) error { return file.WriteNew(f.list, text, 0o600) }
	}
	return r.Run(cmd.Context())
}

var restorer = pki.ActorCommand("restore")

// NewRestore returns brevet restore, which restores a backup and replays the archive of the log over it.
func NewRestore() *cobra.Command {
	var flags restoreFlags
	cmd := &cobra.Command{
		Use: "restore [BACKUP]", Short: "Restore a backup, and replay the archive of the log over it", Args: cobra.MaximumNArgs(1),
		Long: "restore unpacks a backup into an empty state directory, and replays the newest archive of the log over it, so that\n" +
			"no certificate that was revoked since becomes good. Tokens, external keys of ACME and orders that were open are\n" +
			"void. The log begins a new epoch, and CRL numbers jump beyond all earlier ones. Stop the old server first, and make\n" +
			"sure that nothing starts it again.\n\n" +
			"If the newest archive is lost, give the last CRL of each issuing CA with --crl. The command records their revocations,\n" +
			"and writes a list of what cannot be known. The server does not start before an operator accepts the list with\n" +
			"--accept. With --crl, --archive may name an older archive, and the default is the one in the backup. An archive that\n" +
			"has fewer entries than the store is not the newest one: the command refuses it without --list.\n\n" +
			"If the store is on PostgreSQL, restore the database with its own tools first (pg_restore, point-in-time recovery), stop\n" +
			"all servers, and run the command without a backup.",
		Example: "  brevet restore --config /etc/brevet/brevet.yaml --key-file backup.key --archive /mirror/log.archive /backup/brevet-2030-05-01.age\n" +
			"  brevet restore --config /etc/brevet/brevet.yaml --key-file backup.key --crl issuing.crl --list unknown.txt /backup/brevet-2030-05-01.age\n" +
			"  brevet restore --config /etc/brevet/brevet.yaml --accept SHA256",
		RunE: func(cmd *cobra.Command, args []string) error {
			if flags.accept != "" {
				return accept(cmd, flags.accept, args)
			}
			return restore(cmd, &flags, args)
		},
	}
	node.ConfigFlag(cmd)
	f := cmd.Flags()
	f.StringVar(&flags.archive, "archive", "", "file that contains the archive of the log")
	f.StringVar(&flags.keyFile, "key-file", "", "file with the age identity that decrypts the backup")
	f.StringArrayVar(&flags.certificates, "ca-certificate", nil, "file that contains the certificate of a CA that was installed after the backup; may be given again")
	f.StringArrayVar(&flags.crls, "crl", nil, "file that contains the CRL of a CA; may be given again")
	f.StringVar(&flags.list, "list", "", "file that the command writes if the archive is not the newest: what cannot be known; it must not exist")
	f.StringVar(&flags.accept, "accept", "", "SHA-256 of the list that you have read and accept, after a restore with --list")
	for _, other := range []string{"archive", "crl", "key-file", "ca-certificate"} {
		cmd.MarkFlagsMutuallyExclusive("accept", other)
	}
	return cmd
}

func restore(cmd *cobra.Command, flags *restoreFlags, args []string) error {
	c, err := node.LoadConfig(cmd)
	if err != nil {
		return err
	}
	if flags.archive == "" && len(flags.crls) == 0 {
		return cli.WrongUse("give the newest archive of the log with --archive; if it is lost, give the last CRL of each issuing CA with --crl and a file " +
			"with --list: revocations after these CRLs are lost, and an operator accepts the list before the server starts")
	}
	if len(flags.crls) > 0 && flags.list == "" {
		return cli.WrongUse("--crl needs --list: name a file for the list of what cannot be known without the newest archive")
	}
	if err := node.MakeDirectory(c.StateDir); err != nil {
		return err
	}
	if err := c.CheckOwner(); err != nil {
		return err
	}
	lock, err := backup.Lock(c.StateDir)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }() // nothing was written to it
	switch {
	case c.Store.Postgres != "" && len(args) == 0:
		return restoreDatabase(cmd, &c, flags)
	case c.Store.Postgres != "":
		return cli.WrongUse("the store is on PostgreSQL: restore the database with its own tools, and leave out the backup")
	case len(args) == 0:
		return cli.WrongUse("name the backup to restore")
	}
	return restoreFile(cmd, &c, flags, args[0])
}

// restoreFile restores a backup with a copy of an SQLite store.
func restoreFile(cmd *cobra.Command, c *node.Config, flags *restoreFlags, path string) error {
	if finished, err := backup.FinishInstall(c.StateDir); err != nil || finished {
		if err == nil {
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Completed the restore into %s that was interrupted.\nNext: brevet serve --check, then brevet serve\n", c.StateDir)
		}
		return err
	}
	w, err := backup.OpenWorkspace(c.StateDir)
	if err != nil {
		return err
	}
	m, result, err := restoreInto(cmd, c, w, flags, path)
	if err != nil {
		return w.Failed(err)
	}
	if err := w.Install(); err != nil {
		return err
	}
	return reportRestore(cmd, fmt.Sprintf("Restored the backup of %s into %s", m.Time.Format(time.RFC3339), c.StateDir),
		fmt.Sprintf("The configuration of the old server, and the archive of the backup, are in %s.", filepath.Join(c.StateDir, "restored")), result)
}

// accept records that an operator accepts the list of a restore.
func accept(cmd *cobra.Command, digest string, args []string) error {
	if len(args) > 0 {
		return cli.WrongUse("--accept is about a store that is restored already: leave out the backup")
	}
	c, err := node.LoadConfig(cmd)
	if err != nil {
		return err
	}
	b, err := hex.DecodeString(digest)
	if err != nil || len(b) != sha256.Size {
		return cli.WrongFlag("--accept", errors.New("give the SHA-256 of the list that brevet restore wrote, 64 hexadecimal digits"))
	}
	db, err := c.OpenForRestore(cmd.Context())
	if err != nil {
		return err
	}
	err = db.Restoring().Accept(cmd.Context(), translog.Hash(b), restorer, time.Now())
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "Accepted the list %x.\nNext: brevet serve --check, then brevet serve, and brevet log verify\n", b)
	return err
}

// restoreInto restores a backup in a workspace.
func restoreInto(cmd *cobra.Command, c *node.Config, w *backup.Workspace, flags *restoreFlags, path string) (m backup.Manifest, result backup.Result, err error) {
	ctx := cmd.Context()
	if m, err = unpack(flags.keyFile, path, w.Dir()); err != nil {
		return m, result, err
	}
	if m.TrustDomain != c.TrustDomain {
		return m, result, fmt.Errorf("the backup is of a CA for %s, and the configuration for %s: use the configuration of the server whose backup this is",
			m.TrustDomain, c.TrustDomain)
	}
	if !m.HasStore() {
		return m, result, errors.New("the backup has no copy of the store, because it is of a server on PostgreSQL: set store.postgres")
	}
	db, err := sqlite.Open(ctx, w.Store())
	if err != nil {
		return m, result, err
	}
	archive := cmp.Or(flags.archive, w.Archive())
	result, err = flags.run(cmd, c, db, backup.Restore{Archive: archive, Least: m.Entries, To: w.NewArchive()})
	if err := errors.Join(err, db.Close()); err != nil {
		return m, result, err
	}
	return m, result, sqlite.Complete(ctx, w.Store())
}

// unpack verifies a backup, and writes its files to a directory.
func unpack(keyFile, path, dir string) (m backup.Manifest, err error) {
	f, err := files.Open(path)
	if err != nil {
		return m, err
	}
	defer f.Close()
	if keyFile == "" {
		return backup.Read(f, nil, dir)
	}
	identities, err := readIdentities(keyFile)
	if err != nil {
		return m, err
	}
	return backup.Read(f, identities, dir)
}

// restoreDatabase replays the archive over a database that was restored.
func restoreDatabase(cmd *cobra.Command, c *node.Config, flags *restoreFlags) error {
	ctx, to := cmd.Context(), c.ArchivePath()+".restored"
	if isSame(flags.archive, to) {
		return fmt.Errorf("the command replaces this file: move %s away, and give its new path", flags.archive)
	}
	db, err := c.OpenForRestore(ctx)
	if err != nil {
		return err
	}
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a restore that was interrupted
		return errors.Join(err, db.Close())
	}
	result, err := flags.run(cmd, c, db, backup.Restore{Archive: flags.archive, To: to})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	kept := c.ArchivePath() + ".before-" + result.Epoch.String() // a name that no earlier restore has used
	if err := os.Rename(c.ArchivePath(), kept); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := errors.Join(os.Rename(to, c.ArchivePath()), files.Flush(c.StateDir)); err != nil {
		return err
	}
	return reportRestore(cmd, "Restored the database",
		"The archive that was here is "+kept+". Move the archive of each other server away, too, before you start it.", result)
}

// isSame reports whether two paths lead to one file.
func isSame(a, b string) bool {
	first, err := os.Stat(a)
	if err != nil {
		return false
	}
	second, err := os.Stat(b)
	return err == nil && os.SameFile(first, second)
}

func reportRestore(cmd *cobra.Command, what, kept string, r backup.Result) error {
	next := "brevet serve --check, then brevet serve, and brevet log verify"
	if r.List != (translog.Hash{}) {
		next = fmt.Sprintf("read the list of what cannot be known, and run brevet restore --accept %s with the same configuration", r.List)
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %d entries of the log, and %d from the archive.\nThe log continues the epoch %s as %s.\n"+
		"Tokens, external keys and orders that were open are void. Certificates that were issued after the last entry are unknown.\n%s\n"+
		"Next: %s\n", what, r.Copied, r.Replayed, r.Previous, r.Epoch, kept, next)
	return err
}
