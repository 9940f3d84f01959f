// Package audit records refusals in the log: the caller, the request and the rule that refused it. A source of refusals
// is an identity together with the rule. A [Recorder] limits the number of entries that one source can cause, and
// writes only the count of its other refusals. A caller that repeats a refused request therefore cannot fill the log or
// the disk.
package audit
