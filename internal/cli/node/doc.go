// Package node contains a server's configuration. It opens the HSMs, the store and the archive that the configuration
// names. Servers and ceremonies use it.
package node
