package telemetry

import (
	"encoding/json"
	"net/http"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Operations returns the handler of the operations port: metrics, liveness and readiness.
func (r *Recorder) Operations(h *Health) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r.metrics.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, q *http.Request) { respond(w, h.alive(q.Context()), nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, q *http.Request) {
		respond(w, h.Readiness(q.Context()), h.Degradation(q.Context()))
	})
	return mux
}

// respond writes the response of a probe: 200 with {"status":"ok"}, or 503 with the reasons, one per line. With 200, it
// may name what does not work.
func respond(w http.ResponseWriter, err, degraded error) {
	w.Header().Set("Content-Type", "application/json")
	body := map[string]string{"status": "ok"}
	if degraded != nil {
		body = map[string]string{"status": "degraded", "reason": degraded.Error()}
	}
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		body = map[string]string{"status": "unavailable", "reason": err.Error()}
	}
	_ = json.NewEncoder(w).Encode(body) // fails only if the client has disconnected
}
