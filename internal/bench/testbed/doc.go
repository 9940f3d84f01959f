// Package testbed prepares what a measurement needs, and removes it at the end. A [Testbed] is a locked directory, a key
// in an HSM, and PostgreSQL if the measurement uses it. A [Server] is a measured server: a process of the same binary.
// All processes end with the measurement, even if it is killed. The next testbed removes directory and key of a killed
// one, but not the data of its PostgreSQL server.
package testbed
