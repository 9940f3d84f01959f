package server

import (
	"github.com/brevet-pki/brevet/server/acme/validation"
)

// ACME configures the ACME door.
type ACME struct {
	Validation validation.Config
	// MinVersion is the oldest TLS version of clients, such as tls.VersionTLS13.
	MinVersion uint16
}
