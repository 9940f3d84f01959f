package responder

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/ocsp"
)

const (
	typeRequest  = "application/ocsp-request"
	typeResponse = "application/ocsp-response"
	typeCRL      = "application/pkix-crl"  // RFC 5280 §4.2.1.13
	typeCA       = "application/pkix-cert" // RFC 5280 §4.2.2.1

	// longestGET bounds what follows /ocsp/: the largest request in base64, and room for slashes in front.
	longestGET = ocsp.MaxRequestSize/3*4 + 16
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
// base64 that contains two slashes. Slow clients are for the http.Server's timeouts.
func (r *Responder) Handler() http.Handler { return http.HandlerFunc(r.serve) }

func (r *Responder) serve(w http.ResponseWriter, q *http.Request) {
	path := q.URL.Path
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

func (r *Responder) servePOST(w http.ResponseWriter, q *http.Request) {
	if !allowed(w, q, http.MethodPost) {
		return
	}
	if media, _, err := mime.ParseMediaType(q.Header.Get("Content-Type")); err != nil || media != typeRequest {
		http.Error(w, "send "+typeRequest, http.StatusUnsupportedMediaType)
		return
	}
	der, err := io.ReadAll(http.MaxBytesReader(w, q.Body, ocsp.MaxRequestSize))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		http.Error(w, "an OCSP request has at most "+strconv.Itoa(ocsp.MaxRequestSize)+" octets", http.StatusRequestEntityTooLarge)
		return
	}
	if err != nil {
		http.Error(w, "the request did not arrive whole", http.StatusBadRequest)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	a, _, refusal := r.respond(der)
	if refusal != 0 {
		writeOCSP(w, refusal.DER())
		return
	}
	writeOCSP(w, a.der)
}

func (r *Responder) serveGET(w http.ResponseWriter, q *http.Request, encoded string) {
	if !allowed(w, q, http.MethodGet, http.MethodHead) {
		return
	}
	if len(encoded) > longestGET {
		http.Error(w, "an OCSP request has at most "+strconv.Itoa(ocsp.MaxRequestSize)+" octets", http.StatusRequestURITooLong)
		return
	}
	header := w.Header()
	der, err := decodePath(encoded)
	if err != nil {
		header.Set("Cache-Control", "no-store")
		writeOCSP(w, r.refuse(ocsp.MalformedRequest).DER())
		return
	}
	a, shared, refusal := r.respond(der)
	if refusal != 0 {
		header.Set("Cache-Control", "no-store")
		writeOCSP(w, refusal.DER())
		return
	}
	if !shared {
		header.Set("Cache-Control", "no-store")
		writeOCSP(w, a.der)
		return
	}
	// RFC 5019 §6.2. If-Modified-Since is not honoured: a status may change twice in one second.
	age := min(r.maxAge, a.nextUpdate.Sub(r.clock()))
	header.Set("Cache-Control", cacheFor(age)+", no-transform, must-revalidate")
	header.Set("Expires", a.nextUpdate.UTC().Format(http.TimeFormat))
	header.Set("Last-Modified", a.thisUpdate.UTC().Format(http.TimeFormat))
	header.Set("ETag", a.etag)
	if matches(q.Header.Get("If-None-Match"), a.etag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	writeOCSP(w, a.der)
}

// respond answers a request in DER.
func (r *Responder) respond(der []byte) (*answer, bool, ocsp.Refusal) {
	q, err := ocsp.ParseRequest(der)
	if err != nil {
		return nil, false, r.refuse(ocsp.MalformedRequest)
	}
	a, shared, refusal := r.answer(q)
	if refusal != 0 {
		return nil, false, r.refuse(refusal)
	}
	r.meter.Answered(a.outcome)
	return a, shared, 0
}

// refuse counts a refusal, and returns it.
func (r *Responder) refuse(refusal ocsp.Refusal) ocsp.Refusal {
	r.meter.Answered(outcomeOfRefusal(refusal))
	return refusal
}

func writeOCSP(w http.ResponseWriter, der []byte) {
	w.Header().Set("Content-Type", typeResponse)
	w.Header().Set("Content-Length", strconv.Itoa(len(der)))
	_, _ = w.Write(der) //nolint:gosec // G705: DER under a type of its own, no page; a client that has gone needs no answer
}

// decodePath reads the base64 of a GET in every form that clients and proxies make of it: both alphabets, with or
// without padding, with a plus sign turned into a space, with slashes added in front.
func decodePath(encoded string) ([]byte, error) {
	text := strings.TrimLeft(encoded, "/") // no request in DER begins with what encodes as a slash
	text = strings.NewReplacer("-", "+", "_", "/", " ", "+").Replace(text)
	bare := strings.TrimRight(text, "=")
	if padding := len(text) - len(bare); padding > 0 && (padding > 2 || len(text)%4 != 0) {
		return nil, errors.New("responder: wrong padding")
	}
	if strings.ContainsAny(bare, "\r\n") { // the decoder would skip them
		return nil, errors.New("responder: a line break in base64")
	}
	return base64.RawStdEncoding.Strict().DecodeString(bare)
}

// matches reports whether an If-None-Match names the tag (RFC 9110 §13.1.2).
func matches(header, tag string) bool {
	for candidate := range strings.SplitSeq(header, ",") {
		candidate = strings.TrimSpace(candidate)
		if candidate == "*" || strings.TrimPrefix(candidate, "W/") == tag {
			return true
		}
	}
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
