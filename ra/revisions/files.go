package revisions

import (
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"weak"

	"github.com/brevet-pki/brevet/ra/x5c"
)

// Files are the files that belong to trust sources, but not to the policy: what changes more often than the policy, or is
// secret. They are in a directory of the server. Files is safe for concurrent use.
//
//   - x5c/SOURCE/*.crl are the CRLs of a manufacturer, in DER or PEM
//   - jwt/HOST:PORT is the bearer token for the API server of a Kubernetes cluster at this host. It is sent to no other
//     host, whatever a policy says
type Files struct {
	directory string
	log       *slog.Logger

	mu sync.Mutex
	// crls are the CRLs by the name of their source. The pointers are weak: only a revision that decides about requests
	// keeps CRLs in memory, not a document that was refused or replaced.
	crls map[string]weak.Pointer[x5c.CRLs]
}

// NewFiles returns the Files in a directory, which need not exist.
func NewFiles(directory string, log *slog.Logger) *Files {
	return &Files{directory: directory, log: log, crls: map[string]weak.Pointer[x5c.CRLs]{}}
}

// crlsOf returns the CRLs of a source of factory certificates. Reload replaces their content.
func (f *Files) crlsOf(source string) *x5c.CRLs {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.crls[source].Value(); c != nil {
		return c
	}
	maps.DeleteFunc(f.crls, unused)
	c := new(x5c.CRLs)
	f.crls[source] = weak.Make(c)
	f.load(source, c)
	return c
}

// unused reports whether no document uses the CRLs of a source any more.
func unused(_ string, c weak.Pointer[x5c.CRLs]) bool { return c.Value() == nil }

// credential returns the path of the credential for a host, which is a name or an address with its port. An IPv6 address
// is in brackets.
func (f *Files) credential(host string) string { return filepath.Join(f.directory, "jwt", host) }

// Reload reads all CRLs again. If those of a source cannot be read, the earlier ones stay.
func (f *Files) Reload() {
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.crls, unused)
	for source, pointer := range f.crls {
		if c := pointer.Value(); c != nil {
			f.load(source, c)
		}
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
