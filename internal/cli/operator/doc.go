// Package operator holds the commands that call a server: identities, tokens, certificates, revocation, CRLs, log and
// store.
package operator
