package frontdoor

import "time"

// SetMaxAge sets the age at which connections end. The server must not serve yet.
func (s *Server) SetMaxAge(d time.Duration) { s.maxAge = d }
