package responder

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/brevet-pki/brevet/files"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
)

// A publishedCRL is the record of a published CRL, and its file. The file stays open while the CRL is published or sent
// to a client.
type publishedCRL struct {
	crl.CRL
	file *os.File
	uses atomic.Int64 // number of references by the issuer and by requests; removing the last one closes the file
	// dated is true if the CRL before this one had another thisUpdate, so that the date identifies this CRL. replace
	// sets it.
	dated bool
}

// acquire adds a reference. The caller must know that there is another reference.
func (l *publishedCRL) acquire() *publishedCRL {
	l.uses.Add(1)
	return l
}

// release removes a reference. It ignores an error of Close, because the file was only read.
func (l *publishedCRL) release() {
	if l.uses.Add(-1) == 0 {
		_ = l.file.Close()
	}
}

// PublishCRL implements crl.Publisher. It opens the file and serves the CRL from the open file.
func (r *Responder) PublishCRL(c crl.CRL, path string) error {
	i := r.known(c.Issuer)
	if i == nil {
		return fmt.Errorf("issuer %s is unknown: add its certificate first", c.Issuer.Short())
	}
	file, err := files.Open(path)
	if err != nil {
		return fmt.Errorf("open CRL %v of %s: %w", c.Number, c.Issuer.Short(), err)
	}
	next := &publishedCRL{CRL: c, file: file}
	if err := i.replace(next.acquire()); err != nil {
		next.release()
		return err
	}
	return nil
}

// replace publishes a CRL in place of the current CRL of its scope.
func (i *issuer) replace(next *publishedCRL) error {
	info, err := next.file.Stat()
	if err != nil {
		return fmt.Errorf("read CRL %v: %w", next.Number, err)
	}
	if info.Size() != next.Size {
		return fmt.Errorf("CRL %v of %s has %d bytes, its record says %d: publish the file that belongs to the record",
			next.Number, next.Issuer.Short(), info.Size(), next.Size)
	}
	path := next.Scope().Path()
	i.mu.Lock()
	defer i.mu.Unlock()
	last := i.crls[path]
	next.dated = last == nil || !last.ThisUpdate.Equal(next.ThisUpdate) || last.SHA256 == next.SHA256 && last.dated
	if last != nil {
		order := next.Number.Cmp(last.Number)
		if order < 0 || order == 0 && next.SHA256 != last.SHA256 {
			return pki.Refuse(pki.RuleCRL, "publish a newer one", "CRL %v does not replace %v, which is published", next.Number, last.Number)
		}
		defer last.release()
	}
	i.crls[path] = next
	return nil
}

// crl returns the CRL that is published at a path below /crl/, such as 0123456789abcdef/3.crl, or nil. The caller must
// release it.
func (r *Responder) crl(path string) *publishedCRL {
	name, _, nested := strings.Cut(path, "/")
	if !nested {
		name = strings.TrimSuffix(path, ".crl")
	}
	r.mu.RLock()
	i := r.byName[name]
	r.mu.RUnlock()
	if i == nil {
		return nil
	}
	i.mu.RLock()
	defer i.mu.RUnlock()
	if l := i.crls[path]; l != nil {
		return l.acquire()
	}
	return nil
}

func (r *Responder) serveCRL(w http.ResponseWriter, q *http.Request, path string) {
	l := r.crl(path)
	if l == nil {
		writeError(w, "no such CRL", http.StatusNotFound)
		return
	}
	defer l.release()
	if !allowed(w, q, http.MethodGet, http.MethodHead) {
		return
	}
	w.Header().Set("Cache-Control", cacheFor(min(r.crlMaxAge, l.NextUpdate.Sub(r.clock())))+", must-revalidate")
	w.Header().Set("ETag", l.ETag())
	if modified := l.ThisUpdate.UTC().Format(http.TimeFormat); l.dated {
		w.Header().Set("Last-Modified", modified)
		if q.Header.Get("If-None-Match") == "" && q.Header.Get("If-Modified-Since") == modified {
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	serveFile(w, q, typeCRL, io.NewSectionReader(l.file, 0, l.Size))
}

// serveFile serves content, and ranges of it. It passes no modification time to http.ServeContent, because dates are
// not reliable. A CRL may be published some seconds after its thisUpdate. In these seconds a client may have fetched
// the earlier CRL. serveCRL therefore compares dates itself, and only if no two CRLs have the same date.
func serveFile(w http.ResponseWriter, q *http.Request, contentType string, content io.ReadSeeker) {
	w.Header().Set("Content-Type", contentType)
	http.ServeContent(w, q, "", time.Time{}, content)
}

// Close closes the files of the CRLs. The Responder must not be used afterwards.
func (r *Responder) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var failed []error
	for _, i := range r.issuers {
		i.mu.Lock()
		for path, l := range i.crls {
			failed = append(failed, l.file.Close())
			delete(i.crls, path)
		}
		i.mu.Unlock()
	}
	return errors.Join(failed...)
}
