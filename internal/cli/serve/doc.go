// Package serve contains the commands that run a server: brevet serve, and brevet dev for a development CA.
package serve
