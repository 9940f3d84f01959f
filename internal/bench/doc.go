// Package bench measures what a machine and its HSM can do. The commands of brevet-bench are [Commands].
//
// A measurement runs in a directory and with a key of its own, and removes both. The server that it measures is a process
// of the same binary, composed of the parts that brevet serve runs. Package floor holds what issuing is compared with.
package bench
