// Package audit records refusals in the log: who asked for what, and which rule refused it. A [Recorder] bounds the entries of
// each source, an identity with a rule, and writes a count for the rest. So a caller that repeats itself fills neither the log
// nor the disk.
package audit
