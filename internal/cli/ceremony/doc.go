// Package ceremony contains the commands for offline ceremonies and for HSMs. They create roots and issuing CAs,
// install and remove these, and initialize and inspect the HSMs that hold their keys.
package ceremony
