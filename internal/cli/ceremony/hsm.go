package ceremony

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/internal/cli/output"
	"github.com/brevet-pki/brevet/pki"
)

// NewHSM returns brevet hsm, which initializes and inspects HSMs.
func NewHSM() *cobra.Command {
	cmd := &cobra.Command{
		Use: "hsm", Short: "Initialize HSMs, and show their slots and keys",
		Long: "An HSM is reached through its PKCS#11 library; what that standard calls a token is an HSM here. SoftHSM keeps keys in\n" +
			"files, and is for trying things out. PINs come from files or the terminal, never from the command line.",
	}
	cmd.AddCommand(newHSMInit(), newHSMList(), newHSMShow())
	return cmd
}

func newHSMInit() *cobra.Command {
	var module, label, pinFile, soPINFile string
	cmd := &cobra.Command{
		Use: "init", Short: "Initialize an empty slot (SoftHSM; other HSMs come with their maker's tools)", Args: cobra.NoArgs,
		Long: "init gives a free slot a label, a security officer's PIN and a user PIN. It never changes an HSM that is\n" +
			"initialized. Without the files, the terminal asks for the PINs.",
		Example: "  brevet hsm init --hsm-label issuing --pin-file pin --so-pin-file so-pin",
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := output.New(cmd)
			if err != nil {
				return err
			}
			path, err := node.Module(module)
			if err != nil {
				return err
			}
			so, err := newPIN("--so-pin-file", soPINFile, "New PIN of the security officer: ")
			if err != nil {
				return err
			}
			user, err := newPIN("--pin-file", pinFile, "New user PIN: ")
			if err != nil {
				return err
			}
			serial, err := hsm.Init(cmd.Context(), path, label, so, user)
			if err != nil {
				return err
			}
			return p.Sentence(initRecord{Label: label, Serial: serial},
				fmt.Sprintf("The HSM %s is ready; its serial number is %s.\nNext: brevet ceremony root --hsm-label %s …, "+
					"or for an issuing CA brevet ceremony intermediate request --hsm-label %s …", label, serial, label, label))
		},
	}
	output.Flag(cmd)
	f := cmd.Flags()
	f.StringVar(&module, "module", "", "path of the PKCS#11 library (default: SoftHSM's)")
	f.StringVar(&label, "hsm-label", "", "label of the HSM")
	f.StringVar(&pinFile, "pin-file", "", "file that contains the user PIN (default: the systemd credential pin, or the terminal asks)")
	f.StringVar(&soPINFile, "so-pin-file", "", "file that contains the security officer's PIN (default: the terminal asks)")
	_ = cmd.MarkFlagRequired("hsm-label")
	return cmd
}

// initRecord is a new HSM as --output json prints it.
type initRecord struct {
	Label  string `json:"label"`
	Serial string `json:"serial"`
}

// newPIN reads a PIN from the file of a flag. Without a file, it prompts for the PIN twice at the terminal.
func newPIN(flag, path, prompt string) (hsm.PIN, error) {
	if path != "" {
		return hsm.ReadPINFile(path)
	}
	pin, err := hsm.PromptNewPIN(os.Stdin, prompt)
	if err != nil {
		return hsm.PIN{}, fmt.Errorf("%s: %w", flag, err)
	}
	return pin, nil
}

func newHSMList() *cobra.Command {
	var module string
	cmd := &cobra.Command{
		Use: "list", Short: "List the slots of a PKCS#11 library", Args: cobra.NoArgs,
		Long: "list shows what each slot says without a PIN. The states are ready, locked (too many wrong PINs), no_pin (no user\n" +
			"PIN is set) and empty (not initialized). Slot numbers change: commands name an HSM by label or serial number.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := output.New(cmd, "SLOT", "LABEL", "SERIAL", "STATE", "MANUFACTURER", "MODEL")
			if err != nil {
				return err
			}
			path, err := node.Module(module)
			if err != nil {
				return err
			}
			slots, err := hsm.Slots(cmd.Context(), path)
			if err != nil {
				return err
			}
			for _, s := range slots {
				r := slotRecord{Slot: s.Number, Label: s.Label, Serial: s.Serial, State: slotState(s), Manufacturer: s.Manufacturer, Model: s.Model}
				if err := p.Object(r, strconv.FormatUint(uint64(s.Number), 10), dash(s.Label), dash(s.Serial), r.State, dash(s.Manufacturer), dash(s.Model)); err != nil {
					return err
				}
			}
			return p.Close()
		},
	}
	output.Flag(cmd)
	cmd.Flags().StringVar(&module, "module", "", "path of the PKCS#11 library (default: SoftHSM's)")
	return cmd
}

// slotRecord is a slot as --output json prints it.
type slotRecord struct {
	Slot         uint   `json:"slot"`
	Label        string `json:"label"`
	Serial       string `json:"serial"`
	State        string `json:"state"`
	Manufacturer string `json:"manufacturer"`
	Model        string `json:"model"`
}

func slotState(s hsm.Slot) string {
	switch {
	case !s.Initialized:
		return "empty"
	case s.Locked:
		return "locked"
	case !s.UserPIN:
		return "no_pin"
	default:
		return "ready"
	}
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// keyRecord is a key in an HSM as --output json prints it.
type keyRecord struct {
	HSM     string     `json:"hsm"`
	Label   string     `json:"key_label"`
	ID      string     `json:"key_id"`
	Type    string     `json:"key_type"`
	KeyHash string     `json:"key_hash"`
	CAs     []caRecord `json:"cas"`
}

// caRecord is an installed CA that uses a key.
type caRecord struct {
	Subject  string `json:"subject"`
	IssuerID string `json:"issuer_id"`
	State    string `json:"state"`
}

func newHSMShow() *cobra.Command {
	var t hsmFlags
	cmd := &cobra.Command{
		Use: "show", Short: "Show the keys in an HSM, and which CA uses each", Args: cobra.NoArgs,
		Long: "show logs in and lists the private keys. Without --hsm-label and --hsm-serial it shows all HSMs of the server's\n" +
			"configuration. With a configuration, it names the installed CAs that use each key, and whether they are active (the\n" +
			"newest of these issues), retired or removed. The server may be running.",
		Example: "  brevet hsm show --config brevet.yaml\n  brevet hsm show --hsm-label root --pin-file pin",
		RunE:    func(cmd *cobra.Command, _ []string) error { return showKeys(cmd, &t) },
	}
	output.Flag(cmd)
	t.add(cmd)
	node.ConfigFlag(cmd)
	return cmd
}

func showKeys(cmd *cobra.Command, t *hsmFlags) error {
	p, err := output.New(cmd, "HSM", "KEY LABEL", "KEY ID", "KEY TYPE", "KEY HASH", "USED BY")
	if err != nil {
		return err
	}
	configs := []node.HSMConfig{t.config}
	var cas []ca.InstalledCA
	named := t.config.Label != "" || t.config.Serial != ""
	if !named || cmd.Flags().Changed("config") {
		c, err := node.LoadConfig(cmd)
		if err != nil {
			return err
		}
		if !named {
			configs = c.HSMs()
		}
		if cas, err = node.InstalledCAs(cmd.Context(), c); err != nil {
			return err
		}
	}
	for i, config := range configs {
		if t.pinFile != "" && i == 0 {
			config.PINFile = t.pinFile
		}
		if err := showHSM(cmd.Context(), p, config, cas); err != nil {
			return err
		}
	}
	return p.Close()
}

// showHSM prints the keys in one HSM.
func showHSM(ctx context.Context, p *output.Printer, config node.HSMConfig, cas []ca.InstalledCA) (err error) {
	pin, err := node.ReadPIN(config.PINFile)
	if err != nil {
		return err
	}
	token, err := node.OpenHSM(ctx, config, pin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, token.Close()) }()
	keys, err := token.Keys(ctx)
	if err != nil {
		return err
	}
	for _, k := range keys {
		r := keyRecord{HSM: config.Label, Label: k.Label, ID: hex.EncodeToString(k.ID), Type: k.Algorithm.String()}
		if r.HSM == "" {
			r.HSM = config.Serial
		}
		if err := r.name(k.Public, cas); err != nil {
			return err
		}
		if err := p.Object(r, r.HSM, r.Label, r.ID, r.Type, dash(r.KeyHash), dash(r.names())); err != nil {
			return err
		}
	}
	return nil
}

// name sets the hash of a public key, and the installed CAs that have the key.
func (r *keyRecord) name(public crypto.PublicKey, cas []ca.InstalledCA) error {
	r.CAs = []caRecord{}
	if public == nil { // the key's type is not supported
		return nil
	}
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return err
	}
	r.KeyHash = pki.HashSPKI(spki).String()
	for _, installed := range cas {
		cert, err := x509.ParseCertificate(installed.Certificate)
		if err != nil {
			return fmt.Errorf("read an installed CA certificate: %w", err)
		}
		if bytes.Equal(cert.RawSubjectPublicKeyInfo, spki) {
			r.CAs = append(r.CAs, caRecord{Subject: cert.Subject.String(), IssuerID: pki.IssuerOf(cert).String(), State: stateName(installed.State)})
		}
	}
	return nil
}

// names returns the CAs and their states in one line.
func (r *keyRecord) names() string {
	var all []string
	for _, c := range r.CAs {
		all = append(all, c.Subject+" ("+c.State+")")
	}
	return strings.Join(all, ", ")
}

func stateName(s ca.InstallationState) string {
	switch s {
	case ca.Active:
		return "active"
	case ca.Retired:
		return "retired"
	case ca.Removed:
		return "removed"
	default:
		return fmt.Sprint(uint8(s))
	}
}

// hsmFlags are the flags of a command that logs in to an HSM.
type hsmFlags struct {
	config  node.HSMConfig
	pinFile string
}

func (t *hsmFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&t.config.Module, "module", "", "path of the PKCS#11 library (default: SoftHSM's)")
	f.StringVar(&t.config.Label, "hsm-label", "", "label of the HSM")
	f.StringVar(&t.config.Serial, "hsm-serial", "", "serial number of the HSM")
	f.StringVar(&t.pinFile, "pin-file", "", "file that contains the user PIN (default: the systemd credential pin, or the terminal asks)")
	cli.MovedFlags(cmd, map[string]string{"token-label": "--hsm-label", "token-serial": "--hsm-serial"}) //nolint:gosec // names of flags, not credentials
}
