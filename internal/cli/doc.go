// Package cli contains what the binaries that use cobra share: [New] builds a root command and [Run] executes it. The
// exit code is 0 for success, 1 for a command that failed, and 2 for wrong use.
//
// The commands are in the packages below it. Package serve runs a server or a development CA. Package ceremony works
// offline on roots and the store. Package operator calls a server. Package agent contains the commands of brevet-agent.
// These packages share node, devca, client, output and file.
package cli
