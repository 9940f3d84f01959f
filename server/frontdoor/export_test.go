package frontdoor

import "time"

// SetMaxAge sets the age at which connections end. The server must not serve yet.
func (s *Server) SetMaxAge(d time.Duration) { s.maxAge = d }

// SetReadTimeout sets the maximum duration for the arrival of a request. The server must not serve yet.
func (s *Server) SetReadTimeout(d time.Duration) { s.http.ReadTimeout = d }
