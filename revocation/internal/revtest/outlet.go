package revtest

import (
	"crypto/sha256"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
)

// Outlet is a [pki.StatusObserver] and a [crl.Publisher]. It stores the observed changes, and the published CRLs with
// the contents of their files.
type Outlet struct {
	mu      sync.Mutex
	changes []pki.StatusChange
	crls    []crl.CRL
}

// Apply implements pki.StatusObserver.
func (o *Outlet) Apply(changes ...pki.StatusChange) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.changes = append(o.changes, changes...)
}

// PublishCRL implements crl.Publisher.
func (o *Outlet) PublishCRL(c crl.CRL, path string) error {
	der, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if int64(len(der)) != c.Size || sha256.Sum256(der) != c.SHA256 {
		return fmt.Errorf("%s has %d bytes, but its record describes another file", path, len(der))
	}
	c.DER = der
	o.mu.Lock()
	defer o.mu.Unlock()
	o.crls = append(o.crls, c)
	return nil
}

// Changes returns all observed changes.
func (o *Outlet) Changes() []pki.StatusChange {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.changes)
}

// Published returns all published CRLs.
func (o *Outlet) Published() []crl.CRL {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.crls)
}

// LogBook stores the output of a logger.
type LogBook struct {
	mu   sync.Mutex
	text strings.Builder
}

// Write implements io.Writer.
func (l *LogBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// Count returns how often a text occurs in the output.
func (l *LogBook) Count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), text)
}

// String returns the output so far.
func (l *LogBook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
