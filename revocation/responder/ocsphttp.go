package responder

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/brevet-pki/brevet/revocation/ocsp"
)

const (
	typeRequest  = "application/ocsp-request"
	typeResponse = "application/ocsp-response"

	// maxGET is the maximum length of the path after /ocsp/. It is enough for the largest request in base64 and some
	// leading slashes.
	maxGET = ocsp.MaxRequestSize/3*4 + 16
	// maxAutoLength is the size of the largest body for which net/http sets Content-Length itself, which is faster.
	maxAutoLength = 2 << 10
)

// Header values that all responses share. They must not be modified.
var (
	contentType = []string{typeResponse}
	noStore     = []string{"no-store"}
)

// A workspace holds the buffers for one request and its response. It is used again for later requests.
type workspace struct {
	text   [maxGET]byte
	der    [maxGET]byte
	buf    [maxCachedSize]byte
	answer signedResponse
}

var workspaces = sync.Pool{New: func() any { return new(workspace) }}

func (r *Responder) servePOST(w http.ResponseWriter, q *http.Request) {
	if !allowed(w, q, http.MethodPost) {
		return
	}
	if !isRequest(q.Header["Content-Type"]) {
		writeError(w, "send "+typeRequest, http.StatusUnsupportedMediaType)
		return
	}
	space := workspaces.Get().(*workspace)
	defer workspaces.Put(space)
	der, err := readBody(w, q, space)
	if err != nil {
		refuseBody(w, err)
		return
	}
	// The header needs no Cache-Control: without explicit freshness, caches do not keep a response to a POST (RFC 9110
	// §9.3.3).
	a, refusal := r.answerDER(q.Context(), q.RemoteAddr, r.clock(), der, space)
	if refusal != 0 {
		writeRefusal(w, refusal)
		return
	}
	a.write(w, q)
}

// refuseBody sends the error about a body that could not be read.
func refuseBody(w http.ResponseWriter, err error) {
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		writeError(w, "an OCSP request has at most "+strconv.Itoa(ocsp.MaxRequestSize)+" bytes", http.StatusRequestEntityTooLarge)
		return
	}
	writeError(w, "the request body is incomplete", http.StatusBadRequest)
}

// isRequest reports whether the Content-Type is that of an OCSP request, with or without parameters.
func isRequest(header []string) bool {
	if len(header) != 1 {
		return false
	}
	if header[0] == typeRequest {
		return true
	}
	media, _, err := mime.ParseMediaType(header[0])
	return err == nil && media == typeRequest
}

// readBody reads a body of at most ocsp.MaxRequestSize bytes. The result may refer to the workspace.
func readBody(w http.ResponseWriter, q *http.Request, space *workspace) ([]byte, error) {
	n := q.ContentLength
	if n > ocsp.MaxRequestSize {
		w.Header().Set("Connection", "close") // the body remains unread
		return nil, &http.MaxBytesError{Limit: ocsp.MaxRequestSize}
	}
	if n >= 0 {
		_, err := io.ReadFull(q.Body, space.der[:n])
		return space.der[:n], err
	}
	return io.ReadAll(http.MaxBytesReader(w, q.Body, ocsp.MaxRequestSize))
}

func (r *Responder) serveGET(w http.ResponseWriter, q *http.Request, encoded string) {
	if !allowed(w, q, http.MethodGet, http.MethodHead) {
		return
	}
	if len(encoded) > maxGET {
		writeError(w, "an OCSP request has at most "+strconv.Itoa(ocsp.MaxRequestSize)+" bytes", http.StatusRequestURITooLong)
		return
	}
	space := workspaces.Get().(*workspace)
	defer workspaces.Put(space)
	der, err := decodePath(space, encoded)
	if err != nil {
		writeRefusal(w, r.refuse(ocsp.MalformedRequest))
		return
	}
	now := r.clock()
	a, refusal := r.answerDER(q.Context(), q.RemoteAddr, now, der, space)
	if refusal != 0 {
		writeRefusal(w, refusal)
		return
	}
	header := w.Header()
	if !a.cached {
		header["Cache-Control"] = noStore
		a.write(w, q)
		return
	}
	// RFC 5019 §6.2. If-Modified-Since is ignored, because a status may change twice in one second.
	header["Cache-Control"] = r.cacheable
	if left := time.Unix(a.nextUpdate, 0).Sub(now); left < r.maxAge {
		header["Cache-Control"] = []string{cacheControl(left)}
	}
	tag := string(a.tag[:])
	header["Expires"], header["Last-Modified"], header["Etag"] = r.dates.of(a.nextUpdate), r.dates.of(a.thisUpdate), []string{tag}
	if tags := q.Header["If-None-Match"]; len(tags) > 0 && matches(tags[0], tag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	a.write(w, q)
}

// cacheControl returns the Cache-Control of an OCSP response that caches may keep for age.
func cacheControl(age time.Duration) string { return cacheFor(age) + ", no-transform, must-revalidate" }

// dates caches formatted HTTP dates, because many responses contain the same ones. The index is in the low bits of the
// time. The times in use are close to each other, so few of them share an index.
type dates [1 << 10]atomic.Pointer[date]

type date struct {
	seconds int64 // seconds since 1970
	value   []string
}

// of formats a time in seconds since 1970 as a value of http.Header. The caller must not modify the result.
func (d *dates) of(seconds int64) []string {
	place := &d[seconds&int64(len(d)-1)]
	if one := place.Load(); one != nil && one.seconds == seconds {
		return one.value
	}
	one := &date{seconds, []string{time.Unix(seconds, 0).UTC().Format(http.TimeFormat)}}
	place.Store(one)
	return one.value
}

// answerDER returns the response to an OCSP request in DER from a remote address. It keeps no reference to der. The
// response may refer to the workspace.
func (r *Responder) answerDER(ctx context.Context, remote string, now time.Time, der []byte, space *workspace) (*signedResponse, ocsp.Refusal) {
	if id, serial, plain := ocsp.PlainCertID(der); plain {
		if a := r.lookup(now, serial, id, space); a != nil {
			r.meter.Answered(a.outcome)
			return a, 0
		}
	}
	q, err := ocsp.ParseRequest(der)
	if err != nil {
		return nil, r.refuse(ocsp.MalformedRequest)
	}
	a, refusal := r.respond(ctx, hostOf(remote), q, space)
	if refusal != 0 {
		return nil, r.refuse(refusal)
	}
	r.meter.Answered(a.outcome)
	return a, 0
}

// refuse counts a refusal for the metrics and returns it.
func (r *Responder) refuse(refusal ocsp.Refusal) ocsp.Refusal {
	r.meter.Answered(outcomeOfRefusal(refusal))
	return refusal
}

// write sends the response. It ignores errors, which mean that the client has disconnected.
func (a *signedResponse) write(w http.ResponseWriter, q *http.Request) {
	header := w.Header()
	header["Content-Type"] = contentType
	if size := len(a.head) + len(a.tail); size > maxAutoLength || q.Method == http.MethodHead {
		header["Content-Length"] = []string{strconv.Itoa(size)}
	}
	_, _ = w.Write(a.head) //nolint:gosec // DER, in a type that browsers do not render
	if len(a.tail) > 0 {
		_, _ = w.Write(a.tail) //nolint:gosec // the same
	}
}

func writeRefusal(w http.ResponseWriter, refusal ocsp.Refusal) {
	header := w.Header()
	header["Cache-Control"], header["Content-Type"] = noStore, contentType
	_, _ = w.Write(refusal.DER()) //nolint:gosec // the bytes are constant
}

// strictBase64 refuses padding bits that are not zero (RFC 4648 §3.5).
var strictBase64 = base64.RawStdEncoding.Strict()

// decodePath decodes the base64 in the path of a GET. It accepts all forms that clients and proxies produce: both
// alphabets, with or without padding, with spaces instead of plus signs, and with additional leading slashes. encoded
// has at most maxGET bytes. The result refers to the workspace.
func decodePath(space *workspace, encoded string) ([]byte, error) {
	encoded = strings.TrimLeft(encoded, "/") // the base64 of a DER request never begins with a slash
	text := space.text[:copy(space.text[:], encoded)]
	for n, c := range text {
		switch c {
		case '-', ' ':
			text[n] = '+'
		case '_':
			text[n] = '/'
		case '\r', '\n': // the decoder would ignore them
			return nil, errors.New("the base64 contains a line break")
		}
	}
	bare := bytes.TrimRight(text, "=")
	if padding := len(text) - len(bare); padding > 0 && (padding > 2 || len(text)%4 != 0) {
		return nil, errors.New("the base64 has wrong padding")
	}
	n, err := strictBase64.Decode(space.der[:], bare)
	return space.der[:n], err
}

// matches reports whether an If-None-Match header contains the tag (RFC 9110 §13.1.2).
func matches(header, tag string) bool {
	for candidate := range strings.SplitSeq(header, ",") {
		candidate = strings.TrimSpace(candidate)
		if candidate == "*" || strings.TrimPrefix(candidate, "W/") == tag {
			return true
		}
	}
	return false
}
