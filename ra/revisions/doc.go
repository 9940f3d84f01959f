// Package revisions keeps the policy of a running server. It compiles each revision of the document together with the
// trust sources and profiles in it, so that rules, sources and profiles always change together, and serves the newest one
// to every request.
//
// A document is checked in full before the store records it. If it has faults, the revision before it stays in effect.
// The first revision is recorded when a server starts with an empty store.
package revisions
