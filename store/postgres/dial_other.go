//go:build !linux

package postgres

import (
	"net"
	"time"
)

// setUserTimeout does nothing: only Linux has the option. Probes, and the contexts of transactions, end a connection.
func setUserTimeout(*net.TCPConn, time.Duration) error { return nil }
