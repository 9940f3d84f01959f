// Command brevet-agent gets a machine its certificate and keeps it fresh. It exits with 0, with 1 when a command
// failed, and with 2 when it was used wrongly: an unknown flag, or a configuration that does not hold.
//
// It refuses to take a token from its command line or its environment, where other users could read it.
package main

import (
	"os"

	"github.com/brevet-pki/brevet/internal/cli/agent"
)

// version is set by the linker (-X main.version=…).
var version = "dev"

func main() { os.Exit(agent.Run(version)) }
