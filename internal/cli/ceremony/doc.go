// Package ceremony holds the commands that make roots and issuing CAs offline, install them, and take them away again.
package ceremony
