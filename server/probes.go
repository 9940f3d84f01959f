package server

import (
	"encoding/json"
	"net/http"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// operations serves the operations port: metrics, liveness and readiness.
func (s *Server) operations() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { respond(w, s.alive()) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { respond(w, s.readiness(r.Context())) })
	return mux
}

// respond answers a probe: 200 with {"status":"ok"}, or 503 with the reasons, one in a line.
func respond(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "application/json")
	answer := map[string]string{"status": "ok"}
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		answer = map[string]string{"status": "unavailable", "reason": err.Error()}
	}
	_ = json.NewEncoder(w).Encode(answer) // whoever asked has gone
}
