package server

import "github.com/brevet-pki/brevet/server/telemetry"

// Telemetry returns what counts and watches.
func (s *Server) Telemetry() *telemetry.Recorder { return s.telemetry }

// OrdersUnderWay returns how many orders of all streams are being carried out.
func (s *Server) OrdersUnderWay() int {
	working, _ := s.api.Orders()
	return working
}

// MaxProbes is maxProbes.
const MaxProbes = maxProbes
