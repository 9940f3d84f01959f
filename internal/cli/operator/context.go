package operator

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/file"
	"github.com/brevet-pki/brevet/internal/cli/output"
	"github.com/brevet-pki/brevet/pki"
)

// NewContext returns brevet context, which manages names for CAs.
func NewContext() *cobra.Command {
	cmd := &cobra.Command{
		Use: "context", Short: "Name several CAs, and choose the one that commands work with",
		Long: "A context is the name of a CA: its server, its trust domain, its root certificates and the directory of your\n" +
			"credential there. Contexts are kept in contexts.yaml in $XDG_CONFIG_HOME/brevet or ~/.config/brevet, mode 0600.\n\n" +
			"Commands work with the context that --context names, or $BREVET_CONTEXT, or brevet context use. A credential or\n" +
			"token of another CA than the context's is refused before anything is sent. Without a context, the credential in\n" +
			"--directory says where its server is. brevet login --context NAME makes a context that does not exist yet.",
	}
	cmd.AddCommand(newContextAdd(), newContextList(), newContextUse(), newContextRemove())
	return cmd
}

// contextRecord is a context as --output json prints it.
type contextRecord struct {
	Name        string   `json:"name"`
	Current     bool     `json:"current"`
	Server      string   `json:"server"`
	TrustDomain string   `json:"trust_domain"`
	Roots       []string `json:"root_sha256"`
	Directory   string   `json:"directory"`
}

// printContexts prints the contexts with the given names.
func printContexts(cmd *cobra.Command, all client.Contexts, names ...string) error {
	p, err := output.New(cmd, "CONTEXT", "CURRENT", "SERVER", "TRUST DOMAIN", "ROOT SHA-256", "DIRECTORY")
	if err != nil {
		return err
	}
	for _, name := range names {
		c := all.Contexts[name]
		roots, err := c.Fingerprints()
		if err != nil {
			return err
		}
		current := "-"
		if name == all.Current {
			current = "yes"
		}
		r := contextRecord{Name: name, Current: name == all.Current, Server: c.Server, TrustDomain: c.TrustDomain, Roots: roots, Directory: c.Directory}
		if err := p.Object(r, name, current, c.Server, c.TrustDomain, strings.Join(roots, ","), c.Directory); err != nil {
			return err
		}
	}
	return p.Close()
}

// addContext records a context. If it is the only one, it becomes the current context.
func addContext(name string, c client.Context) (client.Contexts, error) {
	all, err := client.ReadContexts()
	if err != nil {
		return all, err
	}
	if _, exists := all.Contexts[name]; exists {
		return all, fmt.Errorf("there is a context %s already: choose another name, or remove it first with brevet context remove %s", name, name)
	}
	if all.Contexts[name] = c; len(all.Contexts) == 1 {
		all.Current = name
	}
	return all, all.Write()
}

func newContextAdd() *cobra.Command {
	var server, root, trustDomain, directory string
	cmd := &cobra.Command{
		Use: "add NAME", Short: "Add a context", Args: cobra.ExactArgs(1),
		Long: "add records where a CA is and how it is recognized. With --directory, a credential that is there fills in what\n" +
			"is not given. The first context is used at once; brevet context use chooses another.",
		Example: "  brevet context add fleet --server ca.fleet.example:7443 --root root.crt --trust-domain fleet.example\n" +
			"  brevet context add dev --directory ~/.local/state/brevet/operator",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := client.CheckContextName(args[0]); err != nil {
				return cli.WrongArgument(err)
			}
			c, err := describeContext(args[0], server, root, trustDomain, directory)
			if err != nil {
				return err
			}
			all, err := addContext(args[0], c)
			if err != nil {
				return err
			}
			return printContexts(cmd, all, args[0])
		},
	}
	output.Flag(cmd)
	f := cmd.Flags()
	f.StringVar(&server, "server", "", "address of the server, HOST:PORT")
	f.StringVar(&root, "root", "", "file that contains the root certificate")
	f.StringVar(&trustDomain, "trust-domain", "", "SPIFFE trust domain")
	f.StringVar(&directory, "directory", "", "state directory (default: contexts/NAME in $XDG_STATE_HOME/brevet)")
	return cmd
}

// describeContext makes a context from the flags. It takes missing values from the credential in the directory.
func describeContext(name, server, root, trustDomain, directory string) (client.Context, error) {
	c := client.Context{Server: server, TrustDomain: trustDomain}
	if directory == "" {
		var err error
		if directory, err = client.DefaultDirectory(name); err != nil {
			return c, err
		}
	}
	var err error
	if c.Directory, err = filepath.Abs(directory); err != nil {
		return c, err
	}
	if server != "" {
		if err := enroll.CheckServer(server); err != nil {
			return c, cli.WrongFlag("--server", err)
		}
	}
	if trustDomain != "" {
		if _, err := pki.ParseTrustDomain(trustDomain); err != nil {
			return c, cli.WrongFlag("--trust-domain", err)
		}
	}
	if root != "" {
		cert, err := file.ReadCertificate(root)
		if err != nil {
			return c, err
		}
		c.EncodeRoot(cert)
	}
	pair, err := enroll.ReadPair(c.Directory)
	if errors.Is(err, enroll.ErrNoCredential) {
		if server == "" || root == "" || trustDomain == "" {
			return c, cli.WrongUse(fmt.Sprintf("there is no credential in %s to read the CA from: give --server, --root and --trust-domain, "+
				"or name a credential with --directory", c.Directory))
		}
		return c, nil
	}
	if err != nil {
		return c, err
	}
	from := client.NewContext(pair.Origin.Server, c.Directory, pair)
	if c.Server == "" {
		c.Server = from.Server
	}
	if c.TrustDomain == "" {
		c.TrustDomain = from.TrustDomain
	}
	if c.Roots == "" {
		c.Roots = from.Roots
	}
	return c, c.CheckPair(name, pair)
}

func newContextList() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List the contexts", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := client.ReadContexts()
			if err != nil {
				return err
			}
			return printContexts(cmd, all, all.Names()...)
		},
	}
	output.Flag(cmd)
	return cmd
}

func newContextUse() *cobra.Command {
	cmd := &cobra.Command{
		Use: "use NAME", Short: "Choose the context that commands work with", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := client.ReadContexts()
			if err != nil {
				return err
			}
			if _, err := all.Find(args[0]); err != nil {
				return err
			}
			all.Current = args[0]
			if err := all.Write(); err != nil {
				return err
			}
			return printContexts(cmd, all, args[0])
		},
	}
	output.Flag(cmd)
	return cmd
}

func newContextRemove() *cobra.Command {
	cmd := &cobra.Command{
		Use: "remove NAME", Short: "Remove a context, and keep its credential", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := client.ReadContexts()
			if err != nil {
				return err
			}
			c, err := all.Find(args[0])
			if err != nil {
				return err
			}
			if delete(all.Contexts, args[0]); all.Current == args[0] {
				all.Current = ""
			}
			if err := all.Write(); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Removed the context %s. The credential in %s stays: delete the directory to forget it.\n", args[0], c.Directory)
			return err
		},
	}
	return cmd
}
