// Package backups contains the commands that write and restore backups of a server. They use the store and the state directory
// itself, not a running server.
package backups

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/files"
	"github.com/brevet-pki/brevet/internal/backup"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/file"
	"github.com/brevet-pki/brevet/internal/cli/node"
)

// maxKeyFile is the maximum size of a file with age recipients or identities, in bytes.
const maxKeyFile = 1 << 20

// NewBackup returns brevet backup, which writes a backup of a server that may be running.
func NewBackup() *cobra.Command {
	var to recipients
	var out string
	cmd := &cobra.Command{
		Use: "backup", Short: "Write a backup of the store and what belongs to it, while the server runs", Args: cobra.NoArgs,
		Long: "backup writes one file with a consistent copy of the store (SQLite), the archive of the log, the CRLs, and the\n" +
			"configuration with the policy that it names. Run it as the account of the server. It encrypts the file to age\n" +
			"recipients (age-keygen makes a pair): the copy of the store contains a secret key, and names all devices. For a\n" +
			"store on PostgreSQL, back up the database with its own tools, too.\n\n" +
			"The file never contains keys or PINs of an HSM. Back up the HSM with its own tools.",
		Example: "  brevet backup --config /etc/brevet/brevet.yaml --recipient age1… --out /backup/brevet-2030-05-01.age",
		RunE: func(cmd *cobra.Command, _ []string) error {
			keys, err := to.read()
			if err != nil {
				return err
			}
			l, err := node.Load(cmd)
			if err != nil {
				return err
			}
			if err := file.Vacant(out); err != nil {
				return err
			}
			source, err := l.BackupSource()
			if err != nil {
				return err
			}
			m, err := backup.Write(cmd.Context(), source, keys, out)
			if err != nil {
				return err
			}
			return reportBackup(cmd, &l, m, out, len(keys) > 0)
		},
	}
	node.ConfigFlag(cmd)
	cmd.Flags().StringVar(&out, "out", "", "file that the command writes; it must not exist")
	_ = cmd.MarkFlagRequired("out")
	to.flags(cmd)
	return cmd
}

// reportBackup prints what the backup contains, and what a second machine needs besides.
func reportBackup(cmd *cobra.Command, l *node.Loaded, m backup.Manifest, out string, encrypted bool) error {
	text := fmt.Sprintf("Wrote %s: %d files, %d entries of the log. The last entry chains to %s.\n", out, len(m.Files), m.Entries, m.Chain)
	if !encrypted {
		secret := "a secret key"
		if !m.HasStore() {
			secret = "the names of all devices"
		}
		text += "It is NOT encrypted, and contains " + secret + ": keep it where only the server's administrators can read it.\n"
	}
	if !m.HasStore() {
		text += "It does not contain the database: back that up with pg_dump or point-in-time recovery.\n"
	}
	text += "It does not contain the keys of the HSM, its PIN, or the server's own credentials. A second machine also needs:\n"
	for _, h := range l.HSMs() {
		name := h.Label
		if name == "" {
			name = h.Serial
		}
		text += fmt.Sprintf("  the HSM %q or a clone of it, with its PIN\n", name)
	}
	if encrypted {
		text += "  the age identity of a recipient: without it, this backup cannot be read\n"
	}
	text += "  the newest archive of the log, " + l.ArchivePath() + ": copy it elsewhere often, since a restore without it may lack revocations\n"
	_, err := fmt.Fprint(cmd.OutOrStdout(), text)
	return err
}

// recipients are the flags that say for whom a backup is encrypted.
type recipients struct {
	keys  []string
	file  string
	plain bool
}

func (r *recipients) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&r.keys, "recipient", nil, "age recipient that can decrypt the backup, such as age1…; may be given again")
	f.StringVar(&r.file, "recipients-file", "", "file with an age recipient on each line")
	f.BoolVar(&r.plain, "plaintext", false, "write the backup without encryption")
	cmd.MarkFlagsOneRequired("recipient", "recipients-file", "plaintext")
	cmd.MarkFlagsMutuallyExclusive("recipient", "plaintext")
	cmd.MarkFlagsMutuallyExclusive("recipients-file", "plaintext")
}

func (r *recipients) read() (all []age.Recipient, err error) {
	for _, key := range r.keys {
		parsed, err := parseRecipients([]byte(key))
		if err != nil {
			return nil, cli.WrongFlag("--recipient", err)
		}
		all = append(all, parsed...)
	}
	if r.file == "" {
		return all, nil
	}
	text, err := files.Read(r.file, maxKeyFile)
	if err != nil {
		return nil, err
	}
	parsed, err := parseRecipients(text)
	if err != nil {
		return nil, cli.WrongFlag("--recipients-file", err)
	}
	return append(all, parsed...), nil
}

func parseRecipients(text []byte) ([]age.Recipient, error) {
	all, err := age.ParseRecipients(bytes.NewReader(text))
	if err != nil { // which may contain a part of a secret key
		return nil, errors.New("there is no age recipient: give what age-keygen -y prints, such as age1…")
	}
	return all, nil
}

// readIdentities reads a file with age identities, which only its owner may read.
func readIdentities(path string) ([]age.Identity, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("other accounts may use the key file %s (mode %04o): run chmod 600 on it", path, mode)
	}
	text, err := files.Read(path, maxKeyFile)
	if err != nil {
		return nil, err
	}
	identities, err := backup.ParseIdentities(text)
	if err != nil {
		return nil, cli.WrongFlag("--key-file", err)
	}
	return identities, nil
}
