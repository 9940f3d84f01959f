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

// list is a published CRL: its record, and its file, which stays open while it is published or served.
type list struct {
	crl.CRL
	file *os.File
	uses atomic.Int64 // by the issuer and by requests; the last one closes the file
	// dated is whether its thisUpdate tells it from the CRL before it. Set when it is published.
	dated bool
}

// take adds a use, while whoever publishes still has one.
func (l *list) take() *list {
	l.uses.Add(1)
	return l
}

// release ends a use. What the file was read for is done, so there is nobody to tell of an error.
func (l *list) release() {
	if l.uses.Add(-1) == 0 {
		_ = l.file.Close()
	}
}

// PublishCRL implements crl.Publisher. It keeps the file open, and serves it from there.
func (r *Responder) PublishCRL(c crl.CRL, path string) error {
	i := r.known(c.Issuer)
	if i == nil {
		return fmt.Errorf("responder: issuer %s is not one of those published for: add its certificate first", c.Issuer.Short())
	}
	file, err := files.Open(path)
	if err != nil {
		return fmt.Errorf("responder: open CRL %v of %s: %w", c.Number, c.Issuer.Short(), err)
	}
	next := &list{CRL: c, file: file}
	if err := i.replace(next.take()); err != nil {
		next.release()
		return err
	}
	return nil
}

// replace publishes a CRL in place of an older one.
func (i *issuer) replace(next *list) error {
	info, err := next.file.Stat()
	if err != nil {
		return fmt.Errorf("responder: read CRL %v: %w", next.Number, err)
	}
	if info.Size() != next.Size {
		return fmt.Errorf("responder: CRL %v of %s has %d octets, and its record says %d: publish the file that belongs to it",
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

// list returns what is published under a path below /crl/, such as 0123456789abcdef/3.crl, for one use; nil for nothing.
func (r *Responder) list(path string) *list {
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
		return l.take()
	}
	return nil
}

func (r *Responder) serveCRL(w http.ResponseWriter, q *http.Request, path string) {
	l := r.list(path)
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

// serveFile serves what may be fetched in parts. It gives http.ServeContent no time, which that would compare with any date
// a client sends: a CRL may be published seconds after its thisUpdate, and the client may have fetched the one before
// in between. serveCRL takes only the date of a CRL that no other one shares.
func serveFile(w http.ResponseWriter, q *http.Request, contentType string, content io.ReadSeeker) {
	w.Header().Set("Content-Type", contentType)
	http.ServeContent(w, q, "", time.Time{}, content)
}

// Close closes the files of CRLs. Nothing may be asked of the Responder afterwards.
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
