// Package translog is the tamper-evident log: one entry for every change of state and every refusal, in one order,
// chained by hash, and kept a second time outside the database.
//
// An Entry is written by the store, unsequenced, in the transaction of the change it records. The Sequencer gives
// entries their places afterwards, without gaps, and appends them to the Archive: a file that only grows, that an
// auditor can check offline with Read, and from which a restored database learns what its backup had forgotten. A
// Verifier checks the same rules on any stream of entries, such as one that comes over the network.
//
// The package refuses an entry that its reader could not parse, a record that does not continue the chain, an
// archive that was altered, and an archive that is ahead of its store. It never repairs what it cannot explain: of a
// damaged archive nothing is changed but an append that power loss cut short.
//
// The chain separates the hashes of entries from those of links by a prefix, as RFC 6962 §2.1 does. Entries are
// brevet.v1.LogEntry messages.
package translog
