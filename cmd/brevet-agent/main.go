// Command brevet-agent gets a certificate for a machine and renews it. Its exit code is 0 for success, 1 for a command
// that failed, and 2 for an error in the command line or the configuration.
//
// It refuses tokens on the command line and in the environment, where other users could read them.
package main

import (
	"os"

	"github.com/brevet-pki/brevet/internal/cli/agent"
)

// version is set by the linker (-X main.version=…).
var version = "dev"

func main() { os.Exit(agent.Run(version)) }
