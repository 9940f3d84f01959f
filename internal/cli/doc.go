// Package cli contains the code that all binaries with cobra share: [New] builds a root command and [Run] executes it.
// The exit code is 0 for success, 1 for a command that failed, and 2 for an error in the command line or the
// configuration.
//
// The commands are in the packages below this one. Package serve runs a server or a development CA. Package ceremony
// creates and installs CAs offline. Package operator calls a server. Package agent contains the commands of
// brevet-agent. These packages share node, devca, client, output and file.
package cli
