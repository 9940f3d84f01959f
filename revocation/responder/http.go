package responder

import (
	"bytes"
	"crypto/x509"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	typeCRL = "application/pkix-crl"  // RFC 5280 §4.2.1.13
	typeCA  = "application/pkix-cert" // RFC 5280 §4.2.2.1

	// caMaxAge is how long caches may keep a CA certificate. The certificate at a URL only changes when the CA's
	// certificate is renewed.
	caMaxAge = 24 * time.Hour
)

// Handler returns the HTTP handler for relying parties. It needs no TLS, because everything it serves is signed:
//
//	POST /ocsp                a request in DER (RFC 6960 appendix A.1)
//	GET  /ocsp/{base64}       the same in base64, standard or URL-safe, padded or not, percent-encoded or not
//	GET  /crl/{issuer}.crl    the CA's full CRL in DER; {issuer} is pki.IssuerID.Short
//	GET  /crl/{issuer}/{partition}.crl, /crl/{issuer}/{partition}-delta.crl    the CRLs of its partitions
//	GET  /ca/{issuer}.cer     the CA's certificate in DER
//
// If an OCSP request cannot be parsed, the response is malformedRequest with status 200, as in RFC 6960. If the path,
// method or type is wrong, the response is an HTTP error. The handler needs the paths as the client sent them. An
// http.ServeMux in front of it would redirect base64 that contains two slashes. The http.Server must set timeouts
// against slow clients. After a chunked body, or a GET with a body, the connection is closed, because a proxy may
// disagree about where the request ends.
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
		writeError(w, "not found: use /ocsp, /crl/ or /ca/", http.StatusNotFound)
	}
}

// allowed reports whether the request's method is one of methods. If it is not, allowed sends the error.
func allowed(w http.ResponseWriter, q *http.Request, methods ...string) bool {
	for _, m := range methods {
		if q.Method == m {
			return true
		}
	}
	w.Header().Set("Allow", strings.Join(methods, ", "))
	writeError(w, "use "+strings.Join(methods, " or "), http.StatusMethodNotAllowed)
	return false
}

// writeError sends an HTTP error that caches must not keep. Without Cache-Control they may keep a 404 (RFC 9110 §15.1),
// although the resource may be published a moment later.
func writeError(w http.ResponseWriter, text string, code int) {
	w.Header()["Cache-Control"] = noStore
	http.Error(w, text, code)
}

// cacheFor returns a Cache-Control value that lets shared caches keep a response for age.
func cacheFor(age time.Duration) string {
	return "public, max-age=" + strconv.FormatInt(int64(max(age, 0)/time.Second), 10)
}

func (r *Responder) serveCA(w http.ResponseWriter, q *http.Request, file string) {
	certificate := r.certificate(file)
	if certificate == nil {
		writeError(w, "no such CA", http.StatusNotFound)
		return
	}
	if !allowed(w, q, http.MethodGet, http.MethodHead) {
		return
	}
	w.Header().Set("Cache-Control", cacheFor(caMaxAge))
	tag := tagOf(certificate.Raw)
	w.Header().Set("ETag", string(tag[:]))
	serveFile(w, q, typeCA, bytes.NewReader(certificate.Raw))
}

// certificate returns the CA certificate for a file name such as 0123456789abcdef.cer, or nil.
func (r *Responder) certificate(file string) *x509.Certificate {
	name, ok := strings.CutSuffix(file, ".cer")
	if !ok {
		return nil
	}
	r.mu.RLock()
	i := r.byName[name]
	r.mu.RUnlock()
	if i == nil {
		return nil
	}
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.certificate
}
