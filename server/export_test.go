package server

import "github.com/brevet-pki/brevet/server/telemetry"

// Telemetry returns the server's recorder.
func (s *Server) Telemetry() *telemetry.Recorder { return s.telemetry }

// OrdersUnderWay returns the number of issue requests in progress, of all streams.
func (s *Server) OrdersUnderWay() int {
	working, _ := s.api.Orders()
	return working
}

// MaxProbes exports maxProbes.
const MaxProbes = maxProbes
