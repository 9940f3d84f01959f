// Package bench measures what a machine and its HSM can do. The commands of brevet-bench are [Commands].
//
// Package testbed makes a directory and a key for each measurement, removes both at the end, and runs the measured server,
// which is composed of the parts that brevet serve runs. Package floor does the same work without code of Brevet, for
// comparison with the server.
package bench
