// Package audit records refusals in the log: the caller, the request and the rule that refused it. A [Recorder] limits
// the number of entries for each source, which is an identity with a rule, and writes a count of the rest. A caller
// that repeats a refused request therefore cannot fill the log or the disk.
package audit
