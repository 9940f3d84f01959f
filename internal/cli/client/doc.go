// Package client connects a command to a server as an operator. It finds and renews the operator's credential, and adds
// the next step to errors.
package client
