package client

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/files"
	"github.com/brevet-pki/brevet/internal/config"
	"github.com/brevet-pki/brevet/pki"
)

// Context is a CA that an operator uses. The operator chooses the context's name.
type Context struct {
	// Server is the address of the server, host:port.
	Server string `yaml:"server"`
	// TrustDomain is the SPIFFE trust domain of the CA.
	TrustDomain string `yaml:"trust_domain"`
	// Roots holds the CA's root certificates in PEM, one after the other.
	Roots string `yaml:"roots"`
	// Directory is the credential directory, as an absolute path.
	Directory string `yaml:"directory"`
}

// Contexts is the content of the file with an operator's contexts.
type Contexts struct {
	// Current is the name of the context in use, or empty.
	Current string `yaml:"current"`
	// Contexts holds the contexts by name.
	Contexts map[string]Context `yaml:"contexts"`
}

const (
	contextsFile = "contexts.yaml" // file name in ConfigHome
	maxContexts  = 1 << 20         // maximum size of the file in bytes
)

// ConfigHome returns the directory for a user's settings: $XDG_CONFIG_HOME/brevet, or ~/.config/brevet.
func ConfigHome() (string, error) {
	if dir := os.Getenv("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "brevet"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find the directory of settings: %w: set XDG_CONFIG_HOME", err)
	}
	return filepath.Join(home, ".config", "brevet"), nil
}

var contextName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// CheckContextName returns an error if a name is not allowed for a context. The name becomes part of a path.
func CheckContextName(name string) error {
	if !contextName.MatchString(name) {
		return fmt.Errorf("%q cannot name a context: use 1 to 64 letters, digits, dots, dashes and underscores, and begin with a letter or digit", name)
	}
	return nil
}

// ReadContexts reads the user's contexts. If the file does not exist, there are none. It refuses a file that other
// users can read or write, because commands trust the server and the roots in the file.
func ReadContexts() (Contexts, error) {
	all := Contexts{Contexts: map[string]Context{}}
	home, err := ConfigHome()
	if err != nil {
		return all, err
	}
	path := filepath.Join(home, contextsFile)
	f, err := files.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err != nil {
		return all, fmt.Errorf("read the contexts: %w", err)
	}
	defer func() { _ = f.Close() }()
	if err := errors.Join(checkOwnFile(f), files.CheckPrivate(home, 0o022)); err != nil {
		return all, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxContexts+1))
	if err != nil {
		return all, fmt.Errorf("read the contexts: %w", err)
	}
	if len(text) > maxContexts {
		return all, fmt.Errorf("%s has more than %d bytes: remove contexts from it", path, maxContexts)
	}
	if err := config.DecodeYAML(text, &all); err != nil {
		return all, fmt.Errorf("%s: %w", path, err)
	}
	for name, c := range all.Contexts {
		if err := errors.Join(CheckContextName(name), c.check()); err != nil {
			return all, fmt.Errorf("%s: contexts.%s: %w", path, name, err)
		}
	}
	if _, ok := all.Contexts[all.Current]; all.Current != "" && !ok {
		return all, fmt.Errorf("%s: current: there is no context %q: choose one with brevet context use", path, all.Current)
	}
	return all, nil
}

// checkOwnFile returns an error unless the file belongs to this user and has no permissions for others.
func checkOwnFile(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("other users can open %s (mode %04o): check what it says, then run chmod 600 on it", f.Name(), mode)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, not to you: remove it, and make your own with brevet context add", f.Name(), stat.Uid)
	}
	return nil
}

// Write replaces the file. The file's mode is 0600, and that of its directory 0700.
func (all Contexts) Write() error {
	home, err := ConfigHome()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(home, 0o700); err != nil {
		return fmt.Errorf("write the contexts: %w", err)
	}
	dir, err := files.OpenDirectory(home)
	if err != nil {
		return fmt.Errorf("write the contexts: %w", err)
	}
	defer func() { _ = dir.Close() }() // replacing the file has already synced the directory
	text, err := yaml.Marshal(all)
	if err != nil {
		return fmt.Errorf("encode the contexts: %w", err)
	}
	err = dir.Replace(contextsFile, 0o600, func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	})
	if err = errors.Join(err, dir.Flush(".")); err != nil {
		return fmt.Errorf("write the contexts: %w", err)
	}
	return nil
}

// Names returns the names of the contexts in alphabetical order.
func (all Contexts) Names() []string { return slices.Sorted(maps.Keys(all.Contexts)) }

// Find returns the context with this name, or an error that names the others.
func (all Contexts) Find(name string) (Context, error) {
	c, ok := all.Contexts[name]
	switch {
	case ok:
		return c, nil
	case len(all.Contexts) == 0:
		return c, fmt.Errorf("there is no context %q: make it with brevet login --context %s --token-file FILE, or with brevet context add", name, name)
	default:
		return c, fmt.Errorf("there is no context %q: use %s, or make it with brevet login --context or brevet context add", name, strings.Join(all.Names(), ", "))
	}
}

// NewContext returns a context for a credential in a directory.
func NewContext(server, directory string, pair *enroll.Pair) Context {
	return Context{Server: server, TrustDomain: pair.ID().TrustDomain(), Roots: encodeRoots(pair.Roots), Directory: directory}
}

// encodeRoots encodes certificates in PEM.
func encodeRoots(roots []*x509.Certificate) string {
	var b bytes.Buffer
	for _, root := range roots {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}) // writing to a bytes.Buffer never fails
	}
	return b.String()
}

// EncodeRoot sets the roots of the context to one certificate.
func (c *Context) EncodeRoot(root *x509.Certificate) {
	c.Roots = encodeRoots([]*x509.Certificate{root})
}

// check returns an error for a field that is missing or malformed.
func (c Context) check() error {
	if err := enroll.CheckServer(c.Server); err != nil {
		return fmt.Errorf("server: %w", err)
	}
	if _, err := pki.ParseTrustDomain(c.TrustDomain); err != nil {
		return fmt.Errorf("trust_domain: %w", err)
	}
	if _, err := c.RootCertificates(); err != nil {
		return fmt.Errorf("roots: %w", err)
	}
	if !filepath.IsAbs(c.Directory) {
		return fmt.Errorf("directory: %q is not an absolute path: write it from / on", c.Directory)
	}
	return nil
}

// RootCertificates returns the CA's root certificates, at least one.
func (c Context) RootCertificates() ([]*x509.Certificate, error) {
	var roots []*x509.Certificate
	for rest := []byte(c.Roots); ; {
		block, after := pem.Decode(rest)
		if block == nil {
			break
		}
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		roots, rest = append(roots, root), after
	}
	if len(roots) == 0 {
		return nil, errors.New("there is no certificate: give at least one in PEM")
	}
	return roots, nil
}

// Fingerprints returns the SHA-256 of each root certificate, in hexadecimal.
func (c Context) Fingerprints() ([]string, error) {
	roots, err := c.RootCertificates()
	if err != nil {
		return nil, err
	}
	var all []string
	for _, root := range roots {
		sum := sha256.Sum256(root.Raw)
		all = append(all, hex.EncodeToString(sum[:]))
	}
	return all, nil
}

// CheckPair returns an error if a credential belongs to another CA than the context: its trust domain differs, or none
// of its trusted roots is a root of the context.
func (c Context) CheckPair(name string, pair *enroll.Pair) error {
	if have := pair.ID().TrustDomain(); have != c.TrustDomain {
		return fmt.Errorf("the credential in %s is for the trust domain %s, and the context %s for %s: name its directory with --directory, or choose its context",
			c.Directory, have, name, c.TrustDomain)
	}
	roots, err := c.RootCertificates()
	if err != nil {
		return err
	}
	for _, root := range roots {
		if slices.ContainsFunc(pair.Roots, root.Equal) {
			return nil
		}
	}
	return fmt.Errorf("the credential in %s trusts none of the roots of the context %s: if the CA has a new root, verify it, "+
		"then remove the context and add it again", c.Directory, name)
}

// CheckToken returns an error if an enrollment token belongs to another CA than the context.
func (c Context) CheckToken(name string, token enroll.Token) error {
	if token.TrustDomain != c.TrustDomain {
		return fmt.Errorf("the token is for the trust domain %s, and the context %s for %s: name another context with --context",
			token.TrustDomain, name, c.TrustDomain)
	}
	prints, err := c.Fingerprints()
	if err != nil {
		return err
	}
	if !slices.Contains(prints, hex.EncodeToString(token.RootFingerprint[:])) {
		return fmt.Errorf("the token names a root that is none of the context %s: ask its CA's operator where the token comes from", name)
	}
	return nil
}
