// Package node holds a server's configuration, and what a server process opens by it: HSMs, store and archive.
// Servers run on a node; ceremonies change what is on record in it.
package node
