// Package node holds a server's configuration, and opens the resources that it names: HSMs, store and
// archive. Servers and ceremonies use it.
package node
