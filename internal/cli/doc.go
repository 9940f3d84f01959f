// Package cli holds what the binaries with cobra have in common: [New] frames a root command, [Run] executes it. Exit
// codes are 0, 1 for a command that failed, and 2 for wrong use.
//
// The commands are in the packages below it. Package serve runs a server and a development CA, ceremony works offline on
// roots and the store, operator calls a server, and agent holds the commands of brevet-agent. The others are what these
// share: node, devca, client, output and file.
package cli
