// Package operator contains the commands that call a server as an operator. They manage identities, tokens,
// certificates, revocations and CRLs, and print the log and statistics of the store.
package operator
