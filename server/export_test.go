package server

import "github.com/brevet-pki/brevet/server/telemetry"

// Telemetry returns the server's recorder.
func (s *Server) Telemetry() *telemetry.Recorder { return s.telemetry }

// IssueRequestsInProgress returns the number of issue requests of all streams that are being processed.
func (s *Server) IssueRequestsInProgress() int {
	active, _ := s.api.IssueRequests()
	return active
}

// MaxProbes exports maxProbes.
const MaxProbes = maxProbes
