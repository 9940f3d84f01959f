// Package translog is the tamper-evident log. It holds one entry for every change of state and every refusal, in one
// order, chained by hash. A second copy is kept outside the database.
//
// The store writes an [Entry], unsequenced, in the transaction of the change that it records. The [Sequencer] later
// assigns indexes without gaps and appends the entries to the [Archive], an append-only file. An auditor verifies the
// archive offline with [Read]. After a database was restored, the archive shows which entries its backup lacks. A
// [Verifier] checks the same rules on any stream of records, such as one received over the network.
//
// The [Remover] removes old entries from the store that the archive has. [Whole] reads both. A [Copy] is a second archive.
//
// The package refuses an entry that ParseEntry could not read and a record that does not continue the chain. It refuses
// an archive that was altered, or that is ahead of its store. It repairs only one kind of damage: an append that a
// power failure interrupted. Any other damage is left unchanged.
//
// Hashes of entries and hashes of links have different prefixes, as in RFC 6962 section 2.1. Entries are
// brevet.v1.LogEntry messages.
package translog
