package telemetry

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/brevet-pki/brevet/server/outcome"
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
	writers := sync.Pool{New: func() any { return new(outcome.StatusWriter) }}
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		n := slices.IndexFunc(publicPaths, func(p struct{ prefix, what string }) bool { return strings.HasPrefix(q.URL.Path, p.prefix) })
		begun, coded := time.Now(), writers.Get().(*outcome.StatusWriter)
		coded.ResponseWriter, coded.Status = w, http.StatusOK
		next.ServeHTTP(coded, q)
		took := succeeded[n]
		if coded.Status != http.StatusOK {
			took = r.metrics.requests.WithLabelValues(publicPaths[n].what, strconv.Itoa(coded.Status))
		}
		took.Observe(time.Since(begun).Seconds())
		coded.ResponseWriter = nil
		writers.Put(coded)
	})
}
