// Package bench measures what a machine and its HSM can do. The commands of brevet-bench are [Commands].
//
// Each measurement makes a directory and a key, and removes both at the end. The measured server is a process of the
// same binary, composed of the parts that brevet serve runs. Package floor does the same work without code of Brevet,
// for comparison with the server.
package bench
