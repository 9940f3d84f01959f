package ceremony

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/ca/ceremony"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/file"
	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/pki"
)

// New returns brevet ceremony, which has a subcommand for each step of a ceremony.
func New() *cobra.Command {
	cmd := &cobra.Command{
		Use: "ceremony", Short: "Make roots and issuing CAs, offline, and install them",
		Long: "A ceremony makes keys in an HSM and certificates for them. Root and issuing CA may be on different machines and\n" +
			"HSMs; they exchange files. brevet hsm init initializes SoftHSM; hardware comes with its maker's tools.\n\n" +
			"  brevet ceremony root …                  on the root's machine: key and self-signed certificate\n" +
			"  brevet ceremony intermediate request …  on the issuing machine: key and certification request\n" +
			"  brevet ceremony sign …                  on the root's machine: the issuing CA's certificate\n" +
			"  brevet ceremony crl …                   on the root's machine: the root's CRL, months ahead\n" +
			"  brevet ceremony cross-sign …            on the root's machine, later: a certificate for another root\n" +
			"  brevet ceremony install …               on the issuing machine: into the store, and the first operator's token\n" +
			"  brevet ceremony install-root …          there, later: the next root, into the trust bundle\n" +
			"  brevet ceremony retire …                there, later: issue nothing more from an issuing CA, or distrust a root\n" +
			"  brevet ceremony remove …                there, in the end: stop answering for it",
	}
	intermediate := &cobra.Command{Use: "intermediate", Short: "Ask a root for an issuing CA's certificate"}
	intermediate.AddCommand(newCeremonyRequest())
	cmd.AddCommand(cli.MovedCommand("token", "brevet hsm init --hsm-label LABEL"), newCeremonyRoot(), intermediate, newCeremonySign(), newCeremonyCRL(),
		newCeremonyCrossSign(), newCeremonyInstall(), newCeremonyInstallRoot(), newCeremonyRetire(), newCeremonyRemove())
	return cmd
}

// signerFlags are the flags of a command that uses a key in an HSM.
type signerFlags struct {
	hsmFlags
	key string
}

func (t *signerFlags) add(cmd *cobra.Command) {
	t.hsmFlags.add(cmd)
	cmd.Flags().StringVar(&t.key, "key-label", "", "label of the key in the HSM")
	_ = cmd.MarkFlagRequired("key-label")
}

// open logs in to the HSM.
func (t *signerFlags) open(ctx context.Context) (*hsm.HSM, error) {
	if (t.config.Label == "") == (t.config.Serial == "") {
		return nil, cli.WrongUse("set one of --hsm-label and --hsm-serial")
	}
	pin, err := node.ReadPIN(t.pinFile)
	if err != nil {
		return nil, err
	}
	return node.OpenHSM(ctx, t.config, pin)
}

// find opens the HSM, calls do with the private key of a certificate, and closes the HSM.
func (t *signerFlags) find(ctx context.Context, cert *x509.Certificate, do func(crypto.Signer) error) error {
	ref := hsm.KeyRef{Label: t.key, Public: cert.PublicKey}
	return t.with(ctx, func(token *hsm.HSM) (*hsm.Key, error) { return token.Find(ctx, ref) }, do)
}

// with opens the HSM, calls do with the key that get returns, and closes the HSM.
func (t *signerFlags) with(ctx context.Context, get func(*hsm.HSM) (*hsm.Key, error), do func(crypto.Signer) error) (err error) {
	token, err := t.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, token.Close()) }()
	key, err := get(token)
	if err != nil {
		return err
	}
	return do(key)
}

// keyFlags are the flags of a step that generates a key, or uses the key that an earlier attempt generated.
type keyFlags struct {
	signerFlags
	algorithm string
	existing  bool
	id        string
}

func (k *keyFlags) add(cmd *cobra.Command, algorithm string) {
	k.signerFlags.add(cmd)
	f := cmd.Flags()
	f.StringVar(&k.algorithm, "key-type", algorithm, "type of the new key: P-256, P-384, RSA-3072, RSA-4096 or Ed25519")
	f.BoolVar(&k.existing, "existing-key", false, "use the existing key with this label in the HSM instead of generating one")
	f.StringVar(&k.id, "key-id", "", "with --existing-key: ID of the key (CKA_ID) in hexadecimal, if several keys have the label")
	cmd.MarkFlagsMutuallyExclusive("key-type", "existing-key")
	cli.MovedFlags(cmd, map[string]string{"key": "--key-type"})
}

// check returns a *Usage for the first wrong flag.
func (k *keyFlags) check() error {
	if k.id != "" && !k.existing {
		return cli.WrongUse("--key-id: a new key gets an ID of its own: give --existing-key too, or leave it out")
	}
	if _, err := hex.DecodeString(k.id); err != nil {
		return cli.WrongUse("--key-id: write it in hexadecimal, as brevet hsm show prints it")
	}
	if _, err := hsm.ParseAlgorithm(k.algorithm); err != nil {
		return cli.WrongFlag("--key-type", err)
	}
	return nil
}

// with opens the HSM, calls do with the new or the existing key, and closes the HSM.
func (k *keyFlags) with(ctx context.Context, do func(crypto.Signer) error) error {
	return k.signerFlags.with(ctx, func(token *hsm.HSM) (*hsm.Key, error) {
		if k.existing {
			id, err := hex.DecodeString(k.id)
			if err != nil {
				return nil, err
			}
			key, err := token.Find(ctx, hsm.KeyRef{Label: k.key, ID: id})
			if errors.Is(err, hsm.ErrAmbiguous) {
				err = fmt.Errorf("%w, with --key-id", err)
			}
			return key, err
		}
		algorithm, err := hsm.ParseAlgorithm(k.algorithm)
		if err != nil {
			return nil, err
		}
		key, err := token.Generate(ctx, k.key, algorithm)
		if errors.Is(err, hsm.ErrExists) {
			err = fmt.Errorf("%w, with --existing-key", err)
		}
		return key, err
	}, do)
}

// act returns the transcript's text for the step: found if the key existed, made if the step generated it.
func (k *keyFlags) act(made, found string) string {
	if k.existing {
		return found
	}
	return made
}

// record writes the result of a step and, beside it, the transcript. Then it prints the next step.
func record(cmd *cobra.Command, out, pemType string, der []byte, t ceremony.Transcript, next string) error {
	if err := file.WriteNew(out, pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}), 0o644); err != nil {
		return err
	}
	t.Command, t.At, t.Software = cmd.CommandPath(), time.Now(), "brevet "+cmd.Root().Version
	t.Signers = []string{"Ceremony administrator", "Witness"}
	paper := paperOf(out)
	if err := file.WriteNew(paper, []byte(t.String()), 0o644); err != nil {
		return errors.Join(err, os.Remove(out)) // remove the file, so that the user can repeat the step
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "Wrote %s, and %s to print and sign.\nNext: %s\n", out, paper, next)
	return err
}

// paperOf returns the path of the transcript for an output file.
func paperOf(out string) string { return out + ".transcript.txt" }

func (t *signerFlags) transcriptToken() ceremony.HSM {
	return ceremony.HSM{Label: t.config.Label, Serial: t.config.Serial, Key: t.key}
}

func newCeremonyRoot() *cobra.Command {
	var t keyFlags
	var subject, lifetime, out string
	cmd := &cobra.Command{
		Use: "root", Short: "Make a root key and its self-signed certificate", Args: cobra.NoArgs,
		Example: "  brevet ceremony root --hsm-label root --pin-file pin --key-label root-g1 --subject 'CN=Fleet Root G1,O=Example' --out root.crt",
		RunE: func(cmd *cobra.Command, _ []string) error {
			name, life, err := subjectAndLifetime(subject, lifetime)
			if err != nil {
				return err
			}
			if err := t.check(); err != nil {
				return err
			}
			if err := file.Vacant(out, paperOf(out)); err != nil {
				return err
			}
			return t.with(cmd.Context(), func(signer crypto.Signer) error {
				der, err := ceremony.Root(signer, ceremony.RootSpec{Subject: name, Lifetime: life, PathLength: 2, Now: time.Now()})
				if err != nil {
					return err
				}
				cert, err := x509.ParseCertificate(der)
				if err != nil {
					return err
				}
				return record(cmd, out, "CERTIFICATE", der, ceremony.Transcript{
					Act: t.act("made the root key and its certificate", "made a certificate for a root key that the HSM had"), HSM: t.transcriptToken(), Certificate: cert,
				}, "brevet ceremony intermediate request …, on the issuing machine")
			})
		},
	}
	t.add(cmd, "P-384")
	f := cmd.Flags()
	f.StringVar(&subject, "subject", "", "distinguished name of the CA, such as 'CN=Fleet Root G1,O=Example'; each generation needs another one")
	f.StringVar(&lifetime, "lifetime", "7300d", "how long the token, external key, certificate or CRL is valid, such as 15m or 90d")
	f.StringVar(&out, "out", "root.crt", "file that the command writes; it must not exist")
	_ = cmd.MarkFlagRequired("subject")
	return cmd
}

func subjectAndLifetime(subject, lifetime string) (ceremony.Subject, time.Duration, error) {
	name, err := ceremony.ParseSubject(subject)
	if err != nil {
		return name, 0, cli.WrongFlag("--subject", err)
	}
	life, err := pki.ParseDuration(lifetime)
	if err != nil {
		return name, 0, cli.WrongFlag("--lifetime", err)
	}
	return name, life, nil
}

func newCeremonyRequest() *cobra.Command {
	var t keyFlags
	var subject, out string
	cmd := &cobra.Command{
		Use: "request", Short: "Make an issuing key and ask for its certificate", Args: cobra.NoArgs,
		Example: "  brevet ceremony intermediate request --hsm-label issuing --pin-file pin --key-label issuing-g1 --subject 'CN=Fleet Issuing G1,O=Example' --out issuing.csr",
		RunE: func(cmd *cobra.Command, _ []string) error {
			name, err := ceremony.ParseSubject(subject)
			if err != nil {
				return cli.WrongFlag("--subject", err)
			}
			if err := t.check(); err != nil {
				return err
			}
			if err := file.Vacant(out, paperOf(out)); err != nil {
				return err
			}
			return t.with(cmd.Context(), func(signer crypto.Signer) error {
				der, err := ceremony.Request(signer, ceremony.RequestSpec{Subject: name})
				if err != nil {
					return err
				}
				req, err := x509.ParseCertificateRequest(der)
				if err != nil {
					return err
				}
				return record(cmd, out, "CERTIFICATE REQUEST", der, ceremony.Transcript{
					Act: t.act("made an issuing key and asked for its certificate", "asked for the certificate of an issuing key that the HSM had"), HSM: t.transcriptToken(), Request: req,
				}, "brevet ceremony sign --csr "+filepath.Base(out)+" …, on the root's machine")
			})
		},
	}
	t.add(cmd, "P-256")
	f := cmd.Flags()
	f.StringVar(&subject, "subject", "", "distinguished name of the CA, such as 'CN=Fleet Root G1,O=Example'; each generation needs another one")
	f.StringVar(&out, "out", "issuing.csr", "file that the command writes; it must not exist")
	_ = cmd.MarkFlagRequired("subject")
	return cmd
}
