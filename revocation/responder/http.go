package responder

import (
	"bytes"
	"crypto/x509"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/revocation"
)

const (
	typeCRL = "application/pkix-crl"  // RFC 5280 §4.2.1.13
	typeCA  = "application/pkix-cert" // RFC 5280 §4.2.2.1

	// caMaxAge is how long caches may keep a CA certificate, which its name determines but for a renewal.
	caMaxAge = 24 * time.Hour
)

// Handler serves relying parties, over plain HTTP since what it serves is signed:
//
//	POST /ocsp                a request in DER (RFC 6960 appendix A.1)
//	GET  /ocsp/{base64}       the same in base64, standard or URL-safe, padded or not, percent-encoded or not
//	GET  /crl/{issuer}.crl    the CA's CRL in DER; {issuer} is pki.IssuerID.Short
//	GET  /ca/{issuer}.cer     the CA's certificate in DER
//
// A request it cannot read is answered with malformedRequest and 200, as RFC 6960 has it; what is no such request at
// all with an HTTP error. The handler has to see paths as they were sent: an http.ServeMux before it would redirect
// base64 that contains two slashes. Slow clients are for the http.Server's timeouts. A connection ends with a request
// whose length a proxy before it may have read otherwise: a body in chunks, or one that came with a GET.
func (r *Responder) Handler() http.Handler { return http.HandlerFunc(r.serve) }

func (r *Responder) serve(w http.ResponseWriter, q *http.Request) {
	path := q.URL.Path
	if q.ContentLength < 0 || q.ContentLength > 0 && q.Method != http.MethodPost {
		w.Header().Set("Connection", "close") // RFC 9112 §6.1, §11.2
	}
	switch {
	case path == "/ocsp" || path == "/ocsp/":
		r.servePOST(w, q)
	case strings.HasPrefix(path, "/ocsp/"):
		r.serveGET(w, q, path[len("/ocsp/"):])
	case strings.HasPrefix(path, "/crl/"):
		r.serveCRL(w, q, path[len("/crl/"):])
	case strings.HasPrefix(path, "/ca/"):
		r.serveCA(w, q, path[len("/ca/"):])
	default:
		http.Error(w, "here are /ocsp, /crl/ and /ca/", http.StatusNotFound)
	}
}

// allowed reports whether the request has one of the methods, and answers it if not.
func allowed(w http.ResponseWriter, q *http.Request, methods ...string) bool {
	for _, m := range methods {
		if q.Method == m {
			return true
		}
	}
	w.Header().Set("Allow", strings.Join(methods, ", "))
	http.Error(w, "use "+strings.Join(methods, " or "), http.StatusMethodNotAllowed)
	return false
}

// cacheFor is a Cache-Control for caches that anybody shares.
func cacheFor(age time.Duration) string {
	return "public, max-age=" + strconv.FormatInt(int64(max(age, 0)/time.Second), 10)
}

func (r *Responder) serveCRL(w http.ResponseWriter, q *http.Request, file string) {
	_, crl := r.published(file, ".crl")
	if crl == nil {
		http.Error(w, "no such CRL", http.StatusNotFound)
		return
	}
	w.Header().Set("Cache-Control", cacheFor(crl.NextUpdate.Sub(r.clock()))+", must-revalidate")
	w.Header().Set("Last-Modified", crl.ThisUpdate.UTC().Format(http.TimeFormat))
	w.Header().Set("ETag", `"`+crl.Number.Text(16)+`"`)
	serveFile(w, q, typeCRL, crl.DER)
}

func (r *Responder) serveCA(w http.ResponseWriter, q *http.Request, file string) {
	certificate, _ := r.published(file, ".cer")
	if certificate == nil {
		http.Error(w, "no such CA", http.StatusNotFound)
		return
	}
	w.Header().Set("Cache-Control", cacheFor(caMaxAge))
	w.Header().Set("ETag", etag(certificate.Raw))
	serveFile(w, q, typeCA, certificate.Raw)
}

// serveFile serves what may be fetched in parts. It gives http.ServeContent no time: two CRLs may be of one second,
// and a client that asks by date would keep the older one.
func serveFile(w http.ResponseWriter, q *http.Request, contentType string, content []byte) {
	if !allowed(w, q, http.MethodGet, http.MethodHead) {
		return
	}
	w.Header().Set("Content-Type", contentType)
	http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(content))
}

// published returns what there is for a file name such as 0123456789abcdef.crl: either may be nil.
func (r *Responder) published(file, suffix string) (*x509.Certificate, *revocation.CRL) {
	name, ok := strings.CutSuffix(file, suffix)
	if !ok {
		return nil, nil
	}
	r.mu.RLock()
	i := r.byName[name]
	r.mu.RUnlock()
	if i == nil {
		return nil, nil
	}
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.certificate, i.crl
}
