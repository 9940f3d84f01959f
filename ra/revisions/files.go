package revisions

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/brevet-pki/brevet/ra/x5c"
)

// Files are the files that belong to trust sources, but not to the policy: what changes more often than the policy, or is
// secret. They are in a directory of the server. Files is safe for concurrent use.
//
//   - x5c/SOURCE/*.crl are the CRLs of a manufacturer, in DER or PEM
//   - jwt/SOURCE is the bearer token for the API server of a Kubernetes cluster
type Files struct {
	directory string
	log       *slog.Logger

	mu   sync.Mutex
	crls map[string]*x5c.CRLs // by the name of the source
}

// NewFiles returns the Files in a directory, which need not exist.
func NewFiles(directory string, log *slog.Logger) *Files {
	return &Files{directory: directory, log: log, crls: map[string]*x5c.CRLs{}}
}

// crlsOf returns the CRLs of a source of factory certificates. Reload replaces their content.
func (f *Files) crlsOf(source string) *x5c.CRLs {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c, ok := f.crls[source]; ok {
		return c
	}
	c := new(x5c.CRLs)
	f.crls[source] = c
	f.load(source, c)
	return c
}

// credential returns the path of the credential of a source of JWTs.
func (f *Files) credential(source string) string { return filepath.Join(f.directory, "jwt", source) }

// Reload reads all CRLs again. If those of a source cannot be read, the earlier ones stay.
func (f *Files) Reload() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for source, c := range f.crls {
		f.load(source, c)
	}
}

func (f *Files) load(source string, c *x5c.CRLs) {
	directory := filepath.Join(f.directory, "x5c", source)
	if _, err := os.Stat(directory); errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err := c.Load(directory); err != nil {
		f.log.Warn("the CRLs of a manufacturer cannot be read, the earlier ones stay", "source", source, "error", err)
	}
}
