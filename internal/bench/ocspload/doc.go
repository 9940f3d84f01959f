// Package ocspload makes OCSP requests for wrk, the program that sends them as load, and verifies that a server responds
// to them.
package ocspload
