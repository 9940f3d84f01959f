// Package ceremony holds the commands that make roots and issuing CAs offline, install and
// remove them, and initialize and show the HSMs that hold their keys.
package ceremony
