package telemetry

import (
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// publicPaths maps prefixes of paths on the public port to values of the label "handler". The first match applies.
var publicPaths = []struct{ prefix, what string }{{"/ocsp", "ocsp"}, {"/crl/", "crl"}, {"/ca/", "ca"}, {"", "other"}}

// HTTP wraps the handler of the public port, and measures how long its responses take. Most responses are only copied
// from memory. Therefore HTTP looks up the metrics of successful responses in advance, and does not allocate for them.
func (r *Recorder) HTTP(next http.Handler) http.Handler {
	succeeded := make([]prometheus.Observer, len(publicPaths))
	for n, p := range publicPaths {
		succeeded[n] = r.metrics.requests.WithLabelValues(p.what, strconv.Itoa(http.StatusOK))
	}
	writers := sync.Pool{New: func() any { return new(codeWriter) }}
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		n := slices.IndexFunc(publicPaths, func(p struct{ prefix, what string }) bool { return strings.HasPrefix(q.URL.Path, p.prefix) })
		begun, coded := time.Now(), writers.Get().(*codeWriter)
		coded.ResponseWriter, coded.code = w, http.StatusOK
		next.ServeHTTP(coded, q)
		took := succeeded[n]
		if coded.code != http.StatusOK {
			took = r.metrics.requests.WithLabelValues(publicPaths[n].what, strconv.Itoa(coded.code))
		}
		took.Observe(time.Since(begun).Seconds())
		coded.ResponseWriter = nil
		writers.Put(coded)
	})
}

// A codeWriter records the status code of a response.
type codeWriter struct {
	http.ResponseWriter
	code int
}

// WriteHeader implements [http.ResponseWriter].
func (w *codeWriter) WriteHeader(code int) {
	w.code = code
	w.ResponseWriter.WriteHeader(code)
}

// WriteString implements [io.StringWriter], like the underlying writer.
func (w *codeWriter) WriteString(text string) (int, error) {
	return io.WriteString(w.ResponseWriter, text)
}

// Unwrap returns the underlying writer, for [http.ResponseController].
func (w *codeWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
